"""Shards on several processes: the same bytes as from one, also where a worker dies."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from distributed import Client

from featcache.cluster import connect, run_tasks
from featcache.cluster_job import EVENTS, ClusterJob
from featcache.errors import JobError, UsageError
from featcache.job import Job, Request
from featcache.plan import Part
from featcache.spec import Layout
from featcache.stats import compute
from featcache.store import Cache
from featcache.upstreams import UpstreamConfig
from featcache.verify import verify
from tests.helpers import contents, make_speech, run_cli
from tests.real import request
from tests.s3 import KEYS, Bucket

REPOSITORY = Path(__file__).parents[2]
MEL = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=128))
# For whatever takes a second on a machine that has time.
PATIENCE = 240


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("noises"), 12)


@pytest.fixture(scope="module")
def alone(memory_root: Path, noises: Path) -> Path:
    """The cache of one process."""
    place = memory_root / "alone"
    Job(noises, place, MEL).extract()
    return place


class Program:
    """A Python program of this installation, what it says going to a file: nobody has to drain a pipe."""

    def __init__(self, log: Path, *arguments: object) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *map(str, arguments)],
                stdout=file, stderr=file, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )  # fmt: skip

    def said(self, pattern: str) -> re.Match[str]:
        """Waits until it has said this."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            over = self.process.poll() is not None
            if found := re.search(pattern, self.log.read_text()):
                return found
            assert not over, self.log.read_text()
            time.sleep(0.05)
        raise AssertionError(f"it has not said {pattern}: {self.log.read_text()}")

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass(frozen=True)
class Cluster:
    """A scheduler and two workers, each a process started from the command line."""

    address: str
    dashboard: str
    workers: dict[str, Program]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    logs = tmp_path_factory.mktemp("cluster")
    options = ("--host", "127.0.0.1", "--port", 0, "--dashboard-address", "127.0.0.1:0")
    with contextlib.ExitStack() as stack:
        scheduler = Program(logs / "scheduler", "distributed.cli.dask_scheduler", *options)
        stack.callback(scheduler.end)
        address = scheduler.said(r"Scheduler at: +(tcp://127\.0\.0\.1:\d+)")[1]
        programs = []
        for name in ("a", "b"):
            # The preload imports what a shard needs while the worker starts.
            worker = ("distributed.cli.dask_worker", address, "--nthreads", 1, "--no-nanny", "--no-dashboard")
            programs.append(Program(logs / name, *worker, "--preload", "featcache.cluster_job"))
            stack.callback(programs[-1].end)
        workers = {program.said(r"Start worker at: +(tcp://\S+)")[1]: program for program in programs}
        for program in programs:
            program.said("Registered to")
        yield Cluster(address, scheduler.said(r"dashboard at: +(http://127\.0\.0\.1:\d+)")[1], workers)


def loads(client: Client) -> Counter[tuple[str, str]]:
    """How often each worker has loaded each model, by the cluster's own log."""
    return Counter((event["worker"], event["loaded"]) for _, event in client.get_events(EVENTS))


def computed(client: Client) -> dict[str, str]:
    """The worker that computed each shard's task, from what the dashboard draws its task stream of."""
    stream = client.get_task_stream(count=100_000)
    return {row["key"]: row["worker"] for row in stream if row["key"].startswith("extract-shard-")}


def test_a_cluster_from_the_command_line(cluster: Cluster, noises: Path, alone: Path, memory: Path) -> None:
    with Client(cluster.address, set_as_default=False) as client:
        client.get_task_stream()
        before = loads(client)
        assert all(model != "mel:8" for _, model in before)
        for number in range(2):
            place = memory / str(number)
            if number == 0:
                Job(noises, place, MEL).init()
            else:  # a worker calibrates
                ClusterJob(noises, place, MEL, client).init()
            done = run_cli("extract", noises, place, "--scheduler", cluster.address)
            assert done.status == 0 and f"dashboard of the cluster: {cluster.dashboard}" in done.err, done.err
            assert contents(place) == contents(alone)
        tasks = computed(client)
        assert set(tasks.values()) == set(cluster.workers), "each of the two did some"
        shards = Counter(re.sub(r"^extract-shard-|-\w{8}$", "", key) for key in tasks)
        assert shards == {f"{shard:06d}": 2 for shard in range(len(list(alone.glob("segments/*/ledger/*.json"))))}
        # One load a worker for both caches and the calibration: the model stays.
        assert loads(client) - before == {(worker, "mel:8"): 1 for worker in cluster.workers}
        for command in ("verify", "stats"):
            there = run_cli(command, place, "--json", "--scheduler", cluster.address)
            assert there.status == 0 and json.loads(there.out) == json.loads(run_cli(command, place, "--json").out)
        assert loads(client) - before == {(worker, "mel:8"): 1 for worker in cluster.workers}


