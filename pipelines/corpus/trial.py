"""A segment written in memory by the library's own writer: its objects, its bytes and the requests that it takes.

Only the shards' codes are left out, which a model would have to make.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import zarr.abc.store

from featcache import contents, layout
from featcache.block import ShardBlock
from featcache.codec import Codec
from featcache.errors import UsageError
from featcache.index import LazyTexts
from featcache.lease import Leases
from featcache.plan import make_plan
from featcache.shards import finish, leased
from featcache.spec import CacheSpec
from featcache.storage import Address, Storage
from featcache.store import Cache
from featcache.writer import SegmentWriter, create_cache

SEGMENT = layout.segment_name(0)
# Utterances of a trial at most: of a larger segment, more of the same is assumed.
UTTERANCES = 20_000
KINDS = SHARDS, LEDGER, LEASES, INDEX, LABELS, SEGMENT_FILES, CACHE_FILES = (
    "shards", "ledger", "leases", "index", "labels", "segment", "cache",
)  # fmt: skip
# Files that name every object of a kind.
_PROOFS = {f"{SEGMENT}/seal.json": INDEX, f"{SEGMENT}/labels/{layout.LABELS_PROOF}": LABELS}


def kind_of(key: str) -> str:
    """Which of `KINDS` the object of a key is."""
    if contents.is_shard(key):
        return SHARDS
    parts = key.split("/")
    if parts[0] != layout.SEGMENTS:
        return CACHE_FILES
    return parts[2] if len(parts) > 3 and parts[2] in KINDS else SEGMENT_FILES


class CountedStorage(Storage):
    """Bytes by key in memory. Counts what S3 would be asked, one request a call, by (verb, kind of the key).

    `listed` counts the keys of listings by kind: a listing is a request for every thousand of them.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: Counter[tuple[str, str]] = Counter()
        self.listed: Counter[str] = Counter()

    def __str__(self) -> str:
        return "memory"

    def _ask(self, verb: str, key: str) -> None:
        self.asked[verb, kind_of(key)] += 1

    def zarr(self) -> zarr.abc.store.Store:
        raise UsageError("a trial is not read")

    @property
    def address(self) -> Address:
        raise UsageError("a trial cannot be opened again")

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def read(self, key: str) -> bytes | None:
        self._ask("GET", key)
        return self.files.get(key)

    def size(self, key: str) -> int | None:
        self._ask("HEAD", key)
        return len(self.files[key]) if key in self.files else None

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        self._ask("LIST", f"{SEGMENT}/")
        found = sorted(key for key in self.files if not prefix or key.startswith(f"{prefix}/"))
        self.listed.update(map(kind_of, found))
        return iter(found)

    def folders(self, prefix: str) -> list[str]:
        self._ask("LIST", f"{SEGMENT}/")
        below = f"{prefix}/" if prefix else ""
        rest = (key.removeprefix(below) for key in self.files if key.startswith(below))
        return sorted({name.partition("/")[0] for name in rest if "/" in name})

    def write(self, key: str, data: bytes | memoryview) -> None:
        self._ask("PUT", key)
        self.files[key] = bytes(data)

    def create(self, key: str, data: bytes) -> bool:
        self._ask("PUT", key)
        return self.files.setdefault(key, data) is data

    def delete(self, key: str) -> None:
        self._ask("DELETE", key)
        self.files.pop(key, None)

    def delete_folder(self, prefix: str) -> None:
        for key in list(self.list_keys(prefix)):
            self.delete(key)

    def move_folder(self, source: str, target: str) -> None:
        raise UsageError("a trial is not moved")

    def delete_temporary(self, prefix: str) -> None:
        """Nothing, as on S3."""

    def free_bytes(self) -> int:
        return sys.maxsize


class _Writer(SegmentWriter):
    """Writes a byte where the codes of a shard would be."""

    def render(self, block: ShardBlock, shard: int, each: layout.Each = map) -> layout.LargeFiles:
        keys = (layout.shard_key(self.name, plane, shard) for plane in self.codec.planes)
        return {key.removeprefix(f"{self.name}/"): b"\0" for key in keys}


class _Ids(LazyTexts):
    """The ids of a cache, and once they are used up the same with a number."""

    def __init__(self, cache: Cache, count: int) -> None:
        self._cache, self._count = cache, count

    def __len__(self) -> int:
        return self._count

    def _text(self, position: int) -> str:
        number, at = divmod(position, len(self._cache))
        return f"{self._cache.ids[at]}/{number}" if number else self._cache.ids[at]


