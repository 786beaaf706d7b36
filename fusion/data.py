"""Batches from a cache: planned from lengths alone, read ahead by threads, decoded for the training device.

The threads that read decode too: on a CPU training leaves them a core (`distributed.use_threads`), and beside a GPU
there are some. Where there are few, the codes go to the GPU and are decoded there. On a CPU those threads also do
what of a step needs no weights (`Loader.prepared`).

The order of an epoch is a pure function of (lengths, batch size, seed, epoch), so a position in it is two
numbers. Threads, never processes: a forked child of a process that has read hangs in the reader.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.profiler import record_function

from fusion.distributed import cores
from fusion.labels import Split

if TYPE_CHECKING:
    from featcache.store import Cache

Workers = int | Literal["auto"]
"""Threads that read ahead; "auto" is 2 beside a CPU, and half of the cores beside a GPU, 8 at most."""
Place = Literal["auto", "host", "device"]
"""Where codes are decoded for a GPU: "auto" is on the host where enough threads read."""
# To launch the kernels that decode a batch takes the training thread a few milliseconds, and a head's whole step some
# ten. So many threads decode on the host as fast as a GPU trains.
_HOST_READERS = 4
T = TypeVar("T")
BUCKET_RATIO = 1.15
"""Lengths within this ratio share a bucket: at most 13 % of its frames are padding."""

# Lengths that are turned into Python's integers at a time.
_BLOCK = 1 << 18


class Slot(NamedTuple):
    """One batch in the order of training."""

    epoch: int
    step: int
    """Within the epoch."""
    positions: np.ndarray
    """int64 (batch,), in the split."""


@dataclass(frozen=True)
class Batch:
    slot: Slot
    features: Tensor
    """float (batch, frames, taps, channels), zero beyond `lengths`, on the device."""
    lengths: Tensor
    """int64 (batch,), on the device."""
    frames: int
    """Frames without padding, as they are stored."""


@dataclass
class Stopwatch:
    """Time that the training thread spent on getting data, against all time.

    On CUDA without decoding, which is queued behind the step before: what it waits for is that step.
    """

    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0
    frames: int = 0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here does not count."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.started += time.perf_counter() - began

    @property
    def elapsed(self) -> float:
        return max(time.perf_counter() - self.started, 1e-9)

    @property
    def share(self) -> float:
        return min(self.waited / self.elapsed, 1.0)

    @property
    def rate(self) -> float:
        """Frames a second, without padding."""
        return self.frames / self.elapsed


def plan_epoch(frames: np.ndarray, batch_frames: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch in the order of training.

    Utterances of similar length are drawn at random into a batch until it would hold more than
    `batch_frames` with its padding; a longer utterance is a batch of its own.

    Args:
        frames: int64 (utterances,), all positive.
        batch_frames: most frames of a batch, padding included.

    Returns:
        int64 positions in `frames`, each in exactly one batch.
    """
    rng = np.random.default_rng([seed, epoch])
    buckets = np.floor(np.log(np.maximum(frames, 1)) / np.log(BUCKET_RATIO)).astype(np.int64)
    order = np.lexsort((rng.random(len(frames)), buckets))
    batches = _pack(frames, order, batch_frames)
    rng.shuffle(batches)
    return batches


def plan_evaluation(frames: np.ndarray, batch_frames: int) -> list[Slot]:
    """Batches in order of length, with the least padding."""
    order = np.argsort(frames, kind="stable")
    return [Slot(0, step, positions) for step, positions in enumerate(_pack(frames, order, batch_frames))]


def _pack(frames: np.ndarray, order: np.ndarray, batch_frames: int) -> list[np.ndarray]:
    ends: list[int] = []
    start = longest = at = 0
    for first in range(0, len(order), _BLOCK):
        # Python's own integers: ten million from an array one by one would take most of the time.
        for size in frames[order[first : first + _BLOCK]].tolist():
            longest_with = size if size > longest else longest
            if at > start and longest_with * (at - start + 1) > batch_frames:
                ends.append(at)
                start, longest_with = at, size
            longest = longest_with
            at += 1
    if at > start:
        ends.append(at)
    return [order[a:b] for a, b in zip([0, *ends], ends, strict=False)]