def test_a_cluster_reaches_s3_as_the_command_does(
    cluster: Cluster, noises: Path, alone: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, memory: Path
) -> None:
    """The endpoint goes with the tasks; the workers have keys of their own, and nothing else of AWS."""
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(memory / "blocks"))
    url = f"{bucket.url}/made"
    with Client(cluster.address, set_as_default=False) as client:
        client.run(os.environ.update, KEYS)
        Job(noises, url, MEL).init()
        done = run_cli("extract", noises, url, "--scheduler", cluster.address)
        assert done.status == 0, done.err
        made = {key: data for key, data in bucket.files("made").items() if not key.startswith("log/")}
        assert made == contents(alone)
        local = {command: json.loads(run_cli(command, alone, "--json").out) for command in ("verify", "stats")}
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        for command, expected in local.items():
            options = ("--scheduler", cluster.address, "--endpoint-url", bucket.server.endpoint)
            done = run_cli(command, url, "--json", *options)
            assert done.status == 0 and json.loads(done.out) == expected, done.err


def test_the_dashboard_is_there(cluster: Cluster) -> None:
    pytest.importorskip("bokeh")
    with urllib.request.urlopen(f"{cluster.dashboard}/status", timeout=PATIENCE) as page:
        text = page.read().decode()
    assert "bokeh" in text and "individual-task-stream" in text


def test_workers_of_this_machine(noises: Path, alone: Path, memory: Path) -> None:
    """What `--workers 2` does, for extract, verify and stats; and the option itself."""
    place = memory / "cache"
    Job(noises, place, MEL).init()
    with connect(2, None) as client:
        assert client is not None
        ClusterJob(noises, place, MEL, client).extract()
        assert contents(place) == contents(alone)
        assert set(loads(client).values()) == {1} and {model for _, model in loads(client)} == {"mel:8"}
        assert verify(place, client=client) == verify(place)
        cache = Cache.open(place)
        assert compute(cache, client=client) == compute(cache)
    assert run_cli("verify", place, "--workers", 1).status == 0


def test_a_worker_keeps_nothing_but_the_model_from_one_command_to_the_next(noises: Path, memory: Path) -> None:
    """The same command, on a cluster that stays: what the plan does not tell apart was kept, and used."""
    place, mended = memory / "cache", noises.parent / "mended.jsonl"
    rows = noises.read_text()
    with connect(1, None) as client:
        # A manifest is mended.
        Job(noises, place, MEL).init()
        mended.write_text(rows.replace(".wav", ".gone", 1))
        with pytest.raises(JobError, match="no such file"):
            ClusterJob(mended, place, MEL, client).extract(strict=True)
        mended.write_text(rows)
        ClusterJob(mended, place, MEL, client).extract(strict=True)
        # A cache is made anew, with other scales.
        shutil.rmtree(place)
        for at in (place, memory / "alone"):
            Job(noises, at, replace(MEL, calibration_seconds=1.0)).init()
        Job(noises, memory / "alone", MEL).extract()
        ClusterJob(mended, place, MEL, client).extract()
        assert set(loads(client).values()) == {1}
    assert contents(place) == contents(memory / "alone")


