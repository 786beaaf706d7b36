"""Jobs on log-mel: what is asked of a cache that exists, and how much of its ledger is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.errors import MismatchError
from featcache.job import Job, Request
from featcache.spec import Layout
from featcache.storage import LocalStorage
from featcache.upstreams import UpstreamConfig
from tests.helpers import make_speech

MEL = UpstreamConfig(id="mel:8")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("speech"), 12)


def test_parameters_of_a_profile_are_part_of_what_is_asked(speech: Path, tmp_path: Path) -> None:
    def ask(parameters: dict[str, float] | None) -> None:
        Job(speech, tmp_path / "c", Request(MEL, "residual", parameters)).init()

    ask({"step": 0.5})
    ask({"step": 0.5})
    ask(None)
    with pytest.raises(MismatchError, match="profile 'residual:step=1.0' is asked for.*step=0.5"):
        ask({"step": 1.0})
    ask({})  # a profile alone asks for no particular parameters


def test_a_shard_reads_its_own_record_alone(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(speech, tmp_path / "c", Request(MEL, "fp16", layout=Layout(chunk_frames=16, shard_frames=64)))
    job.init()
    reads: list[str] = []
    read = LocalStorage.read

    def counted(self: LocalStorage, key: str) -> bytes | None:
        if "/ledger/" in key:
            reads.append(key)
        return read(self, key)

    monkeypatch.setattr(LocalStorage, "read", counted)
    done = job.extract()
    assert done is not None and done.shards == 12
    # Once when its lease is taken, once for the seal.
    assert len(reads) == 2 * done.shards
