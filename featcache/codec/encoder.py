"""Prediction and quantisation of profile `residual` on a device; the codes of `featcache.codec.kernels`.

On CUDA Triton's kernels do it (`featcache.codec.gpu`), and pack the codes; elsewhere torch alone, and packing is left
to the CPU. What goes to the host is the codes and the few values that are kept as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from featcache.codec import gpu, packing, trial
from featcache.codec.arithmetic import RANGE
from featcache.codec.gpu import Bounds, Found
from featcache.codec.host import begin_copy, to_device
from featcache.codec.neighbours import Neighbours
from featcache.codec.quantise import Rules, quantise

# A row's squared error is summed in another order than on the CPU. Only where it is below the bound by more than
# the rounding of that is it known to be below it there as well.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Limits:
    """What a row has to keep.

    Attributes:
        bound: float32 `(taps, channels)`; values farther than that from the truth are kept exactly.
        radix, tail: as frames are packed (`featcache.codec.packing`), `tail` in bytes.
        nmse: of each tap of a row, at most.
    """

    bound: np.ndarray
    radix: int
    tail: int
    nmse: float | None = None

    @property
    def code(self) -> int:
        """Codes from this one on need the tail of their frame."""
        return packing.limit_of(self.radix)


@dataclass(frozen=True)
class Coded:
    """A row on the host.

    Attributes:
        block: uint8 `(frames, bytes)`, frames as they are stored, flags still zero; or
        codes: int8, or int16 where it has others, `(frames, taps, channels)`. One of the two is None.
        at: int64 `(values, 3)`, in order: frame, tap and channel of each value that is kept exactly.
        exact: float32 `(values,)`, those.
    """

    block: np.ndarray | None
    codes: np.ndarray | None
    at: np.ndarray
    exact: np.ndarray

    def bad_taps(self) -> np.ndarray:
        """As `featcache.codec.base.bad_taps`: what is not finite is farther from its estimate than any bound."""
        return np.unique(self.at[~np.isfinite(self.exact), 1])


class Encoder(Neighbours):
    """A calibration on one device, for one thread.

    Channels are independent of one another but for the room in the tail of a frame: here there is always enough,
    and a row with a frame whose codes need more is not coded. Neither is one whose `nmse` is not surely kept by
    its codes alone, nor one of which so much is kept exactly that it is no larger as it is. They are the CPU's.

    On CUDA the work has a stream of its own, so that the next forward pass does not wait for the recursion over
    frames, which leaves most of a device idle; and what is fetched once a batch's figures are known has another.
    """

    def __init__(
        self,
        calibration: Mapping[str, np.ndarray],
        scale: np.ndarray,
        inverse: np.ndarray,
        limits: Limits,
        device: torch.device,
    ) -> None:
        super().__init__(calibration, scale, device)
        rounding = self.put(calibration["rounding"].astype(np.int32))
        self.bounds = Bounds(self.put(inverse), rounding, self.put(limits.bound), self.put(calibration["deviation"]))
        self.limits = limits
        self.rules = Rules(self.near[:, 0], rounding, self.centroid)
        self.kernels: gpu.Encoding | None = None
        if gpu.usable(device):
            kernels = gpu.Encoding(self, self.bounds, calibration["order"], limits.radix, limits.tail)
            if trial.agrees("encoding", lambda: self._agree(kernels, calibration["order"])):
                self.kernels = kernels
        self.stream, self.fetching = (torch.cuda.Stream(device) if device.type == "cuda" else None for _ in range(2))

    def _agree(self, kernels: gpu.Encoding, order: np.ndarray) -> bool:
        """Whether kernels give what torch alone gives, and the bytes that the CPU packs."""
        rows = trial.rows(self.mean, self.bounds.deviation)
        squares = self.limits.nmse is not None
        with torch.cuda.device_of(self.mean):
            found, expected = kernels(rows, squares), _ByTorch(self, rows).encode(squares)
        radix, tail = self.limits.radix, self.limits.tail
        fits = (expected.frames[:, 0] <= packing.budget_of(tail)).cpu().numpy()
        codes = np.ascontiguousarray(expected.codes.cpu().numpy()[fits].swapaxes(0, 1))
        packed = packing.assemble(codes, packing.padded_order(order, radix), radix, tail)
        return (
            _close(found.squares, expected.squares)
            and torch.equal(found.codes, expected.codes)
            and torch.equal(found.missed, expected.missed)
            and torch.equal(found.frames, expected.frames)
            and found.packed is not None
            and packing.as_words(found.packed.cpu().numpy())[fits].tobytes() == packed.tobytes()
        )

    def begin(self, rows: Sequence[torch.Tensor]) -> Callable[[], list[Coded | np.ndarray]]:
        """Begin to encode rows, float32 `(frames, taps, channels)` each, after what the current stream is at.

        Returns:
            a call that waits, and gives each row's codes, or its features on the host where they are the CPU's.
            The rows must be as they are until then; nothing of the device is held after it.
        """
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            return _Batch(self, rows).end


class _Batch:
    """Rows laid end to end, whose codes are on their way."""

    def __init__(self, encoder: Encoder, rows: Sequence[torch.Tensor]) -> None:
        self._encoder, self._rows = encoder, rows
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64).tolist()
        self._spans = [slice(end - len(row), end) for row, end in zip(rows, ends, strict=True)]
        squares = encoder.limits.nmse is not None
        found = _ByTorch(encoder, rows).encode(squares) if encoder.kernels is None else encoder.kernels(rows, squares)
        self._codes, self._missed = found.codes, found.missed
        # Nearly all rows are stored as they are here: one launch for all of them.
        self._packed = None if found.packed is None else begin_copy(found.packed)
        self._small = found.codes.to(torch.int8) if found.packed is None else None
        self._squares = None if found.squares is None else begin_copy(found.squares)
        self._frames = begin_copy(found.frames)

    def end(self) -> list[Coded | np.ndarray]:
        frames = self._frames()
        packed = None if self._packed is None else self._packed()
        squares = None if self._squares is None else self._squares()
        # What is left does not stand behind the batches that were begun since.
        with torch.cuda.stream(self._encoder.fetching):
            left = [self._is_left(frames[span], None if squares is None else squares[span]) for span in self._spans]
            kept = frames[:, 2].copy()
            for span, is_left in zip(self._spans, left, strict=True):
                kept[span] *= not is_left
            exact = self._begin_exact(kept)
            begun = [
                begin_copy(row) if is_left else self._begin_codes(span, packed, frames[span], exact)
                for row, span, is_left in zip(self._rows, self._spans, left, strict=True)
            ]
            return [end() for end in begun]

    def _begin_codes(
        self,
        span: slice,
        packed: np.ndarray | None,
        frames: np.ndarray,
        exact: Callable[[], tuple[np.ndarray, np.ndarray]],
    ) -> Callable[[], Coded | np.ndarray]:
        """Begin to fetch a row that is coded here, but for the values that `exact` gives, of all rows."""
        block, codes = None, None
        if packed is not None:
            block = packed[span]
        elif self._small is not None and frames[:, 1].max(initial=0) <= 127:
            codes = begin_copy(self._small[span])
        else:
            codes = begin_copy(self._codes[span])

        def end() -> Coded:
            at, values = exact()
            low, high = np.searchsorted(at[:, 0], [span.start, span.stop])
            return Coded(block, codes and codes(), at[low:high] - [span.start, 0, 0], values[low:high])

        return end

    def _is_left(self, frames: np.ndarray, squares: np.ndarray | None) -> bool:
        """Whether a row is the CPU's."""
        limits = self._encoder.limits
        values = len(frames) * self._encoder.taps * self._encoder.channels
        # An exact value costs the bytes of seven of the row's with its place.
        return bool(
            frames[:, 0].max(initial=0) > packing.budget_of(limits.tail)
            or 7 * frames[:, 2].sum() > values
            or not self._keeps_nmse(squares)
        )

    def _begin_exact(self, kept: np.ndarray) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
        """Where values are kept exactly, int64 `(values, 3)` with frames of the batch, and float32 `(values,)`, those.

        Args:
            kept: int64 `(frames,)`, how many of each. So nothing has to wait for their number.
        """
        frames = np.flatnonzero(kept)
        if not len(frames):
            return lambda: (np.zeros((0, 3), np.int64), np.zeros(0, np.float32))
        device = self._encoder.device
        rows = []
        for row, span in zip(self._rows, self._spans, strict=True):
            low, high = np.searchsorted(frames, [span.start, span.stop])
            if low < high:
                rows.append(row.index_select(0, to_device((frames[low:high] - span.start).tolist(), device)))
        missed = self._missed.index_select(0, to_device(frames.tolist(), device))
        at = torch.nonzero_static(missed, size=int(kept.sum()))
        values = begin_copy(torch.cat(rows)[at.unbind(1)])
        places = begin_copy(at)

        @cache
        def end() -> tuple[np.ndarray, np.ndarray]:
            found = places().copy()
            found[:, 0] = frames[found[:, 0]]
            return found, values()

        return end

    def _keeps_nmse(self, squares: np.ndarray | None) -> bool:
        if squares is None or self._encoder.limits.nmse is None:
            return True
        total = squares.sum(axis=0) * (1 + ROUNDING)
        return bool((total <= self._encoder.limits.nmse * len(squares)).all())


