"""Batches that are cut over several shards: the same bytes, however the shards are shared out and whatever happens.

A CPU gives a row the same values in any batch. Here, as on a GPU, they depend on the rows beside it.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from featcache import cluster_job, manifest
from featcache import plan as planning
from featcache.cluster_job import ClusterJob
from featcache.crew import BESIDE_A_CPU, Crew
from featcache.errors import JobError
from featcache.extract import Done, run_shards
from featcache.job import Job, Request
from featcache.lease import Lease
from featcache.plan import Part
from featcache.repair import repair
from featcache.storage import LocalStorage
from featcache.upstreams import Upstream
from featcache.upstreams.base import Prepared
from featcache.writer import SegmentWriter
from tests.featcache.test_extract_threads import MANY, begun, blocks_while_writing_stands_still, hire
from tests.helpers import contents, make_speech

ROOT = Path(__file__).parents[2]
SEGMENT = "segments/000000"
TOGETHER = 3


def depend_on_batches(set_attribute: Callable[[Any, str, Any], None], ran: list[int] | None = None) -> None:
    """Group shards, and add to each value what depends on all rows of its batch; `ran` gets the batches' rows."""
    real = Upstream._begin

    def begin(self: Upstream, prepared: Prepared) -> Callable[[], list[Tensor]]:
        end = real(self, prepared)
        if ran is not None and prepared.frames:
            ran.append(len(prepared.frames))
        shift = sum(float(wave.abs().sum()) for [wave] in prepared.inputs) % 1.0
        return lambda: [row + shift for row in end()]

    set_attribute(Upstream, "_begin", begin)
    set_attribute(planning, "shards_together", lambda *of: TOGETHER)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each forward pass had."""
    batches: list[int] = []
    depend_on_batches(monkeypatch.setattr, batches)
    return batches


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All recordings of one shard are not there."""
    manifest = make_speech(tmp_path_factory.mktemp("speech"), 18)
    for number in (2, 3):
        (manifest.parent / f"{number}.wav").unlink()
    return manifest


@pytest.fixture
def make(speech: Path, ran: list[int], tmp_path: Path) -> Callable[[str], Job]:
    """Makes jobs of one calibration, each in a folder of its name; `whole` is finished."""
    make = begun(speech, tmp_path)
    job = make("whole")
    ran.clear()
    done = job.extract()
    # Passes without a row that can be read are none.
    assert done is not None and done.shards == job.plan.shards == 11
    assert {row: int(job.plan.shard[row]) for row in (1, 2, 3, 4)} == {1: 0, 2: 1, 3: 1, 4: 2}
    assert max(ran) > 1 and len(ran) <= job.plan.passes[0]
    return make


