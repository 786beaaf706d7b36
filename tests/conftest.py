"""Fixtures that every test may use.

Real speech and a small real model are needed by tests marked `real`. `make test` installs both and sets
FEATCACHE_REQUIRE_REAL, which turns a missing one from a skip into a failure.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from featcache import startup

# Before numpy and torch start their pools: many small operations are faster without them.
startup.sleep_while_waiting()
startup.collect_rarely()
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "2")

import pytest
from hypothesis import settings

from pipelines.bench.s3_server import variables
from pipelines.demo.fetch import PROMPTS, share_root
from pipelines.demo.model import MODELS, PackagedModel, is_installed
from tests.s3 import Bucket, Server

# The same examples on every run; HYPOTHESIS_PROFILE=explore draws new ones, and many more.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))

_ENGLISH = Path("asterisk") / "sounds" / "en_US_f_Allison"

if "FEATCACHE_SPEECH_ROOT" not in os.environ and (share_root() / _ENGLISH).is_dir():
    # Commands that tests start find the same speech, wherever they move HOME to.
    os.environ["FEATCACHE_SPEECH_ROOT"] = str(share_root())


def _missing(what: str, command: str) -> None:
    message = f"{what} is not installed: run `{command}`"
    if os.environ.get("FEATCACHE_REQUIRE_REAL"):
        pytest.fail(message, pytrace=False)
    pytest.skip(message)


@pytest.fixture(scope="session")
def speech_root() -> Path:
    """The `usr/share` folder of the unpacked speech; English prompts at least, with their transcript."""
    root = share_root()
    for place in (root / _ENGLISH, root / "doc" / PROMPTS["en"][0].name):
        if not place.is_dir():
            _missing("the prompts' speech", "pipelines demo fetch --languages en")
    return root


@pytest.fixture(scope="session")
def whisper_tiny_package() -> PackagedModel:
    """Whisper tiny.en, as installed; its upstream's id is `package:whisper-tiny.en`."""
    model = MODELS["whisper-tiny.en"]
    if not is_installed(model):
        _missing(model.name, f"pipelines demo model {model.name}")
    return model


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """A real S3 endpoint on loopback, without any bucket."""
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def bucket(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket; the environment names its endpoint and keys, and nothing else of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in variables(s3_server.endpoint).items():
        monkeypatch.setenv(name, value)
    return s3_server.make_bucket()