# As a command of a terminal, which sends Ctrl-C to all of its processes.
OF_A_TERMINAL = """
import os, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from featcache.cluster import connect, run_tasks
try:
    with connect(2, None) as client:
        try:
            run_tasks(int, [("none",)], client, name="x")
        except ValueError:
            print("mistake", flush=True)
        begin = lambda: [os.write(1, b"begun\\n"), time.sleep(600)]
        run_tasks(begin, [(), ()], client, name="x", a_worker=1)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("times", [1, 2])
def test_workers_of_this_machine_add_nothing_to_what_their_command_says(times: int) -> None:
    """Of a mistake and of Ctrl-C; and nobody waits for what they are at."""
    command = subprocess.Popen(
        [sys.executable, "-c", OF_A_TERMINAL],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    try:
        assert command.stdout is not None
        said = [command.stdout.readline() for _ in range(3)]
        for _ in range(times):
            os.killpg(command.pid, signal.SIGINT)
            time.sleep(0.3)
        out, err = command.communicate(timeout=PATIENCE)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
    assert (said, out) == (["mistake\n", "begun\n", "begun\n"], "interrupted\n")
    assert err == "" and command.returncode == 0


@pytest.mark.real
def test_a_worker_that_dies_has_its_shard_done_by_another(
    cluster: Cluster, speech: Path, reference: Path, memory: Path
) -> None:
    place = memory / "cache"
    Job(speech, place, request()).init()
    victim, program = next(iter(cluster.workers.items()))
    lost: list[str] = []

    def kill() -> None:
        """Stand the worker still in the middle of a shard, see which one that is, and kill it."""
        until = time.monotonic() + PATIENCE
        with Client(cluster.address, set_as_default=False) as client:
            while not lost and time.monotonic() < until:
                if list(place.glob("segments/*/ledger/*.json")) and client.processing([victim])[victim]:
                    program.process.send_signal(signal.SIGSTOP)
                    time.sleep(0.5)  # what it had said by then has arrived
                    lost.extend(map(str, client.processing([victim])[victim]))
                    program.process.send_signal(signal.SIGKILL if lost else signal.SIGCONT)
                time.sleep(0.01)

    with Client(cluster.address, set_as_default=False) as client:
        client.get_task_stream()
        killer = threading.Thread(target=kill)
        killer.start()
        done = run_cli("extract", speech, place, "--scheduler", cluster.address)
        killer.join()
        assert done.status == 0, done.err
        [key] = lost
        assert key.startswith("extract-shard-") and computed(client)[key] != victim
        assert victim not in client.scheduler_info()["workers"]
        assert all(count == 1 for count in loads(client).values())
    assert contents(place) == contents(reference)


def test_parts_of_a_batch_job(noises: Path, alone: Path, memory: Path) -> None:
    place = memory / "cache"
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


def test_parts_that_begin_together_calibrate_once(noises: Path, alone: Path, memory: Path) -> None:
    code = (
        "import sys; from featcache.plan import Part; from featcache.job import Job; "
        "from tests.featcache.test_cluster import MEL; "
        "Job(sys.argv[1], sys.argv[2], MEL).extract(part=Part.parse(sys.argv[3]))"
    )
    parts = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(noises), str(memory / "c"), f"{i}/2"],
            stderr=subprocess.PIPE, text=True, cwd=REPOSITORY,
        )
        for i in (1, 2)
    ]  # fmt: skip
    messages = [part.communicate(timeout=PATIENCE)[1] for part in parts]
    assert [part.returncode for part in parts] == [0, 0], messages
    assert contents(memory / "c") == contents(alone)
    assert sum("calibrating: 100 %" in text for text in messages) == 1


def test_one_that_looked_before_the_other_began_takes_part_in_its_segment(
    noises: Path, alone: Path, memory: Path
) -> None:
    """The other's folder appears between its look at the rows and its choice of a segment."""
    place = memory / "c"
    slow = Job(noises, place, MEL)
    slow.init()
    assert len(slow.new_rows) == 12
    quick = Job(noises, place, MEL)
    quick.extract(part=Part.parse("1/2"))
    done = slow.extract()
    assert done is not None and 0 < done.shards < slow.plan.shards
    assert contents(place) == contents(alone)

    late = Job(noises, memory / "d", MEL)
    late.init()
    assert len(late.new_rows) == 12
    Job(noises, memory / "d", MEL).extract()
    done = late.extract()
    assert done is not None and done.shards == 0
    assert contents(memory / "d") == contents(alone)


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


def test_a_scheduler_that_goes_away_is_one_line(tmp_path: Path) -> None:
    program = Program(
        tmp_path / "log", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", 0, "--no-dashboard"
    )
    try:
        address = program.said(r"Scheduler at: +(tcp://127\.0\.0\.1:\d+)")[1]
        with Client(address, set_as_default=False) as client:
            threading.Timer(1, program.end).start()
            with pytest.raises(JobError, match="connection to the cluster's scheduler was lost"):
                run_tasks(int, [("0",)], client, name="x")  # there is no worker
    finally:
        program.end()


def test_no_cluster_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featcache.cluster.CONNECT_SECONDS", 2)
    nobody = "no scheduler answers at tcp://127.0.0.1:1: start one"
    with pytest.raises(JobError, match=nobody), connect(None, "tcp://127.0.0.1:1"):
        pass
    with pytest.raises(UsageError, match="give one of them"), connect(2, "tcp://x:1"):
        pass
    with pytest.raises(UsageError, match="no address"), connect(None, "nonsense://x"):
        pass
    with pytest.raises(UsageError, match="no certificates are named for TLS"), connect(None, "tls://x:1"):
        pass