def together(*jobs: Callable[[], object]) -> None:
    threads = [threading.Thread(target=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


def test_what_is_computed_depends_on_the_batch(
    make: Callable[[str], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests below would show nothing."""
    monkeypatch.setattr(planning, "shards_together", lambda *of: 1)
    make("other").extract()
    assert contents(tmp_path / "other") != contents(tmp_path / "whole")


@pytest.mark.parametrize("crew", [BESIDE_A_CPU, Crew(2, 2, 1, 2), MANY])
def test_any_crew(make: Callable[[str], Job], crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hire(monkeypatch, crew)
    make("c").extract()
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_parts_compute_nothing_twice(make: Callable[[str], Job], ran: list[int], tmp_path: Path) -> None:
    passes = sorted(ran)
    ran.clear()
    request, speech = make("c").request, make("d").manifest
    for number in (3, 1, 2):
        done = Job(speech, tmp_path / "c", request).extract(part=Part(number, 3))
        # Groups of 3, 3, 3 and 2 shards.
        assert done is not None and done.left_to_others == {3: 8, 1: 3, 2: 0}[number]
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    assert sorted(ran) == passes


@pytest.mark.parametrize("crew", [BESIDE_A_CPU, MANY])
def test_two_at_the_same_time_compute_nothing_twice(
    make: Callable[[str], Job], ran: list[int], crew: Crew, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hire(monkeypatch, crew)
    passes = sorted(ran)
    ran.clear()
    first = make("c")
    together(first.extract, Job(first.manifest, tmp_path / "c", first.request).extract)
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")
    assert sorted(ran) == passes


def test_shards_in_any_order_and_number(make: Callable[[str], Job], tmp_path: Path) -> None:
    job = make("c")
    job.writer.begin()
    shards = list(range(job.plan.shards))
    draw = random.Random(0)
    draw.shuffle(shards)
    while shards:
        some = [shards.pop() for _ in range(min(len(shards), draw.randint(1, 3)))]
        done = run_shards(job.writer, job.new_rows, job.manifest, job.upstream, some)
        seconds = sum(job.plan.shard_seconds(shard) for shard in some if shard != 1)
        assert done.shards == len(some) and done.seconds == pytest.approx(seconds)
    Job(job.manifest, tmp_path / "c", job.request).extract()
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_progress_is_of_what_was_wanted(make: Callable[[str], Job]) -> None:
    job = make("c")
    job.writer.begin()
    told: list[float] = []
    wanted = [4, 6]
    run_shards(job.writer, job.new_rows, job.manifest, job.upstream, wanted, lambda seconds, _: told.append(seconds))
    assert sum(told) == pytest.approx(sum(map(job.plan.shard_seconds, wanted)))


def test_a_shard_is_repaired_in_the_batches_of_its_group(
    make: Callable[[str], Job], ran: list[int], tmp_path: Path
) -> None:
    place = tmp_path / "whole"
    before = contents(place)
    for key in (f"{SEGMENT}/codes/c/4/0/0", f"{SEGMENT}/ledger/000008.json"):
        (place / key).write_bytes(b"x")
    untouched = (place / SEGMENT / "codes/c/5/0/0").stat().st_mtime_ns
    repair(make("c").manifest, place)
    assert contents(place) == before
    assert (place / SEGMENT / "codes/c/5/0/0").stat().st_mtime_ns == untouched


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(make: Callable[[str], Job], tmp_path: Path) -> None:
    """In the middle of a group, some of whose shards are recorded."""
    place = tmp_path / "c"
    speech = make("c").manifest
    code = (
        "import sys, time; from featcache.writer import SegmentWriter\n"
        "from tests.featcache import test_groups as tests\n"
        "record = SegmentWriter.record\n"
        "def slow(self, of):\n"
        "    record(self, of); print('recorded', flush=True); time.sleep(600 * (of.shard % 3 == int(sys.argv[3])))\n"
        "SegmentWriter.record = slow\n"
        "tests.depend_on_batches(setattr)\n"
        "tests.Job(sys.argv[1], sys.argv[2], tests.Request()).extract()\n"
    )
    for stop in (0, 1, 2):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(speech), str(place), str(stop)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert process.stdout is not None and process.stdout.readline() == "recorded\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    times = {path: path.stat().st_mtime_ns for path in (place / SEGMENT / "ledger").iterdir()}
    groups = [{shard for shard in recorded(place) if shard // TOGETHER == group} for group in range(4)]
    assert any(0 < len(shards) < TOGETHER for shards in groups)
    Job(speech, place, Request()).extract()
    assert contents(place) == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == at for path, at in times.items())


def recorded(place: Path) -> set[int]:
    return {
        int(key.rsplit("/", 1)[-1].removesuffix(".json")) for key in LocalStorage(place).list_keys(f"{SEGMENT}/ledger")
    }


@pytest.mark.parametrize("crew", [BESIDE_A_CPU, MANY])
@pytest.mark.parametrize("foreign, left", [(5, {5}), (3, {3, 4, 5})])
def test_shards_of_another_process_are_waited_for_with_nothing_begun(
    make: Callable[[str], Job],
    foreign: int,
    left: set[int],
    crew: Crew,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who has the first of a group is about to take the rest; without another one it goes on."""
    hire(monkeypatch, crew)
    job, storage = make("c"), LocalStorage(tmp_path / "c")
    lease = f"{SEGMENT}/leases/{foreign:06d}"
    storage.write(lease, Lease("", "another", time.time() + 600, "another machine", 1, "1").to_bytes())
    thread = threading.Thread(target=job.extract)
    thread.start()
    others = set(range(job.plan.shards)) - left

    def held() -> set[str]:
        return set(storage.list_keys(f"{SEGMENT}/leases")) - {lease}

    deadline = time.monotonic() + 60
    # A shard's lease goes after its record is there.
    while (not recorded(tmp_path / "c") >= others or held()) and time.monotonic() < deadline:
        time.sleep(0.05)
    done, still, alive = recorded(tmp_path / "c"), held(), thread.is_alive()
    storage.delete(lease)
    thread.join(60)
    assert done == others and alive and not still and not thread.is_alive()
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_a_group_and_one_a_finisher_are_in_memory(
    make: Callable[[str], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make("c")
    hire(monkeypatch, Crew(readers=2, encoders=2, finishers=2, begun=3))
    there, made = blocks_while_writing_stands_still(job, TOGETHER + 2, monkeypatch)
    assert there == made == TOGETHER + 2 < job.plan.shards
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_a_failure_in_the_middle_of_a_group_ends_the_run(
    make: Callable[[str], Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make("c")
    hire(monkeypatch, MANY)
    real, calls = SegmentWriter.write_files, []

    def fails(self: SegmentWriter, files: dict[str, bytes]) -> Any:
        calls.append(files)
        if len(calls) == 2:
            raise JobError("no space left")
        return real(self, files)

    with monkeypatch.context() as patch, pytest.raises(JobError, match="no space left"):
        patch.setattr(SegmentWriter, "write_files", fails)
        job.extract()
    assert not list((tmp_path / "c" / SEGMENT).glob("leases/*"))
    Job(job.manifest, tmp_path / "c", job.request).extract()
    assert contents(tmp_path / "c") == contents(tmp_path / "whole")


def test_recordings_without_a_frame_fill_a_shard_alone(make: Callable[[str], Job], tmp_path: Path) -> None:
    job = make("c")
    rows = manifest.absolute(manifest.read(job.manifest)[:2], job.manifest)
    short = [row.model_copy(update={"id": f"short{i}", "duration": 0.0001}) for i, row in enumerate(rows)]
    manifest.write(tmp_path / "short.jsonl", short)
    done = Job(tmp_path / "short.jsonl", tmp_path / "c", job.request).extract()
    assert done is not None and done.shards == 1 and [q.id for q in done.quarantined] == ["short0", "short1"]


def test_a_task_of_a_cluster_is_a_group(make: Callable[[str], Job], monkeypatch: pytest.MonkeyPatch) -> None:
    job = make("c")
    tasks: list[list[int]] = []

    def run_tasks(function: Any, arguments: Sequence[Any], client: Any, **options: Any) -> None:
        for number, (_, shards, _) in enumerate(arguments):
            tasks.append(shards)
            options["on_result"](number, Done(shards=len(shards)))
        assert options["labels"] == ["000001", "000003", "000008"]

    monkeypatch.setattr(cluster_job, "run_tasks", run_tasks)
    cluster = ClusterJob(job.manifest, job.storage.root, job.request, None)  # type: ignore[attr-defined]
    assert cluster._run([1, 2, 3, 4, 5, 8], False).shards == 6
    assert tasks == [[1, 2], [3, 4, 5], [8]]
