"""Pure planning: which frames go where, in which batches, and what it will cost.

A plan follows from the rows (ids, lengths), the cache's description and nothing else, so that any number
of processes on any machine arrive at the same one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featcache.digest import digest, digest_arrays
from featcache.errors import UsageError
from featcache.geometry import Geometry
from featcache.spec import WINDOW_RULE, CacheSpec

SAMPLE_RATE = 16_000


@dataclass(frozen=True)
class Window:
    """A piece of an utterance that goes through the model in one forward pass.

    Samples `start .. stop` of the utterance go in; of the frames that come out, `frames` are kept from
    frame `keep` on.
    """

    start: int
    stop: int
    keep: int
    frames: int


def windows(samples: int, geometry: Geometry) -> list[Window]:
    """Cut an utterance to the model's window.

    Up to `geometry.window_samples` it is one window. Beyond, windows of that length start every
    `window - overlap` samples (overlap: 2 s) and each keeps its frames but for one second at an inner
    edge; the kept frames abut, so that the utterance has exactly `geometry.frames(samples)` of them.
    """
    size = geometry.window_samples
    cut = []
    start = 0
    while size is not None and start + size < samples:
        cut.append(_inner(start, size, geometry))
        start += _stride(size, geometry)
    return [*cut, _last(start, samples, geometry)]


def stream_windows(blocks: Iterable[np.ndarray], geometry: Geometry) -> Iterator[tuple[Window, np.ndarray]]:
    """The windows of `windows` with their samples, of an utterance that comes in blocks (samples,).

    No more than one window and one block are held.
    """
    size = geometry.window_samples
    held: list[np.ndarray] = []
    start = there = 0
    for block in blocks:
        held.append(block)
        there += len(block)
        while size is not None and start + size < there:
            samples = np.concatenate(held)
            yield _inner(start, size, geometry), samples[:size]
            start += _stride(size, geometry)
            held = [samples[_stride(size, geometry) :].copy()]
    samples = np.concatenate(held) if held else np.zeros(0, np.float32)
    yield _last(start, there, geometry), samples


def _margin(geometry: Geometry) -> int:
    """Frames at an inner edge that a window does not keep."""
    return -(-int(WINDOW_RULE["overlap_seconds"] * SAMPLE_RATE) // (2 * geometry.hop))


def _stride(size: int, geometry: Geometry) -> int:
    return size - 2 * _margin(geometry) * geometry.hop


def _inner(start: int, size: int, geometry: Geometry) -> Window:
    """A window behind which the utterance goes on."""
    margin = _margin(geometry)
    keep = margin if start else 0
    end = (start + _stride(size, geometry)) // geometry.hop + margin
    return Window(start, start + size, keep, end - start // geometry.hop - keep)


def _last(start: int, samples: int, geometry: Geometry) -> Window:
    keep = _margin(geometry) if start else 0
    return Window(start, samples, keep, geometry.frames(samples) - start // geometry.hop - keep)


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
                digest(list(self.ids)),
                digest_arrays(arrays),
                self.shard_frames,
                self.batch_samples,
                self.can_pad,
            ]
        )

    def shard_rows(self, shard: int) -> range:
        """The rows of a shard."""
        return range(*np.searchsorted(self.shard, [shard, shard + 1]).tolist())

    def batches(self, shard: int) -> Iterator[list[int]]:
        """The forward passes of a shard: rows of like length together, the longest first.

        Models that cannot pad get rows of equal length only. A batch holds at most `batch_samples`,
        padding included, or one row.
        """
        size = self.stop - self.start
        rows = sorted((r for r in self.shard_rows(shard) if self.frames[r] > 0), key=lambda r: (-int(size[r]), r))
        batch: list[int] = []
        for row in rows:
            full = batch and (len(batch) + 1) * int(size[batch[0]]) > self.batch_samples
            if batch and (full or (not self.can_pad and size[row] != size[batch[0]])):
                yield batch
                batch = []
            batch.append(row)
        if batch:
            yield batch

    def padding_waste(self) -> float:
        """The share of samples that padding adds to the forward passes."""
        size = self.stop - self.start
        real = padded = 0
        for shard in range(self.shards):
            for batch in self.batches(shard):
                real += int(size[batch].sum())
                padded += len(batch) * int(size[batch[0]])
        return 1 - real / padded if padded else 0.0


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) `of` so many: every `of`-th shard."""

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

    def holds(self, shard: int) -> bool:
        return shard % self.of == self.number - 1