class Sampler:
    """Endless epochs of batches, for one rank of several, from any position.

    Every step takes `world` consecutive batches of the epoch's list, one a rank. Where the list does not
    divide, it is filled up from its start, so that all ranks do the same number of steps.

    Args:
        draw: of seed and epoch, the positions in `frames` that an epoch consists of, int64; all of them by default.
            A pure function, so that the position of the sampler is still two numbers.
    """

    def __init__(
        self,
        frames: np.ndarray,
        batch_frames: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        epoch: int = 0,
        step: int = 0,
        draw: Callable[[int, int], np.ndarray] | None = None,
    ) -> None:
        self.frames, self.batch_frames, self.seed, self.draw = frames, batch_frames, seed, draw
        self.rank, self.world = rank, world
        self.epoch, self.step = epoch, step
        self._plan: list[np.ndarray] = []
        self._planned = -1

    def steps_of_epoch(self) -> int:
        """Steps of the current epoch."""
        return -(-len(self._batches()) // self.world)

    def _batches(self) -> list[np.ndarray]:
        if self._planned != self.epoch:
            drawn = self.draw(self.seed, self.epoch) if self.draw else np.arange(len(self.frames))
            batches = plan_epoch(self.frames[drawn], self.batch_frames, self.seed, self.epoch)
            self._plan, self._planned = [drawn[batch] for batch in batches], self.epoch
        return self._plan

    def __iter__(self) -> Iterator[Slot]:
        while True:
            batches = self._batches()
            if self.step >= self.steps_of_epoch():
                self.epoch, self.step = self.epoch + 1, 0
                continue
            epoch, step = self.epoch, self.step
            self.step += 1
            yield Slot(epoch, step, batches[(step * self.world + self.rank) % len(batches)])


class Loader:
    """Reads batches of a split in order, a bounded number ahead, decoded on the device.

    Use it in a `with` statement: leaving it stops the threads.
    """

    def __init__(
        self,
        cache: Cache,
        split: Split,
        device: torch.device,
        taps: Sequence[str] | None = None,
        workers: Workers = "auto",
        decode: Place = "auto",
    ) -> None:
        self.cache, self.split, self.device = cache, split, device
        self.taps = None if taps is None else tuple(taps)
        self.workers = threads_of(workers, device)
        self.on_host = self.workers >= _HOST_READERS if decode == "auto" else decode == "host"
        self.watch = Stopwatch()
        self._pool = (
            # One thread for the products of the codec in each: training has the cores.
            ThreadPoolExecutor(self.workers, "fusion-read", initializer=torch.set_num_threads, initargs=(1,))
            if self.workers
            else None
        )

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def batches(self, slots: Iterable[Slot]) -> Iterator[Batch]:
        """One `Batch` for each slot, in order. Errors of reading are raised here."""
        return self.prepared(slots, lambda number, batch: batch)

    def prepared(self, slots: Iterable[Slot], prepare: Callable[[int, Batch], T], first: int = 0) -> Iterator[T]:
        """What a function makes of the number of each slot, counted from `first`, and its batch; in order.

        On a CPU the threads that read call it, ahead of whoever asks for the batches; beside a GPU those do.
        """
        if self._pool is None:
            for number, slot in enumerate(slots, first):
                yield self._ended(slot, partial(self._begun, slot, partial(prepare, number)))
            return
        pending: deque[tuple[Slot, Future[Callable[[], T]]]] = deque()
        try:
            for number, slot in enumerate(slots, first):
                pending.append((slot, self._pool.submit(self._begun, slot, partial(prepare, number))))
                if len(pending) > 2 * self.workers:
                    due, future = pending.popleft()
                    yield self._ended(due, future.result)
            while pending:
                due, future = pending.popleft()
                yield self._ended(due, future.result)
        finally:
            for _, future in pending:
                future.cancel()

    def _begun(self, slot: Slot, prepare: Callable[[Batch], T]) -> Callable[[], T]:
        """What is left to do where the batch is wanted."""
        decode = self._read(slot.positions)

        def end() -> T:
            with record_function("decode"):
                features, lengths = decode()
            return prepare(Batch(slot, features, lengths, self._frames(slot)))

        if self._pool is None or self.device.type == "cuda":
            return end
        made = end()
        return lambda: made

    def _read(self, positions: np.ndarray) -> Callable[[], tuple[Tensor, Tensor]]:
        """Gives features (batch, frames, taps, channels) and lengths (batch,) on the training device."""
        encoded = self.cache.read_encoded(self.split.rows[positions].tolist(), self.taps)
        if self.device.type != "cuda":
            return partial(self.cache.decode, encoded, device=self.device)
        if not self.on_host:
            return partial(self.cache.decode, encoded.pin(), device=self.device)
        features, lengths = (tensor.pin_memory() for tensor in self.cache.decode(encoded))
        return lambda: (features.to(self.device, non_blocking=True), lengths.to(self.device, non_blocking=True))

    def _ended(self, slot: Slot, begun: Callable[[], Callable[[], T]]) -> T:
        began = time.perf_counter()
        with record_function("read"):
            end = begun()
        read = time.perf_counter()
        made = end()
        self.watch.waited += (read if self.device.type == "cuda" else time.perf_counter()) - began
        self.watch.frames += self._frames(slot)
        return made

    def _frames(self, slot: Slot) -> int:
        return int(self.split.frames[slot.positions].sum())


def threads_of(workers: Workers, device: torch.device) -> int:
    """How many threads read ahead for training on a device."""
    if workers != "auto":
        return workers
    return 2 if device.type == "cpu" else min(8, max(2, cores() // 2))


def most_of(workers: Sequence[Workers]) -> Workers:
    """What suits all who read together: the largest number that any asks for."""
    return max((n for n in workers if n != "auto"), default="auto")


def union_of_taps(wanted: Sequence[tuple[str, ...]], order: Sequence[str]) -> tuple[str, ...]:
    """Taps to read for all who want some: in the cache's `order`, unless all agree on another."""
    if len(set(wanted)) == 1:
        return wanted[0]
    return tuple(tap for tap in order if any(tap in taps for taps in wanted))


def pick_taps(features: Tensor, held: Sequence[str], wanted: Sequence[str]) -> Tensor:
    """The wanted ones of the taps of (batch, frames, taps, channels): a copy, or the features themselves if all."""
    if tuple(held) == tuple(wanted):
        return features
    return features[:, :, [held.index(tap) for tap in wanted]]


# Frames over which the features' moments are estimated.
MOMENT_FRAMES = 30_000


def moments(cache: Cache, split: Split, taps: Sequence[str], seed: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, both float32 (taps, channels), over a seeded draw of utterances."""
    order = np.random.default_rng(seed).permutation(len(split))
    enough = int(np.searchsorted(np.cumsum(split.frames[order]), MOMENT_FRAMES)) + 1
    total = squares = torch.zeros((), dtype=torch.float64)
    frames = 0
    for position in np.sort(order[:enough]):
        features, _ = cache.decode(cache.read_encoded([int(split.rows[position])], tuple(taps)))
        values = features[0].double()
        total = total + values.sum(0)
        squares = squares + values.square().sum(0)
        frames += len(values)
    mean = total / max(frames, 1)
    variance = (squares / max(frames, 1) - mean.square()).clamp_min(0)
    return mean.float(), variance.sqrt().float()
