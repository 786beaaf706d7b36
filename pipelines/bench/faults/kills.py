"""SIGKILL at any time; then the same command again, and every file compared with an undisturbed run's.

Times are drawn evenly over the processor time of a job, not over its seconds: those depend on what else the
machine does, and a job that ran ahead of its kill would leave its last moments untried. Every other time is drawn
from those after the cache's first file alone: on few utterances most of a job is calibration, which writes nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from featcache import layout
from featcache.contents import is_beside
from featcache.job import Job, Request
from featcache.ledger import ShardRecord
from featcache.storage import LocalStorage
from featcache.upstreams import Upstream
from featcache.writer import SegmentWriter

# One kill in so many strikes right between two steps of the writer, the others at a uniform time.
TARGETED = 4
POLL_SECONDS = 0.001


def kill_and_resume(
    manifest: Path,
    reference: Path,
    request: Request,
    model: Upstream,
    kills: int,
    chance: random.Random,
    folder: Path,
) -> dict[str, Any]:
    """`kills` jobs from nothing, each killed once and finished by another process; counts and what differed."""
    if not kills:
        return {"kills": 0, "resumed_identical": 0, "kill_failures": []}
    # Children fork from a server that has imported everything and runs no thread.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["featcache.job", "featcache.upstreams.whisper_package", __name__])
    expected = contents(reference)
    shards = len(list(LocalStorage(reference).list_keys("segments/000000/ledger")))
    seconds, _, begun = _run(context, manifest, folder / "killed", request)
    shutil.rmtree(folder / "killed")
    spent, killed, identical, untouched = seconds, 0, 0, 0
    moments = dict.fromkeys(("any time", "before a record", "after a record"), 0)
    failures: list[str] = []
    while killed < kills:
        place = folder / "killed"
        targeted = killed % TARGETED == TARGETED - 1
        strike = f"{chance.choice(('before', 'after'))} {chance.randrange(shards)}" if targeted else ""
        at = None if targeted else chance.uniform(begun if killed % 2 else 0.0, seconds)
        taken, dead, _ = _run(context, manifest, place, request, strike, at)
        spent += taken
        if not dead:  # it took less than when it was timed; another time is drawn
            shutil.rmtree(place, ignore_errors=True)
            continue
        killed += 1
        moments[f"{strike.split()[0]} a record" if strike else "any time"] += 1
        name = strike or f"{at:.2f} of {seconds:.2f} s"
        done = set(contents(place))
        untouched += not done
        job = Job(manifest, place, request)
        job.use(model)
        try:
            job.extract()
            found = contents(place)
        except Exception as error:
            failures.append(f"{name}: {error}")
        else:
            wrong = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
            identical += not wrong
            failures += [f"{name}: {key} differs" for key in wrong[:1]]
        shutil.rmtree(place, ignore_errors=True)
    return {
        "kills": killed,
        "kill_moments": moments,
        "killed_before_the_first_file": untouched,
        "resumed_identical": identical,
        "kill_failures": failures,
        "cpu_seconds_of_killed": round(spent, 1),
    }


def contents(place: Path) -> dict[str, bytes]:
    """Every file of a cache, and what half-written files there are.

    Its log is no part of it, nor is a lease: a job killed between its last file and the release of its lease leaves a
    whole cache, and a lease that is void.
    """
    files = {key: (place / key).read_bytes() for key in LocalStorage(place).list_keys() if not is_beside(key)}
    return files | {path.relative_to(place).as_posix(): b"" for path in place.rglob(".tmp-*")}


def _run(
    context: Any, manifest: Path, place: Path, request: Request, strike: str = "", at: float | None = None
) -> tuple[float, bool, float]:
    """A job in a child: the processor time that it took, whether it was killed before it ended, and when its first
    file was there.

    Args:
        strike: see `_work`.
        at: kill it after this processor time.
    """
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, manifest, place, request, strike))
    process.start()
    here.recv()
    began = taken = _processor_time(process.pid)
    begun: float | None = None
    while process.is_alive():
        taken = _processor_time(process.pid) or taken
        if begun is None and (place / layout.CALIBRATION).exists():
            begun = taken - began
        if at is not None and taken - began >= at:
            process.kill()
        time.sleep(POLL_SECONDS)
    process.join()
    return taken - began, bool(process.exitcode == -signal.SIGKILL), begun or 0.0


def _processor_time(pid: int) -> float:
    """Seconds of processor time of another process; 0 where it is no more."""
    try:
        return time.clock_gettime((~pid << 3) | 2)  # Linux's clock of a process, as clock_getcpuclockid gives it
    except OSError:
        return 0.0


def _work(started: Connection, manifest: Path, place: Path, request: Request, strike: str) -> None:
    """The job in a child; `strike` kills it before or after the ledger record of a shard."""
    if strike:
        moment, shard = strike.split()
        enter = SegmentWriter.record

        def struck(self: SegmentWriter, record: ShardRecord) -> None:
            if moment == "after":
                enter(self, record)
            if record.shard == int(shard):
                os.kill(os.getpid(), signal.SIGKILL)
            enter(self, record)

        SegmentWriter.record = struck  # type: ignore[method-assign]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    started.send(None)
    Job(manifest, place, request).extract()
