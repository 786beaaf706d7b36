"""SIGKILL at any time; then the same command again, and every file compared with an undisturbed run's."""

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

from featcache.job import Job, Request
from featcache.ledger import ShardRecord
from featcache.storage import LocalStorage
from featcache.upstreams import Upstream
from featcache.writer import SegmentWriter

# One kill in so many strikes right between two steps of the writer, the others at a uniform time.
TARGETED = 4


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
    seconds = _time_of(context, manifest, folder / "timed", request)
    killed = identical = 0
    failures: list[str] = []
    while killed < kills:
        place = folder / "killed"
        targeted = killed % TARGETED == TARGETED - 1
        strike = f"{chance.choice(('before', 'after'))} {chance.randrange(shards)}" if targeted else ""
        wait = chance.random() * seconds
        if not _killed(context, manifest, place, request, strike, wait):
            # It had finished: this machine was faster than it was when it was timed.
            seconds *= 0.9
            shutil.rmtree(place, ignore_errors=True)
            continue
        killed += 1
        job = Job(manifest, place, request)
        job.use(model)
        try:
            job.extract()
            found = contents(place)
        except Exception as error:
            failures.append(f"{strike or f'{wait:.2f} s'}: {error}")
        else:
            wrong = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
            identical += not wrong
            failures += [f"{strike or f'{wait:.2f} s'}: {key} differs" for key in wrong[:1]]
        shutil.rmtree(place, ignore_errors=True)
    return {"kills": killed, "resumed_identical": identical, "kill_failures": failures}


def contents(place: Path) -> dict[str, bytes]:
    """Every file of a cache but its log, and what half-written files there are."""
    files = {key: (place / key).read_bytes() for key in LocalStorage(place).list_keys() if not key.startswith("log/")}
    return files | {path.relative_to(place).as_posix(): b"" for path in place.rglob(".tmp-*")}


def _time_of(context: Any, manifest: Path, place: Path, request: Request) -> float:
    """Seconds that an undisturbed job takes in a child, from the start of its work."""
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, manifest, place, request, ""))
    process.start()
    here.recv()
    began = time.monotonic()
    process.join()
    seconds = time.monotonic() - began
    shutil.rmtree(place)
    return seconds


def _killed(context: Any, manifest: Path, place: Path, request: Request, strike: str, wait: float) -> bool:
    """Whether the job was killed before it ended."""
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, manifest, place, request, strike))
    process.start()
    here.recv()
    if not strike:
        process.join(wait)
        process.kill()
    process.join()
    return bool(process.exitcode == -signal.SIGKILL)


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
