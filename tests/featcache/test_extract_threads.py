"""What works beside the model: the same bytes from any number of threads, and a failure in any of them ends all."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from featcache import activations, extract
from featcache.block import ShardBlock
from featcache.codec.direct import Int8
from featcache.crew import BESIDE_A_CPU, SWITCH_SECONDS, Crew, crew_for, launching
from featcache.errors import JobError
from featcache.job import Job, Request
from featcache.lease import Lease
from featcache.spec import Layout
from featcache.storage import LocalStorage
from featcache.upstreams import UpstreamConfig
from featcache.writer import SegmentWriter
from tests.helpers import contents, make_speech

MANY = Crew(readers=3, encoders=4, finishers=3, begun=3, batches=2, compressors=2)
CREWS = [BESIDE_A_CPU, Crew(readers=1, encoders=0, finishers=0, begun=1), Crew(2, 2, 1, 2), MANY]
# Shards of a few batches each, and batches of several rows.
LAYOUT = Layout(chunk_frames=16, shard_frames=128, batch_seconds=1.4)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a recording that is not there."""
    manifest = make_speech(tmp_path_factory.mktemp("speech"), 16)
    (manifest.parent / "9.wav").unlink()
    return manifest


def begun(speech: Path, folder: Path, profile: str = "int8") -> Callable[[str], Job]:
    """Makes jobs of one calibration, each in a folder of its name."""
    request = Request(UpstreamConfig(id="mel:80"), profile, layout=LAYOUT, calibration_seconds=5)
    Job(speech, folder / "start", request).init()

    def make(name: str) -> Job:
        return Job(speech, shutil.copytree(folder / "start", folder / name), request)

    return make


def hire(monkeypatch: pytest.MonkeyPatch, crew: Crew) -> None:
    monkeypatch.setattr(extract, "crew_for", lambda device, cores: crew)


def test_a_cpu_keeps_its_cores_and_a_device_gets_help() -> None:
    assert crew_for(torch.device("cpu"), 64) == BESIDE_A_CPU
    assert (BESIDE_A_CPU.encoders, BESIDE_A_CPU.finishers) == (0, 0)
    assert crew_for(torch.device("cuda", 1), 16) == Crew(
        readers=8, encoders=8, finishers=6, begun=3, batches=2, compressors=8
    )
    assert crew_for(torch.device("mps"), 1) == Crew(
        readers=2, encoders=2, finishers=2, begun=3, batches=2, compressors=2
    )


@pytest.mark.parametrize("encodes", [False, True])
@pytest.mark.parametrize("profile", ["int8", "residual"])
def test_any_crew_writes_the_same_bytes(
    speech: Path, profile: str, encodes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "ENCODING_DEVICES", ("cpu",) if encodes else ())
    make = begun(speech, tmp_path, profile)
    names: set[str] = set()
    render = ShardBlock.render

    def watched(block: ShardBlock, each: Any) -> Any:
        names.add(threading.current_thread().name.split("_")[0])
        return render(block, each)

    monkeypatch.setattr(ShardBlock, "render", watched)
    found = []
    for number, crew in enumerate(CREWS):
        hire(monkeypatch, crew)
        names.clear()
        done = make(str(number)).extract()
        assert done is not None
        # Shards are counted in the order in which they end, and sums of floats depend on it.
        found.append(replace(done, seconds=round(done.seconds, 6)))
        assert names == ({"finish"} if crew.finishers else {"write"})
        assert contents(tmp_path / str(number)) == contents(tmp_path / "0")
    assert all(done == found[0] for done in found)
    assert found[0].shards > 4 and [q.id for q in found[0].quarantined] == ["u9"]


