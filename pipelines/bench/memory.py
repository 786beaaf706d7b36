"""Does memory stay flat? Two long jobs in a process of their own, whose size is looked at all the while.

One extracts very many short utterances, parts of real recordings; the other a recording of hours, real speech
again and again, in windows. Either way memory should depend on a batch and a shard, not on how much there is.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from featcache.console import table_console
from featcache.errors import JobError, UsageError
from featcache.job import Job, Request
from featcache.manifest import Row, absolute, read, write
from featcache.reading import row_samples
from featcache.spec import Layout
from featcache.store import Cache
from featcache.upstreams import UpstreamConfig
from featcache.verify import verify
from pipelines.bench.faults.inputs import repeat

PART_SECONDS = 0.6
SAMPLE_SECONDS = 0.2
# The first of the samples, in which pools start and buffers grow to their size.
WARM_UP = 0.25
# Growth after it that is no leak: what an allocator keeps in pieces.
ALLOWED_MB = 32.0
# A job that ends sooner is all warm-up: its growth is printed, not judged.
JUDGED_SECONDS = 20.0
# Recordings that the long one is made of.
LONG_FROM = 40


def measure(manifest: Path, upstream: str, utterances: int, long_seconds: float) -> dict[str, Any]:
    """Both jobs; `failures` says what grew or came out wrong. MB are 1,000,000 bytes.

    Raises:
        UsageError: the manifest's recordings are not enough for so many parts.
        JobError: a job failed.
    """
    rows = read(manifest)
    usable = [row for row in rows if row.duration >= PART_SECONDS]
    with tempfile.TemporaryDirectory(prefix="featcache-memory-") as name:
        folder = Path(name)
        found: dict[str, Any] = {"upstream": upstream}
        failures: list[str] = []
        jobs = {
            "many": parts(rows, manifest, utterances),
            "long": [repeat(usable[:LONG_FROM], manifest, folder / "long.flac", long_seconds)],
        }
        for kind, chosen in jobs.items():
            path = folder / f"{kind}.jsonl"
            write(path, chosen)
            found[kind] = _job(path, folder / kind, upstream)
            failures += [f"{kind}: {what}" for what in found[kind].pop("failures")]
    return {**found, "failures": failures}


def parts(rows: Sequence[Row], manifest: Path, utterances: int) -> list[Row]:
    """So many parts of `PART_SECONDS` of recordings, by offset; from the start again where they do not suffice.

    Raises:
        UsageError: no recording is long enough.
    """
    cut = [
        (row, PART_SECONDS * number)
        for row in absolute(rows, manifest)
        for number in range(int(row.duration / PART_SECONDS))
    ]
    if not cut:
        raise UsageError(f"{manifest} has no recording of {PART_SECONDS:g} s: give one of real speech")
    return [
        Row(id=f"{number:06d}", audio_filepath=row.audio_filepath, offset=offset, duration=PART_SECONDS)
        for number, (row, offset) in zip(range(utterances), itertools.cycle(cut), strict=False)
    ]


def _job(manifest: Path, place: Path, upstream: str) -> dict[str, Any]:
    """One job in a new process: how its size went, and whether its cache is whole."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(there, manifest, place, upstream))
    process.start()
    there.close()
    try:
        samples: list[tuple[float, int]] = here.recv()
    except EOFError:
        samples = []
    process.join()
    if process.exitcode or not samples:
        raise JobError(f"the job over {manifest.name} ended with status {process.exitcode}: its message is above")
    rows, cache = read(manifest), Cache.open(place)
    expected = [cache.spec.geometry.frames(row_samples(row)) for row in rows]
    course = flatness(np.array(samples))
    failures = [] if verify(place).whole else ["the cache is not whole"]
    if cache.lengths.tolist() != expected:
        failures.append("frames are not as many as the recordings' lengths say")
    if grew(course):
        failures.append(f"memory grew by {course['grown_mb']:.0f} MB after the start")
    return {
        "utterances": len(rows),
        "audio_seconds": round(sum(row.duration for row in rows), 1),
        "frames": int(cache.lengths.sum()),
        "shards": sum(segment.seal.shards for segment in cache.segments),
        **course,
        "failures": failures,
    }


def flatness(samples: np.ndarray) -> dict[str, float]:
    """The course of a process's size.

    Args:
        samples: `(samples, 2)` float64, seconds since the start of extraction and bytes in memory.

    Returns:
        `peak_mb`; after `WARM_UP` the mean, the slope in MB a minute of a line through all samples (least squares),
        and how much that line rises by the end.
    """
    seconds, size = samples[:, 0], samples[:, 1] / 1e6
    after = seconds >= seconds[0] + WARM_UP * (seconds[-1] - seconds[0])
    slope, _ = np.polyfit(seconds[after], size[after], 1) if after.sum() > 1 else (0.0, 0.0)
    return {
        "seconds": round(float(seconds[-1] - seconds[0]), 1),
        "samples": len(samples),
        "peak_mb": round(float(size.max()), 1),
        "after_warm_up_mb": round(float(size[after].mean()), 1),
        "slope_mb_per_minute": round(float(60 * slope), 2),
        "grown_mb": round(float(slope * np.ptp(seconds[after])), 1),
    }


def grew(course: Mapping[str, float]) -> bool:
    """Whether a course of `flatness` is one of memory that leaks."""
    return course["seconds"] >= JUDGED_SECONDS and course["grown_mb"] > ALLOWED_MB


def _work(results: Connection, manifest: Path, place: Path, upstream: str) -> None:
    """The job in a child, and a thread that looks at its size."""
    request = Request(UpstreamConfig(id=upstream), "int8", layout=Layout(shard_frames=4096), calibration_seconds=30)
    job = Job(manifest, place, request)
    job.init()
    samples: list[tuple[float, int]] = []
    ended = threading.Event()

    def look() -> None:
        while True:
            samples.append((time.monotonic(), resident()))
            if ended.wait(SAMPLE_SECONDS):
                return

    watcher = threading.Thread(target=look, name="memory")
    watcher.start()
    try:
        job.extract()
    finally:
        ended.set()
        watcher.join()
    results.send(samples)


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def print_table(found: dict[str, Any]) -> None:
    """One row a job, on standard output."""
    table = Table(
        "job", "utterances", "hours", "peak MB", "mean MB", "MB a minute", "grown MB", box=None, header_style="bold"
    )  # fmt: skip
    for kind in ("many", "long"):
        row = found[kind]
        table.add_row(
            kind, f"{row['utterances']:,}", f"{row['audio_seconds'] / 3600:.2f}", f"{row['peak_mb']:.0f}",
            f"{row['after_warm_up_mb']:.0f}", f"{row['slope_mb_per_minute']:+.2f}", f"{row['grown_mb']:+.1f}",
        )  # fmt: skip
    table_console().print(table)
    for failure in found["failures"]:
        print(failure)
