"""What a cache's size costs: opening, an epoch's order, adding to it, planning, files.

The caches are real but for the codes: `init` calibrates a real model, a segment of so many utterances is
planned, entered into a ledger, indexed and sealed by the library's own code, and only its shards are not there.
Adding is a real extraction of a thousand recordings.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from featcache import layout
from featcache.codec import Codec
from featcache.console import table_console
from featcache.job import Job, Request
from featcache.ledger import FileProof, ShardRecord, from_bytes, to_bytes
from featcache.manifest import Row, write
from featcache.plan import Plan, make_plan
from featcache.spec import CacheSpec
from featcache.storage import LocalStorage
from featcache.store import Cache
from featcache.upstreams import Upstream, UpstreamConfig, load
from featcache.writer import SegmentWriter
from fusion.data import plan_epoch
from pipelines.bench.machine import stamp

SEGMENT = layout.segment_name(0)
# Lengths as in read speech: half of them below 12 s, none beyond the 30 s of one window.
MEDIAN_SECONDS, SPREAD = 12.0, 0.5
ADDED = 1000
ADDED_SECONDS = 0.2
BATCH_SECONDS = 60
messages = Console(stderr=True)


@dataclass(frozen=True)
class Size:
    """One size of the table; the keys are those of the JSON."""

    utterances: int
    open_s: float
    open_rss_mb: float
    order_s: float
    append_s: float
    plan_s: float
    files: int


def measure(sizes: Sequence[int], upstream_id: str) -> dict[str, Any]:
    """`rows[]`, one for each number of utterances, and `files_per_hour` at the largest."""
    rows: list[Size] = []
    hours = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        upstream = load(UpstreamConfig(id=upstream_id))
        manifests = [_recordings(folder / f"added-{i}", i) for i in range(2)]
        start = Job(manifests[0], folder / "start", Request(upstream=upstream.config, calibration_seconds=30))
        start.use(upstream)
        start.init()
        for size in sizes:
            place = folder / f"cache-{size}"
            shutil.copytree(folder / "start", place)
            plan_s, hours = _synthesise(place, size)
            open_s, rss = min(_fresh_info(place) for _ in range(2))
            order_s = _timed(lambda place=place: _order(Cache.open(place)))  # type: ignore[misc]
            files = _files(Cache.open(place))
            append_s = min(_append(place, manifest, upstream) for manifest in manifests)
            rows.append(Size(size, open_s, rss, order_s, append_s, plan_s, files))
            messages.print(f"{size:,}: {vars(rows[-1])}")
            shutil.rmtree(place)
    return {
        "rows": [vars(row) for row in rows],
        "upstream": upstream_id,
        "hours": round(hours, 1),
        "files_per_hour": round(rows[-1].files / hours, 2),
        **stamp(),
    }


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return round(time.perf_counter() - began, 3)


def _recordings(folder: Path, number: int) -> Path:
    """A manifest of `ADDED` short recordings of noise."""
    import soundfile

    folder.mkdir()
    rng = np.random.default_rng(number)
    rows = []
    for i in range(ADDED):
        soundfile.write(folder / f"{i}.wav", rng.uniform(-0.3, 0.3, int(16_000 * ADDED_SECONDS)), 16_000, "PCM_16")
        rows.append(Row(id=f"added/{number}/{i}", audio_filepath=f"{i}.wav", duration=ADDED_SECONDS))
    write(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


class _Records(Mapping[int, ShardRecord]):
    """Records of shards that nobody has written, made when they are asked for: all at once fill the memory.

    `spent` are the seconds that making them took.
    """

    def __init__(self, plan: Plan, codec: Codec) -> None:
        self._plan, self._codec = plan, codec
        self.spent = 0.0

    def __len__(self) -> int:
        return self._plan.shards

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __contains__(self, shard: object) -> bool:
        return isinstance(shard, int) and 0 <= shard < len(self)

    def __getitem__(self, shard: int) -> ShardRecord:
        began = time.perf_counter()
        span = self._plan.shard_rows(shard)
        digests = hashlib.shake_128(str(shard).encode()).hexdigest(32 * len(span))
        prefix = f"{SEGMENT}/"
        record = ShardRecord(
            shard=shard,
            files={
                layout.shard_key(SEGMENT, plane, shard).removeprefix(prefix): FileProof(bytes=1, sha256="0" * 64)
                for plane in self._codec.planes
            },
            first=span.start,
            audio=tuple(digests[64 * i : 64 * (i + 1)] for i in range(len(span))),
        )
        self.spent += time.perf_counter() - began
        return record


class _Writer(SegmentWriter):
    """A writer whose shards count as done."""

    @cached_property
    def made(self) -> _Records:
        return _Records(self.plan, self.codec)

    def records(self) -> Any:
        return self.made


def _synthesise(place: Path, utterances: int) -> tuple[float, float]:
    """Add a sealed segment without shards; returns the seconds of planning and ledger, and the hours of audio."""
    cache = Cache.open(place)
    spec: CacheSpec = cache.spec
    rng = np.random.default_rng(utterances)
    seconds = np.clip(rng.lognormal(np.log(MEDIAN_SECONDS), SPREAD, utterances), 1, 30)
    samples = (seconds * 16_000).astype(np.int64)
    ids = [f"speaker{i // 100}/{i}" for i in range(utterances)]
    labels = {"speaker": [f"speaker{i // 100}" for i in range(utterances)]}
    spent = 0.0

    def timed(work: Callable[[], Any]) -> Any:
        nonlocal spent
        began = time.perf_counter()
        found = work()
        spent += time.perf_counter() - began
        return found

    plan = timed(lambda: make_plan(ids, samples, spec, max(p.bytes_per_frame for p in cache.codec.planes)))
    timed(lambda: plan.passes)
    writer = _Writer(cache.storage, spec, cache.codec, SEGMENT, plan)
    timed(writer.begin)
    timed(lambda: _write_and_read(writer.made))
    timed(lambda: writer.seal(labels))
    return round(spent - writer.made.spent, 3), plan.seconds / 3600


def _write_and_read(records: Mapping[int, ShardRecord]) -> None:
    for record in records.values():
        from_bytes(ShardRecord, to_bytes(record), "record", "")


# What the kernel says of a child counts the memory of the process that began it: only the child knows its own.
_INFO = """
import atexit, sys
from pathlib import Path
def peak():
    status = Path("/proc/self/status").read_text()
    print(status.split("VmHWM:")[1].split()[0], file=sys.stderr)