def make_plan(ids: Sequence[str], samples: Sequence[int] | np.ndarray, spec: CacheSpec, bytes_per_frame: int) -> Plan:
    """The plan of these utterances, in this order.

    Args:
        samples: length of each utterance at 16 kHz.
        bytes_per_frame: size of one frame in the codec's largest plane, which decides a shard's length.
    """
    cut = [windows(int(n), spec.geometry) for n in samples]
    flat = [window for pieces in cut for window in pieces]
    columns = np.array([[w.start, w.stop, w.keep, w.frames] for w in flat], np.int64).reshape(-1, 4)
    frames = columns[:, 3]
    shard_frames = spec.layout.frames_per_shard(bytes_per_frame, int(frames.sum()))
    longest = int(frames.max(initial=0))
    if longest > shard_frames:
        shard_frames = -(-longest // spec.layout.chunk_frames) * spec.layout.chunk_frames
    shard, position = _pack(frames, shard_frames)
    return Plan(
        ids=ids,
        samples=np.asarray(samples, np.int64),
        first_row=np.concatenate([[0], np.cumsum([len(pieces) for pieces in cut], dtype=np.int64)]).astype(np.int64),
        start=columns[:, 0],
        stop=columns[:, 1],
        keep=columns[:, 2],
        frames=frames,
        shard=shard,
        position=position,
        shard_frames=shard_frames,
        can_pad=spec.can_pad,
        batch_samples=int(spec.layout.batch_seconds * SAMPLE_RATE),
    )


def _pack(frames: np.ndarray, shard_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Next fit in order: a row that does not fit the rest of a shard begins the next one."""
    shard = np.empty(len(frames), np.int64)
    position = np.empty(len(frames), np.int64)
    current = used = 0
    for row, size in enumerate(frames.tolist()):
        if used + size > shard_frames:
            current, used = current + 1, 0
        shard[row] = current
        position[row] = current * shard_frames + used
        used += size
    return shard, position


# Bytes of index, labels and ledger for one utterance, measured on the demo's cache.
OVERHEAD_PER_UTTERANCE = 150


def predicted_bytes(frames: int, utterances: int, spec: CacheSpec, bits_per_value: float) -> int:
    """Size of a segment of so many frames and utterances, from the calibration's bits per value."""
    values = frames * len(spec.taps) * spec.channels
    return int(values * bits_per_value / 8) + OVERHEAD_PER_UTTERANCE * utterances


@dataclass(frozen=True)
class ProfileSize:
    """What a manifest takes in one profile; `nmse` is the worst tap's, None where it was not measured."""

    profile: str
    bits_per_value: float
    bytes: int
    nmse: float | None


def profile_sizes(samples: Sequence[int], spec: CacheSpec) -> list[ProfileSize]:
    """A whole manifest in every profile that the calibration has tried; the cache's own comes first.

    Args:
        samples: length of each utterance at 16 kHz.
    """
    frames = sum(max(spec.geometry.frames(n), 0) for n in samples)
    own = spec.forecasts.get(spec.profile_text)
    tried = {spec.profile_text: (spec.bits_per_value, own.nmse if own else None)}
    for text, found in spec.forecasts.items():
        tried.setdefault(text, (found.bits_per_value, found.nmse))
    return [
        ProfileSize(text, bits, predicted_bytes(frames, len(samples), spec, bits), nmse)
        for text, (bits, nmse) in tried.items()
    ]
