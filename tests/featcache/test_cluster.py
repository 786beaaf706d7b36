"""Shards on several processes: the same bytes as from one, also where a worker dies."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from featcache.cluster import connect, run_tasks
from featcache.errors import JobError, UsageError
from featcache.job import Job, Request
from featcache.plan import Part
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig
from tests.helpers import contents, make_speech
from tests.real import request

REPOSITORY = Path(__file__).parents[2]
MEL = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=128))


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("noises"), 12)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, noises: Path) -> Path:
    """The cache of one process."""
    place = tmp_path_factory.mktemp("alone") / "cache"
    Job(noises, place, MEL).extract()
    return place


def begin(*arguments: object) -> subprocess.Popen[str]:
    """A Python program of this installation, in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


def wait_for(stream: IO[str] | None, pattern: str) -> str:
    assert stream is not None
    for line in stream:
        if found := re.search(pattern, line):
            return found[0]
    raise AssertionError(f"it ended before it said {pattern}")


@pytest.fixture
def cluster() -> Iterator[tuple[str, list[subprocess.Popen[str]]]]:
    """The address of a scheduler and its two workers, each a process started from the command line."""
    scheduler = begin(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", 0, "--dashboard-address", "127.0.0.1:0"
    )
    workers: list[subprocess.Popen[str]] = []
    try:
        address = wait_for(scheduler.stderr, r"tcp://127\.0\.0\.1:\d+")
        for _ in range(2):
            workers.append(
                begin("distributed.cli.dask_worker", address, "--nthreads", 1, "--no-nanny", "--no-dashboard")
            )
        for worker in workers:
            wait_for(worker.stderr, "Registered to")
        yield address, workers
    finally:
        for process in [*workers, scheduler]:
            process.kill()
            process.communicate()


@pytest.mark.real
def test_a_cluster_from_the_command_line_that_loses_a_worker(
    cluster: tuple[str, list[subprocess.Popen[str]]], speech: Path, reference: Path, tmp_path: Path
) -> None:
    address, workers = cluster
    place = tmp_path / "cache"
    Job(speech, place, request()).init()
    extract = begin("featcache.cli", "extract", speech, place, "--scheduler", address)
    while not list(place.glob("segments/*/ledger/*.json")) and extract.poll() is None:
        time.sleep(0.005)
    workers[0].send_signal(signal.SIGKILL)
    assert len(list(place.glob("segments/*/ledger/*.json"))) < 5
    _, messages = extract.communicate(timeout=200)
    assert extract.returncode == 0, messages
    assert contents(place) == contents(reference)
    for command in ("verify", "stats"):
        on_cluster = begin("featcache.cli", command, place, "--json", "--scheduler", address)
        here = begin("featcache.cli", command, place, "--json")
        results = [json.loads(process.communicate(timeout=100)[0]) for process in (on_cluster, here)]
        assert results[0] == results[1]


def test_workers_of_this_machine(noises: Path, alone: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    Job(noises, place, MEL).init()
    extract = begin("featcache.cli", "extract", noises, place, "--workers", 2)
    _, messages = extract.communicate(timeout=200)
    assert extract.returncode == 0 and "dashboard" in messages, messages
    assert contents(place) == contents(alone)


def test_parts_of_a_batch_job(noises: Path, alone: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    third = Job(noises, place, MEL).extract(part=Part.parse("3/3"))
    first = Job(noises, place, MEL).extract(part=Part.parse("1/3"))
    assert third is not None and first is not None and third.left_to_others > first.left_to_others > 0
    assert not (place / "segments/000000/seal.json").exists()
    last = Job(noises, place, MEL).extract(part=Part.parse("2/3"))
    assert last is not None and last.shards == first.left_to_others and not last.left_to_others
    assert contents(place) == contents(alone)
    for wrong in ("0/3", "4/3", "2", "a/b", "1/"):
        with pytest.raises(UsageError, match="write I/N"):
            Part.parse(wrong)


def test_parts_that_begin_together_calibrate_once(noises: Path, alone: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from featcache.plan import Part; from featcache.job import Job; "
        "from tests.featcache.test_cluster import MEL; "
        "Job(sys.argv[1], sys.argv[2], MEL).extract(part=Part.parse(sys.argv[3]))"
    )
    parts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(noises), str(tmp_path / "c"), f"{i}/2"],
            stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )
        for i in (1, 2)
    ]  # fmt: skip
    messages = [part.communicate(timeout=100)[1] for part in parts]
    assert [part.returncode for part in parts] == [0, 0], messages
    assert contents(tmp_path / "c") == contents(alone)
    assert sum("calibrating: 100 %" in text for text in messages) == 1


def test_a_failed_task_ends_the_run_with_its_own_error() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise JobError("three")
        return number

    seen: list[int] = []
    tasks = [(i,) for i in (0, 1, 2)]
    assert run_tasks(fail, tasks, name="x", on_result=lambda i, result: seen.append(result)) == [0, 1, 2]
    assert sorted(seen) == [0, 1, 2]
    with pytest.raises(JobError, match="three"):
        run_tasks(fail, [(3,)], name="x")


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.cluster.CONNECT_SECONDS", 2)
    nobody = "no scheduler answers at tcp://127.0.0.1:1: start one"
    with pytest.raises(JobError, match=nobody), connect(None, "tcp://127.0.0.1:1"):
        pass
    with pytest.raises(UsageError, match="give one of them"), connect(2, "tcp://x:1"):
        pass
    with pytest.raises(UsageError, match="no address"), connect(None, "nonsense://x"):
        pass
