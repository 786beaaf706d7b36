"""SIGKILL of an extraction straight to S3: nothing is half-visible, and the next one ends in the same objects."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from featcache import lease
from featcache.inspect import status
from featcache.job import Job, Request
from featcache.lease import Lease, Leases
from featcache.s3_storage import S3Storage
from featcache.spec import Layout
from featcache.storage import open_storage
from featcache.store import Cache
from featcache.upstreams import UpstreamConfig
from featcache.verify import verify
from tests.helpers import contents, make_speech
from tests.s3 import Bucket

MEL = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=128))
WRITES = ("write", "create")
# Seconds that a lease of the killed process of another machine lives.
TTL = 6.0


@dataclass(frozen=True)
class Strike:
    """The process kills itself before or after its n-th write to S3, counted from 0."""

    write: int
    before: bool


def counted(on_write: Callable[[int, bool], None]) -> dict[str, Any]:
    """The writing methods of S3Storage, calling back before (True) and after each write with its number."""
    number = -1

    def wrapped(real: Callable[..., Any], self: S3Storage, key: str, data: bytes) -> Any:
        nonlocal number
        number += 1
        this = number
        on_write(this, True)
        result = real(self, key, data)
        on_write(this, False)
        return result

    return {name: functools.partialmethod(functools.partial(wrapped, getattr(S3Storage, name))) for name in WRITES}


def work(
    started: Any, variables: dict[str, str], manifest: Path, url: str, strike: Strike | None, elsewhere: bool
) -> None:
    """An extraction in a process of its own; `elsewhere`: as if on another machine, where nobody sees it die."""
    os.environ.update(variables)
    if strike is not None:

        def on_write(number: int, before: bool) -> None:
            if (number, before) == (strike.write, strike.before):
                os.kill(os.getpid(), signal.SIGKILL)

        for name, method in counted(on_write).items():
            setattr(S3Storage, name, lambda self, key, data, method=method: method.func(self, key, data))
    if elsewhere:
        lease.machine = lambda: "another machine"
        lease.Leases.__init__ = functools.partialmethod(Leases.__init__, ttl=TTL)  # type: ignore[method-assign]
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    started.send(None)
    Job(manifest, url, MEL).extract()


def begin(manifest: Path, url: str, strike: Strike | None = None, elsewhere: bool = False) -> Any:
    """Starts `work`; returns the process once it is at work."""
    # Children fork from a server that has imported everything and runs no thread.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["featcache.job", "featcache.s3_storage", "obstore", "featcache.upstreams.mel"])
    here, there = context.Pipe()
    variables = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    process = context.Process(target=work, args=(there, variables, manifest, url, strike, elsewhere))
    process.start()
    there.close()
    here.recv()
    return process


def objects(bucket: Bucket, prefix: str) -> dict[str, bytes]:
    return {key: data for key, data in bucket.files(prefix).items() if not key.startswith("log/")}


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("speech"), 12)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, speech: Path) -> dict[str, bytes]:
    """What an undisturbed run writes to a disk."""
    place = tmp_path_factory.mktemp("reference") / "cache"
    Job(speech, place, MEL).extract()
    return contents(place)


def nothing_half_visible(url: str, bucket: Bucket, prefix: str) -> None:
    """What is there is no cache, or one whose recorded shards are whole and which knows whether it is complete."""
    if "zarr.json" not in objects(bucket, prefix):
        return
    report = verify(url)
    assert report.whole, report.problems
    sealed = "segments/000000/seal.json" in objects(bucket, prefix)
    assert Cache.open(url).complete == sealed == status(url)["complete"]


def test_killed_at_any_write_or_time_it_goes_on_to_the_same_objects(
    bucket: Bucket, speech: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    total = 0

    def count(number: int, before: bool) -> None:
        nonlocal total
        total = number + 1

    with monkeypatch.context() as patch:
        for name, method in counted(count).items():
            patch.setattr(S3Storage, name, lambda self, key, data, method=method: method.func(self, key, data))
        began = time.monotonic()
        Job(speech, f"{bucket.url}/whole", MEL).extract()
        seconds = time.monotonic() - began
    assert objects(bucket, "whole") == reference and total > 40
    strikes: list[Strike | None] = [Strike(int(share * total), share < 0.5) for share in (0.02, 0.3, 0.45, 0.55, 0.98)]
    chance = random.Random(7)
    finished = 0
    for number, strike in enumerate([*strikes, None, None]):
        prefix = f"killed{number}"
        url = f"{bucket.url}/{prefix}"
        process = begin(speech, url, strike)
        if strike is None:
            process.join(chance.uniform(0.1, 0.8) * seconds)
            process.kill()
        process.join()
        finished += process.exitcode == 0
        nothing_half_visible(url, bucket, prefix)
        Job(speech, url, MEL).extract()
        assert objects(bucket, prefix) == reference, f"after {strike}"
    # A kill by the clock may come too late on a machine that has become faster.
    assert finished <= 1


def test_the_lease_of_a_dead_process_of_another_machine_is_taken_over_when_it_expires(
    bucket: Bucket, speech: Path, reference: dict[str, bytes]
) -> None:
    url = f"{bucket.url}/taken"
    Job(speech, url, MEL).init()
    process = begin(speech, url, Strike(8, before=True), elsewhere=True)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    storage = open_storage(url)
    held = list(storage.list_keys("segments/000000/leases"))
    left = [Lease(key, **json.loads(storage.read(key) or b"")) for key in held]
    assert left and all(found.machine == "another machine" and found.expires > time.time() for found in left)
    # Whoever sees the store sees the work, as long as it may be going on.
    [segment] = status(url)["segments"]
    assert segment["in_work"] == len(left) and segment["shards_done"] < segment["shards"] and not segment["sealed"]
    Job(speech, url, MEL).extract()
    assert time.time() > max(found.expires for found in left), "taken over from what might have been alive"
    assert objects(bucket, "taken") == reference
    [segment] = status(url)["segments"]
    assert segment["sealed"] and segment["in_work"] == 0


def test_two_at_the_same_time_end_in_the_same_objects(
    bucket: Bucket, speech: Path, reference: dict[str, bytes]
) -> None:
    url = f"{bucket.url}/both"
    both = [begin(speech, url), begin(speech, url, elsewhere=True)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0] and objects(bucket, "both") == reference