atexit.register(peak)
from featcache.cli import main
main()
"""


def _fresh_info(place: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of `featcache info` in a process of its own, start of Python included."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _INFO, "info", str(place)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    took = time.perf_counter() - began
    assert "utterances" in done.stdout
    return round(took, 3), round(int(done.stderr.split()[-1]) * 1024 / 1e6, 1)


def _order(cache: Cache) -> None:
    plan_epoch(cache.lengths, int(BATCH_SECONDS * cache.frame_rate), seed=1, epoch=0)


def _files(cache: Cache) -> int:
    """Files of the sealed cache, with the shards and the records that were left out."""
    present = sum(1 for _ in LocalStorage(cache.path).list_keys())
    shards = cache.segments[0].seal.shards
    return present + shards * (len(cache.codec.planes) + 1)


def _append(place: Path, manifest: Path, upstream: Upstream) -> float:
    """Seconds of extracting the recordings into the cache, the model being loaded already."""

    def work() -> None:
        job = Job(manifest, place, Request())
        job.use(upstream)
        job.extract()

    before = len(Cache.open(place))
    took = _timed(work)
    if len(Cache.open(place)) != before + ADDED:
        raise RuntimeError(f"{place} did not grow by {ADDED} utterances")
    return took


def print_table(result: dict[str, Any]) -> None:
    """The rows for people, on standard output."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=f"{result['machine']}; {result['files_per_hour']} files per hour")
    for column in result["rows"][0]:
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(*(f"{value:,}" for value in row.values()))
    table_console().print(table)
