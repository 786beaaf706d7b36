"""Pure planning: which frames go where, in which batches, and what it will cost.

A plan follows from the rows (ids, lengths), the cache's description and nothing else, so that any number
of processes on any machine arrive at the same one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np

from featcache.batches import LAUNCHED_PRICES, PRICES, batch_ends
from featcache.digest import canonical_json, digest, digest_arrays
from featcache.errors import UsageError
from featcache.geometry import SAMPLE_RATE, Geometry
from featcache.spec import ROWS_BATCHED, CacheSpec
from featcache.windows import windows

# Ids that are digested at a time.
_BLOCK = 1 << 16
# A group of shards holds so many full batches: enough rows of like length for full ones with little padding.
_GROUP_BATCHES = 8
# All shards of a group are in memory at once. Of their largest plane there is no more than this, in bytes.
_GROUP_BYTES = 4 << 30


@dataclass(frozen=True)
class Plan:
    """Rows in shards. All arrays are in manifest order; a row is one window of one utterance.

    Attributes:
        ids: the utterances' ids.
        samples: `(utterances,)` int64, length at 16 kHz.
        first_row: `(utterances + 1,)` int64; utterance u owns rows `first_row[u] .. first_row[u + 1]`.
        start, stop, keep, frames: `(rows,)` int64, the fields of `Window`.
        shard: `(rows,)` int64, the shard of each row.
        position: `(rows,)` int64, the first frame of each row in the segment's arrays.
        shard_frames: frames of one shard.
        can_pad: whether the rows of a batch may be of unequal length.
        batch_samples: most samples of a batch of several rows, padding included.
        shards_together: batches are cut over so many consecutive shards, a group; see `shards_together`.
    """

    ids: Sequence[str]
    samples: np.ndarray
    first_row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    keep: np.ndarray
    frames: np.ndarray
    shard: np.ndarray
    position: np.ndarray
    shard_frames: int
    can_pad: bool
    batch_samples: int
    shards_together: int = 1

    @property
    def rows(self) -> int:
        return len(self.start)

    @property
    def shards(self) -> int:
        return int(self.shard[-1]) + 1 if self.rows else 0

    @property
    def seconds(self) -> float:
        return float(self.samples.sum()) / SAMPLE_RATE

    @property
    def total_frames(self) -> int:
        return int(self.frames.sum())

    @cached_property
    def utterance(self) -> np.ndarray:
        """`(rows,)` int64: the utterance that each row is a part of."""
        return np.repeat(np.arange(len(self.ids)), np.diff(self.first_row))

    @cached_property
    def digest(self) -> str:
        """What an unfinished segment remembers of its plan. Paths and labels are not in it."""
        arrays = {
            name: getattr(self, name) for name in ("samples", "first_row", "start", "frames", "shard", "position")
        }
        return digest(
            [
                _digest_of_texts(self.ids),
                digest_arrays(arrays),
                self.shard_frames,
                self.batch_samples,
                self.can_pad,
                # Plans of shards by themselves keep the digest that they had when there were no others.
                *([self.shards_together] if self.shards_together > 1 else []),
            ]
        )

    def shard_rows(self, shard: int) -> range:
        """The rows of a shard."""
        return range(*np.searchsorted(self.shard, [shard, shard + 1]).tolist())

    def rows_with_frames(self, shard: int) -> int:
        """How many rows of a shard go through the model."""
        span = self.shard_rows(shard)
        return int((self.frames[span.start : span.stop] > 0).sum())

    def model_seconds(self, rows: Sequence[int] | slice = slice(None)) -> float:
        """Seconds of audio that go through the model for some rows, or for all: windows overlap."""
        return float((self.stop[rows] - self.start[rows]).sum()) / SAMPLE_RATE

    def shard_seconds(self, shard: int) -> float:
        """`model_seconds` of one shard."""
        span = self.shard_rows(shard)
        return self.model_seconds(slice(span.start, span.stop))

    @property
    def groups(self) -> int:
        return -(-self.shards // self.shards_together)

    def group(self, shard: int) -> int:
        """The group that a shard is in."""
        return shard // self.shards_together

    def grouped(self, shards: Iterable[int]) -> list[list[int]]:
        """Some shards by group, each group's in order."""
        return [list(of_one) for _, of_one in groupby(sorted(shards), self.group)]

    def batches(self, group: int) -> Iterator[list[int]]:
        """The forward passes of a group of shards: rows of like length together, the longest first.

        Models that cannot pad get rows of equal length only. A batch holds at most `batch_samples`, padding
        included, or one row. See `featcache.batches`.
        """
        first_shard = group * self.shards_together
        span = range(*np.searchsorted(self.shard, [first_shard, first_shard + self.shards_together]).tolist())
        size = self.stop[span.start : span.stop] - self.start[span.start : span.stop]
        order = np.argsort(-size, kind="stable")
        order = order[self.frames[span.start : span.stop][order] > 0]
        rows, first = (order + span.start).tolist(), 0
        prices = LAUNCHED_PRICES if self.shards_together > 1 else PRICES
        for end in batch_ends(size[order], self.batch_samples, self.can_pad, prices).tolist():
            yield rows[first:end]
            first = end

    def batches_of(self, shards: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """The passes that give these shards of one group, whole, each with those of the shards that it has rows of.

        What a device gives for a row depends on the rows beside it, so those of other shards are in it too.
        """
        wanted = set(shards)
        for batch in self.batches(self.group(shards[0])):
            among = sorted(wanted.intersection(self.shard[batch].tolist()))
            if among:
                yield batch, among

    @cached_property
    def passes(self) -> tuple[int, float]:
        """How many forward passes there are, and the share of their samples that is padding."""
        size = self.stop - self.start
        count = real = padded = 0
        for group in range(self.groups):
            for batch in self.batches(group):
                count += 1
                real += int(size[batch].sum())
                padded += len(batch) * int(size[batch[0]])
        return count, 1 - real / padded if padded else 0.0


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) `of` so many: every `of`-th group of shards."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part that `2/8` names.

        Raises:
            UsageError: it names none.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UsageError(f"--part {text}: write I/N with I from 1 to N, as in --part 2/8")
        return cls(int(number), int(of))

    def holds(self, group: int) -> bool:
        return group % self.of == self.number - 1


