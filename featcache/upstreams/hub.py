"""Checkpoint folders in transformers' format: a local one, or a hub's at a pinned revision.

Only JSON and safetensors are fetched and read: no pickle, no code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import UpstreamError
from featcache.upstreams.base import UpstreamConfig
from featcache.upstreams.hashing import sha256_of_parts
from featcache.upstreams.places import COMMIT, local_path

FILES = ["config.json", "preprocessor_config.json", "model*.safetensors", "model.safetensors.index.json"]
# Entries of config.json that say nothing about the values
INCIDENTAL = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "_commit_hash",
}


@dataclass(frozen=True)
class Checkpoint:
    """A folder that was found whole: its settings and its safetensors files."""

    id: str
    folder: Path
    settings: dict[str, Any]
    files: tuple[Path, ...]

    def preprocessor(self) -> dict[str, Any] | None:
        """What preprocessor_config.json says, or None where there is none."""
        return read_json(self.id, self.folder / "preprocessor_config.json")

    def digests(self) -> dict[str, str]:
        """SHA-256 of the weights and of the settings that decide values, for the identity."""
        kept = {key: value for key, value in self.settings.items() if key not in INCIDENTAL}
        canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"))
        return {
            "weights_sha256": sha256_of_parts(self.files),
            "config_sha256": hashlib.sha256(canonical.encode()).hexdigest(),
        }


def find(config: UpstreamConfig) -> Checkpoint:
    """The checkpoint that `hf:FOLDER` or `hf:org/name@revision` names; the hub is asked only where needed."""
    place = config.id.partition(":")[2]
    if local_path(place).is_dir():
        if config.revision is not None:
            raise UpstreamError(f"{config.id}: a local folder has no revision; leave it out")
        return _open(config.id, local_path(place))
    name, _, revision = place.partition("@")
    if name.startswith(("/", ".", "~")) or name.count("/") != 1:
        raise UpstreamError(f"{config.id}: there is no such folder; write hf:FOLDER or hf:org/name@revision")
    if revision and config.revision and revision != config.revision:
        raise UpstreamError(f"{config.id}: the option revision says {config.revision}; give one of the two")
    revision = revision or config.revision or ""
    if not COMMIT.fullmatch(revision):
        raise UpstreamError(
            f"{config.id}: pin the revision to a commit, hf:{name}@ and its 40 hexadecimal digits, so that "
            "the weights cannot change; the hub shows them under Files and versions, History"
        )
    return _from_hub(name, revision)


def _from_hub(name: str, revision: str) -> Checkpoint:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    id = f"hf:{name}@{revision}"
    try:  # a commit that was fetched whole never changes: no network
        found = _open(id, Path(snapshot_download(name, revision=revision, local_files_only=True)))
        # Programs that only want the model leave out what says how its input is made.
        if found.preprocessor() is not None:
            return found
    except (OSError, ValueError, UpstreamError):
        pass
    try:
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=FILES))
    except LocalEntryNotFoundError as error:
        raise UpstreamError(
            f"{id}: the hub cannot be reached and this revision is not in its local cache; "
            f"fetch it elsewhere and give the folder: hf:FOLDER"
        ) from error
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise UpstreamError(
            f"{id}: the hub answered {status}; check the name, the revision and your access (hf auth login)"
        ) from error
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UpstreamError(f"{id}: it could not be fetched ({reason}); check the network, or give a folder") from error
    return _open(id, folder)


def _open(id: str, folder: Path) -> Checkpoint:
    settings = read_json(id, folder / "config.json")
    if settings is None:
        raise UpstreamError(f"{id}: there is no config.json in the checkpoint; give a folder of save_pretrained")
    if "auto_map" in settings:
        raise UpstreamError(f"{id}: it asks to run code of its own, which is never done; use a model without auto_map")
    # transformers would follow either, and load what no digest here is of.
    if settings.get("transformers_weights") is not None:
        raise UpstreamError(
            f"{id}: its config.json names another file of weights (transformers_weights); name that model.safetensors "
            "and take the entry out"
        )
    if (folder / "adapter_config.json").exists():
        raise UpstreamError(
            f"{id}: an adapter lies in the checkpoint (adapter_config.json), which transformers would add or leave out "
            "by what is installed: merge it into the model and save that, or move it elsewhere"
        )
    index = None
    if not (folder / "model.safetensors").is_file():  # which transformers takes first
        index = read_json(id, folder / "model.safetensors.index.json")
    names = ["model.safetensors"] if index is None else _named_in(id, index)
    missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if missing:
        raise UpstreamError(
            f"{id}: there is no {missing[0]} in the checkpoint, and only safetensors are read; "
            f"convert it once, then give hf:FOLDER: {_conversion(id)}"
        )
    return Checkpoint(id, folder, settings, tuple(folder / name for name in names))


def _conversion(id: str) -> str:
    """A command that writes a checkpoint anew as safetensors, with what says how its input is made."""
    place = id.partition(":")[2]
    name, _, revision = (str(local_path(place)), "", "") if local_path(place).is_dir() else place.partition("@")
    source = repr(name) + (f", revision={revision!r}" if revision else "")
    return (
        'python -c "from transformers import AutoFeatureExtractor, AutoModel; '
        f"[kind.from_pretrained({source}).save_pretrained('FOLDER') for kind in (AutoModel, AutoFeatureExtractor)]\""
    )


def _named_in(id: str, index: dict[str, Any]) -> list[str]:
    """The files that an index of several says hold the tensors."""
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise UpstreamError(
            f"{id}: model.safetensors.index.json does not say in its weight_map which files hold the tensors; "
            "fetch it again"
        )
    return sorted(set(files.values()))


def read_json(id: str, path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no such file."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UpstreamError(f"{id}: {path.name} is not readable JSON ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise UpstreamError(f"{id}: {path.name} is not a JSON object; fetch it again")
    return value