@pytest.mark.parametrize("what", ["finishing", "encoding"])
def test_a_failure_beside_the_stages_ends_the_run(
    speech: Path, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = begun(speech, tmp_path)
    make("whole").extract()
    job = make("c")
    hire(monkeypatch, MANY)
    owner, name = {"finishing": (SegmentWriter, "write_files"), "encoding": (Int8, "encode")}[what]
    real, calls = getattr(owner, name), []

    def fails(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise JobError("no space left")
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(JobError, match="no space left"):
        patch.setattr(owner, name, fails)
        job.extract()
    segment = tmp_path / "c/segments/000000"
    assert not list(segment.glob("leases/*")) and not (segment / "seal.json").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.split("_")[0] in ("encode", "finish")]
    Job(speech, tmp_path / "c", job.request).extract()
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_a_lease_that_is_lost_while_a_shard_is_written_records_nothing(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = begun(speech, tmp_path)("c")
    hire(monkeypatch, MANY)
    real = SegmentWriter.write_files

    def taken_over(self: SegmentWriter, files: dict[str, bytes]) -> Any:
        proofs = real(self, files)
        if "codes/c/1/0/0" in files:
            other = Lease("", "another", time.time() + 60, "another machine", 1, "1")
            self.storage.write(f"{self.name}/leases/000001", other.to_bytes())
        return proofs

    monkeypatch.setattr(SegmentWriter, "write_files", taken_over)
    with pytest.raises(JobError, match="leases/000001 was lost to another process"):
        job.extract()
    assert not (tmp_path / "c/segments/000000/ledger/000001.json").exists()
    assert (tmp_path / "c/segments/000000/leases/000001").exists()


@pytest.mark.parametrize("crew", [BESIDE_A_CPU, MANY])
def test_a_shard_does_not_wait_for_one_of_another_process(
    speech: Path, crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two processes that wait for each other's shards, each has to finish its own."""
    job = begun(speech, tmp_path)("c")
    hire(monkeypatch, crew)
    storage, segment = LocalStorage(tmp_path / "c"), "segments/000000"
    shards = job.plan.shards
    foreign = Lease("", "another", time.time() + 600, "another machine", 1, "1").to_bytes()
    storage.write(f"{segment}/leases/{shards - 1:06d}", foreign)
    thread = threading.Thread(target=job.extract)
    thread.start()
    deadline = time.monotonic() + 60
    while len(list(storage.list_keys(f"{segment}/ledger"))) < shards - 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    recorded = len(list(storage.list_keys(f"{segment}/ledger")))
    alive = thread.is_alive()
    storage.delete(f"{segment}/leases/{shards - 1:06d}")
    thread.join(60)
    assert recorded == shards - 1 and alive
    assert len(list(storage.list_keys(f"{segment}/ledger"))) == shards and not thread.is_alive()


def blocks_while_writing_stands_still(job: Job, expected: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Of an extraction whose writes wait: how many blocks of shards there are then, and at the end."""
    made: list[ShardBlock] = []
    go_on = threading.Event()
    new_block, write_files = SegmentWriter.new_block, SegmentWriter.write_files

    def counted(self: SegmentWriter) -> ShardBlock:
        made.append(new_block(self))
        return made[-1]

    def slow(self: SegmentWriter, files: dict[str, bytes]) -> Any:
        go_on.wait(60)
        return write_files(self, files)

    monkeypatch.setattr(SegmentWriter, "new_block", counted)
    monkeypatch.setattr(SegmentWriter, "write_files", slow)
    thread = threading.Thread(target=job.extract)
    thread.start()
    deadline = time.monotonic() + 60
    while len(made) < expected and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    there = len(made)
    go_on.set()
    thread.join(60)
    assert not thread.is_alive()
    return there, len(made)


def test_shards_in_memory_are_bounded(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = begun(speech, tmp_path)("c")
    hire(monkeypatch, Crew(readers=2, encoders=2, finishers=2, begun=3))
    there, made = blocks_while_writing_stands_still(job, 3, monkeypatch)
    # Two are being written, the third is full; those after them take their memory.
    assert there == made == 3 and job.plan.shards > 4


def test_the_thread_that_launches_has_a_thread_of_torch_and_the_lock_soon() -> None:
    before = torch.get_num_threads(), sys.getswitchinterval()
    with launching(torch.device("cpu")):
        assert (torch.get_num_threads(), sys.getswitchinterval()) == before
    with pytest.raises(KeyError), launching(torch.device("cuda")):
        assert (torch.get_num_threads(), round(sys.getswitchinterval(), 6)) == (1, SWITCH_SECONDS)
        raise KeyError
    assert (torch.get_num_threads(), sys.getswitchinterval()) == before