def _digest_of_texts(texts: Sequence[str]) -> str:
    """`digest` of the list, without its JSON in one piece: ten million ids are 300 MB of it."""
    total = hashlib.sha256(b"[")
    for first in range(0, len(texts), _BLOCK):
        total.update((b"," if first else b"") + canonical_json(list(texts[first : first + _BLOCK]))[1:-1])
    total.update(b"]")
    return total.hexdigest()


def make_plan(ids: Sequence[str], samples: Sequence[int] | np.ndarray, spec: CacheSpec, bytes_per_frame: int) -> Plan:
    """The plan of these utterances, in this order.

    Args:
        samples: length of each utterance at 16 kHz.
        bytes_per_frame: size of one frame in the codec's largest plane, which decides a shard's length.
    """
    lengths = np.asarray(samples, np.int64)
    first_row, columns = _cut(lengths, spec.geometry)
    frames = columns["frames"]
    shard_frames = spec.layout.frames_per_shard(bytes_per_frame, int(frames.sum()))
    longest = int(frames.max(initial=0))
    if longest > shard_frames:
        shard_frames = -(-longest // spec.layout.chunk_frames) * spec.layout.chunk_frames
    shard, position = _pack(frames, shard_frames)
    return Plan(
        ids=ids,
        samples=lengths,
        first_row=first_row,
        **columns,
        shard=shard,
        position=position,
        shard_frames=shard_frames,
        can_pad=spec.can_pad,
        batch_samples=int(spec.layout.batch_seconds * SAMPLE_RATE),
        shards_together=shards_together(spec, shard_frames, bytes_per_frame),
    )


def shards_together(spec: CacheSpec, shard_frames: int, bytes_per_frame: int) -> int:
    """Over how many shards batches are cut: one where rows run alone, else as many as hold some full batches.

    At least two where rows run together: `Plan.batches` knows by it that each pass is launched as a whole.
    """
    if spec.identity.get("rows") != ROWS_BATCHED:
        return 1
    frames = _GROUP_BATCHES * spec.layout.batch_seconds * spec.geometry.frame_rate
    affordable = _GROUP_BYTES // (shard_frames * bytes_per_frame)
    return max(2, min(math.ceil(frames / shard_frames), affordable))


def _cut(samples: np.ndarray, geometry: Geometry) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`first_row` and the fields of `Window` as columns. Only recordings beyond the window are cut one by one."""
    size = geometry.window_samples
    long = np.flatnonzero(samples > size) if size is not None else np.zeros(0, np.int64)
    pieces = {int(u): windows(int(samples[u]), geometry) for u in long}
    counts = np.ones(len(samples), np.int64)
    counts[long] = [len(cut) for cut in pieces.values()]
    first_row = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    zeros = np.zeros(len(samples), np.int64)
    whole = {"start": zeros, "stop": samples, "keep": zeros, "frames": geometry.frames_of(samples)}
    columns = {name: np.repeat(column, counts) for name, column in whole.items()}
    for u, cut in pieces.items():
        for name, column in columns.items():
            column[first_row[u] : first_row[u + 1]] = [getattr(window, name) for window in cut]
    return first_row, columns


def _pack(frames: np.ndarray, shard_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Next fit in order: a row that does not fit the rest of a shard begins the next one."""
    shard = np.empty(len(frames), np.int64)
    position = np.empty(len(frames), np.int64)
    end_of = np.cumsum(frames)
    current = first = 0
    while first < len(frames):
        before = int(end_of[first - 1]) if first else 0
        end = int(np.searchsorted(end_of, before + shard_frames, side="right"))
        shard[first:end] = current
        position[first:end] = end_of[first:end] - frames[first:end] + (current * shard_frames - before)
        current, first = current + 1, end
    return shard, position