def _close(found: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return torch.allclose(found, expected, rtol=ROUNDING, atol=0)


class _ByTorch:
    """Rows laid end to end and their codes; `(frames, ...)` is of all of them."""

    def __init__(self, encoder: Encoder, rows: Sequence[torch.Tensor]) -> None:
        self._encoder, self._rows = encoder, rows
        device = encoder.device
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        frames = int(ends[-1]) if len(rows) else 0
        spans = [(int(end) - len(row), len(row)) for row, end in zip(rows, ends, strict=True) if len(row)]
        self._starts, self._lengths = (to_device([span[n] for span in spans], device) for n in range(2))
        self._first = torch.zeros(frames, dtype=torch.bool, device=device)
        self._first.index_fill_(0, self._starts, True)
        self._codes = torch.empty((frames, encoder.taps, encoder.channels), dtype=torch.int16, device=device)
        self._rec = torch.empty_like(self._codes)

    def encode(self, squares: bool) -> Found:
        encoder, device, frames = self._encoder, self._codes.device, len(self._codes)
        needed, largest, kept = (torch.zeros(frames, dtype=torch.int64, device=device) for _ in range(3))
        for tap in range(encoder.taps):
            self._quantise(tap)
            size = self._codes[:, tap].abs()
            limit = encoder.limits.code
            needed += (size >= limit).sum(1) + 8 * (size >= limit + 3).sum(1)
            largest = torch.maximum(largest, size.amax(1).long())
        missed = torch.empty(self._codes.shape, dtype=torch.bool, device=device)
        errors = torch.empty((frames, encoder.taps), dtype=torch.float64, device=device) if squares else None
        for tap in range(encoder.taps):
            error = self._error(tap)
            torch.logical_not(error <= encoder.bounds.bound[tap], out=missed[:, tap])
            kept += missed[:, tap].sum(1)
            if errors is not None:
                relative = (error / encoder.bounds.deviation[tap]).masked_fill_(missed[:, tap], 0)
                errors[:, tap] = relative.square_().sum(1, dtype=torch.float64) / encoder.channels
        return Found(self._codes, None, missed, torch.stack([needed, largest, kept], dim=1), errors)

    def _values(self, tap: int) -> torch.Tensor:
        """float32 `(frames, channels)`."""
        return torch.cat([row[:, tap] for row in self._rows]) if self._rows else self._codes[:, tap].float()

    def _quantise(self, tap: int) -> None:
        encoder, codes = self._encoder, self._codes[:, tap]
        value = (self._values(tap) - encoder.mean[tap]) * encoder.bounds.inverse[tap]
        target = torch.where(value.abs() <= RANGE, value.round(), RANGE + 1).int()
        below, summary = encoder.from_below(self._rec, self._first, tap)
        for group in encoder.groups[tap]:
            here = slice(group.low, group.high)
            inputs = encoder.inputs(summary, codes[:, : group.low], tap)
            added = below[:, here] + encoder.mixed(inputs, tap, group)
            rules = encoder.rules.of(tap, here)
            rec = self._rec[:, tap, here]
            quantise(target[:, here], added, rules, self._starts, self._lengths, codes[:, here], rec)

    def _error(self, tap: int) -> torch.Tensor:
        """float32 `(frames, channels)`: how far from the truth decoding will end."""
        rec = self._rec
        here = rec[:, tap].int()
        nothing = torch.zeros_like(here)
        below = rec[:, tap - 1].int() if tap else nothing
        above = rec[:, tap + 1].int() if tap + 1 < rec.shape[1] else nothing
        return (self._values(tap) - self._encoder.estimate(here, self._first, below, above, tap)).abs_()