@dataclass(frozen=True)
class Written:
    """What a segment, or several, take. Counts and bytes are by kind, of all but the codes of shards.

    Attributes:
        requests: by verb: PUT, GET, HEAD, LIST and DELETE. A PUT is one, whatever the size.
    """

    utterances: int
    rows: int
    frames: int
    shards: int
    shard_frames: int
    objects: dict[str, int]
    bytes: dict[str, int]
    requests: dict[str, int]

    def times(self, count: int) -> Written:
        """As many equal segments of one cache."""

        def many(found: Mapping[str, int]) -> dict[str, int]:
            return {name: number * (1 if name == CACHE_FILES else count) for name, number in found.items()}

        return Written(
            self.utterances * count, self.rows * count, self.frames * count, self.shards * count, self.shard_frames,
            many(self.objects), many(self.bytes), many(self.requests),
        )  # fmt: skip


def write(cache: Cache, spec: CacheSpec, codec: Codec, samples: np.ndarray, bytes_per_frame: int) -> Written:
    """What a segment of utterances of these lengths takes; ids and labels are the cache's, again and again.

    Args:
        spec: of the cache that would be made.
        codec: its planes and its calibration.
        samples: `(utterances,)` int64, at 16 kHz.
        bytes_per_frame: of the codec at the spec's taps and channels, before packing.
    """
    whole = make_plan(_Ids(cache, len(samples)), samples, spec, bytes_per_frame)
    count = min(len(samples), UTTERANCES)
    plan = whole
    if count < len(samples):
        plan = make_plan(_Ids(cache, count), samples[:count], spec, bytes_per_frame)
    storage = CountedStorage()
    create_cache(storage, spec, codec.calibration)
    writer = _Writer(storage, spec, codec, SEGMENT, plan)
    nothing = ShardBlock((), spec.layout, 0)
    leases = Leases(storage)
    try:
        writer.begin()
        for shard in leased(writer, leases, range(plan.shards)):
            finish(writer, leases, shard, nothing, _digests(shard, len(plan.shard_rows(shard))), ())
        leases.acquire(f"{SEGMENT}/leases/seal")
        labels = {name: cache.labels(name) for name in cache.label_names}
        writer.seal({name: [found[i % len(found)] for i in range(count)] for name, found in labels.items()})
    finally:
        leases.close()
    return _scaled(storage, whole.rows / plan.rows if plan.rows else 1.0, Written(
        len(samples), whole.rows, whole.total_frames, whole.shards, whole.shard_frames, {}, {}, {},
    ))  # fmt: skip


def _digests(shard: int, rows: int) -> Sequence[str]:
    """Stand for the SHA-256 of a shard's audio, and are as hard to compress."""
    text = hashlib.shake_128(str(shard).encode()).hexdigest(32 * rows)
    return [text[64 * i : 64 * (i + 1)] for i in range(rows)]


def _scaled(storage: CountedStorage, scale: float, whole: Written) -> Written:
    """The counts of a trial for a segment that is `scale` times as long."""
    before = Counter(map(kind_of, storage.files))
    after, size = Counter[str](), Counter[str]()
    arrays = set()
    for key, data in storage.files.items():
        kind = kind_of(key)
        if kind == LEDGER:
            size[kind] += round(len(data) * scale)
        elif kind in (INDEX, LABELS) and "/c/" in key:
            size[kind] += round(len(data) * scale)
            arrays.add((kind, key.partition("/c/")[0]))
        elif kind != SHARDS:
            after[kind] += 1
            size[kind] += len(data)
    for kind, array in arrays:
        after[kind] += _chunks(storage, array, scale)
    for key, kind in _PROOFS.items():
        size[kind_of(key)] += round(len(storage.files[key]) * (after[kind] / before[kind] - 1))
    shards = before[LEDGER]
    after[LEDGER] = whole.shards
    after[SHARDS] = before[SHARDS] // max(shards, 1) * whole.shards
    # Leases are gone at the end: one a shard.
    growth = {kind: after[kind] / before[kind] for kind in before} | {LEASES: whole.shards / max(shards, 1)}
    requests: Counter[str] = Counter()
    for (verb, kind), count in storage.asked.items():
        requests[verb] += round(count * growth.get(kind, 1.0))
    requests["LIST"] += int(sum(count * growth.get(kind, 1.0) for kind, count in storage.listed.items())) // 1000
    return Written(
        whole.utterances, whole.rows, whole.frames, whole.shards, whole.shard_frames,
        dict(after), dict(size), dict(requests),
    )  # fmt: skip


def _chunks(storage: CountedStorage, array: str, scale: float) -> int:
    """Objects that hold an array which is `scale` times as long as in the trial."""
    length = json.loads(storage.files[f"{array}/zarr.json"])["shape"][0]
    return max(1, -(-round(length * scale) // layout.INDEX_CHUNK))
