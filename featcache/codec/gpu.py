"""Profile `residual` on CUDA: what `featcache.codec.gpu_kernels` and `gpu_kernels_pack` need around their kernels.

A tap takes a product for its summary, and for encoding a product and a recursion for each of its groups; decoding has
the codes of all groups, and takes one of both. Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from featcache.codec import packing
from featcache.codec.host import to_device
from featcache.codec.mixing import product
from featcache.codec.neighbours import Neighbours

# Channels of a program: a warp has 32 lanes, and as many programs as there are keep a device busy.
WIDTH = 32
# Frames and channels that a program of what is no recursion has at a time.
ROWS, COLUMNS = 16, 128


@cache
def kernels() -> Any:
    """The kernels, or None where Triton is not installed."""
    try:
        from featcache.codec import gpu_kernels
    except ImportError:
        return None
    return gpu_kernels


def packers() -> Any:
    """The kernels that pack and unpack; only where the others are there."""
    from featcache.codec import gpu_kernels_pack

    return gpu_kernels_pack


def usable(device: torch.device) -> bool:
    return device.type == "cuda" and kernels() is not None


@dataclass(frozen=True)
class Rows:
    """Rows float32 `(frames, taps, channels)` where they are: `base` is one of them.

    Attributes:
        places: int64 `(3, rows)` on the device: frame at which each begins where all lie end to end, frames, and
            where its values begin, counted from those of `base`.
        longest: frames of the longest.
    """

    base: torch.Tensor
    places: torch.Tensor
    longest: int

    @classmethod
    def of(cls, rows: Sequence[torch.Tensor]) -> Rows:
        """Of rows that are contiguous, one with a frame at least."""
        base = next(row for row in rows if len(row))
        lengths = np.array([len(row) for row in rows], np.int64)
        at = [(row.data_ptr() - base.data_ptr()) // row.element_size() if len(row) else 0 for row in rows]
        places = np.concatenate([np.cumsum(lengths) - lengths, lengths, np.array(at, np.int64)])
        on_device = to_device(places.tolist(), base.device).view(3, len(rows))
        return cls(base, on_device, int(lengths.max()))

    def __len__(self) -> int:
        return self.places.shape[1]


@dataclass(frozen=True)
class Found:
    """What encoding found, on the device.

    Attributes:
        codes: int16 `(frames, taps, channels)`.
        packed: uint8 `(frames, bytes)`, the codes as they are stored, flags still zero; frames whose tail has no room
            for theirs are not right. None where packing is left to the CPU.
        missed: bool of that shape: what is farther from the truth than the bound.
        frames: int64 `(frames, 3)`: what each needs of its tail, its largest code, how many values are missed.
        squares: float64 `(frames, taps)`, mean squared errors of the others in deviations; None where none are asked.
    """

    codes: torch.Tensor
    packed: torch.Tensor | None
    missed: torch.Tensor
    frames: torch.Tensor
    squares: torch.Tensor | None


@dataclass(frozen=True)
class Bounds:
    """float32 `(taps, channels)` each: how far a value may be from the truth, and what errors are counted in."""

    inverse: torch.Tensor
    rounding: torch.Tensor
    bound: torch.Tensor
    deviation: torch.Tensor


class Encoding:
    """Codes of rows, with a calibration on one device.

    Args:
        order: of the calibration. radix, tail: as frames are packed, `tail` in bytes.
    """

    def __init__(self, known: Neighbours, bounds: Bounds, order: np.ndarray, radix: int, tail: int) -> None:
        self._known, self._bounds, self._radix, self._tail = known, bounds, radix, tail
        self._order = known.put(packing.padded_order(order, radix).astype(np.int32))
        # What kernels take of each tap. To cut it out for every launch takes longer than to launch.
        self._scaling = _by_tap(known.mean, bounds.inverse, known.near, bounds.rounding, known.centroid)
        self._shift = known.shift.unbind()

    def __call__(self, rows: Sequence[torch.Tensor], squares: bool) -> Found:
        """
        Args:
            rows: float32 `(frames, taps, channels)`.
            squares: errors are asked for.
        """
        known = self._known
        k, taps, channels = kernels(), known.taps, known.channels
        frames = sum(len(row) for row in rows)
        empty = _empty_on(known.device)
        if not frames:
            nothing = empty((0, taps, channels), torch.int16)
            of_frames, errors = empty((0, 3), torch.int64), empty((0, taps), torch.float64)
            return Found(nothing, self._pack(nothing), nothing.bool(), of_frames, errors if squares else None)
        where = Rows.of([row.contiguous() for row in rows])
        starts, lengths, at = where.places.unbind()
        codes = empty((frames, taps, channels), torch.int16)
        rec = empty((taps, frames, channels), torch.int16)
        rank = known.summary.shape[2]
        inputs = empty((frames, rank + channels), torch.int8)
        narrow = empty((frames, 2 * channels), torch.int8)
        below = rec[0]
        for tap, here in enumerate(rec.unbind()):
            if tap:
                _sum_up(known, tap, narrow, inputs)
            for group in known.groups[tap]:
                mixed = codes if group.alone else product(inputs[:, group.inputs], group.matrix)
                size = group.high - group.low
                k.encode[len(where), -(-size // WIDTH)](
                    where.base, at, starts, lengths, *self._scaling[tap], mixed, self._shift[tap], below, codes, here,
                    inputs, narrow,
                    tap, group.low, group.high, rank, taps, channels, known.code_shift[tap], known.input_shift[tap],
                    BELOW=tap > 0, MIXED=not group.alone, EVEN=not size % WIDTH, WIDTH=WIDTH, STEPS=k.AHEAD,
                    num_warps=1, **k.OPTIONS,
                )  # fmt: skip
            below = here
        missed = empty(codes.shape, torch.uint8)
        needed, largest, kept = (empty((frames, taps), torch.int32) for _ in range(3))
        errors = empty((frames, taps), torch.float64) if squares else None
        k.judge[len(where), -(-where.longest // ROWS), taps](
            where.base, at, starts, lengths, rec, codes, known.smoother, known.scale, known.mean, self._bounds.bound,
            self._bounds.deviation, missed, needed, largest, kept, kept if errors is None else errors, frames, taps,
            channels, packing.limit_of(self._radix), SQUARES=squares, ROWS=ROWS, WIDTH=COLUMNS, num_warps=4,
            **k.OPTIONS,
        )  # fmt: skip
        of_frames = torch.stack([needed.sum(1), largest.amax(1).long(), kept.sum(1)], dim=1)
        if errors is not None:
            errors /= channels
        return Found(codes, self._pack(codes), missed.view(torch.bool), of_frames, errors)

    def _pack(self, codes: torch.Tensor) -> torch.Tensor:
        """uint8 `(frames, bytes)` of int16 `(frames, taps, channels)`."""
        frames, values = len(codes), self._known.taps * self._known.channels
        body = packing.packed_bytes(values, self._radix)
        before, words = packing.HEADER + body, -(-self._tail // 4)
        out = codes.new_zeros((frames, before + self._tail), dtype=torch.uint8)
        fields = codes.new_zeros((frames, words), dtype=torch.int32)
        if frames:
            packers().pack[frames,](
                codes, self._order, out, fields, values, out.shape[1], body, words, packing.limit_of(self._radix),
                RADIX=self._radix, DIGITS=packing.DIGITS[self._radix], BYTES=_power_of_two(body),
                HEADER=packing.HEADER, num_warps=4,
            )  # fmt: skip
            out[:, before:] |= fields.view(torch.uint8)[:, : self._tail]
        return out


class Decoding:
    """The inverse, with a calibration on one device."""

    def __init__(self, known: Neighbours, order: np.ndarray, radix: int) -> None:
        self._known, self._radix = known, radix
        self._table = known.put(packing.table(radix))
        self._counts = known.put(packing.at_limit(radix)[0].astype(np.int32))
        self._order = known.put(packing.padded_order(order, radix).astype(np.int32))
        self._code_shift = known.put(np.array(known.code_shift, np.int32))
        self._recursion = _by_tap(known.near, known.centroid)
        self._shift = known.shift.unbind()
        # Nothing sums up what is below the first tap.
        self._columns = [slice(0 if tap else known.summary.shape[2], None) for tap in range(known.taps)]
        self._mixing = [known.mixing[tap][columns] for tap, columns in enumerate(self._columns)]

    def __call__(self, block: torch.Tensor, depth: int, taps: Sequence[int], out: Sequence[torch.Tensor]) -> None:
        """
        Args:
            block: uint8 `(frames, bytes)`, whole rows end to end.
            depth: how many of the lowest taps it takes.
            taps: which are wanted.
            out: float32 `(length, len(taps), channels)`, contiguous, of the rows; some may be end to end in one.
        """
        k, known = kernels(), self._known
        frames, width = block.shape
        if not frames:
            return
        channels, rank = known.channels, known.summary.shape[2]
        body = packing.packed_bytes(known.taps * channels, self._radix)
        digits = packing.DIGITS[self._radix]
        where = Rows.of([row for row in out if len(row)])
        starts, lengths, at = where.places.unbind()
        empty = _empty_on(block.device)
        codes = empty((frames, depth, channels), torch.int16)
        inputs = empty((depth, frames, rank + channels), torch.int8)
        rec = empty((depth, frames, channels), torch.int16)
        narrow = empty((frames, 2 * channels), torch.int8)
        packers().unpack[frames,](
            block, self._table, self._counts, self._order, self._code_shift, codes, inputs, width, body, frames,
            depth, channels, rank, packing.limit_of(self._radix), DIGITS=digits, BYTES=_power_of_two(body),
            HEADER=packing.HEADER, num_warps=4,
        )  # fmt: skip
        below = rec[0]
        for tap, (here, said) in enumerate(zip(rec.unbind(), inputs.unbind(), strict=True)):
            if tap:
                _sum_up(known, tap, narrow, said)
            mixed = product(said[:, self._columns[tap]], self._mixing[tap])
            k.decode[len(where), -(-channels // WIDTH)](
                codes, block, starts, lengths, *self._recursion[tap], mixed, self._shift[tap], below, here, narrow,
                tap, depth, width, channels, known.input_shift[tap],
                BELOW=tap > 0, EVEN=not channels % WIDTH, WIDTH=WIDTH, STEPS=k.AHEAD, num_warps=1, **k.OPTIONS,
            )  # fmt: skip
            below = here
        wanted = to_device(list(taps), block.device)
        k.smooth[len(where), -(-where.longest // ROWS), len(taps)](
            rec, block, starts, lengths, at, wanted, known.smoother, known.scale, known.mean, where.base, frames,
            depth, len(taps), channels, width, ROWS=ROWS, WIDTH=COLUMNS, num_warps=4, **k.OPTIONS,
        )  # fmt: skip


def _by_tap(*arrays: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    return list(zip(*(array.unbind() for array in arrays), strict=True))


def _sum_up(known: Neighbours, tap: int, narrow: torch.Tensor, inputs: torch.Tensor) -> None:
    """The summary of the tap below a tap into the first columns of its inputs."""
    k = kernels()
    sums = product(narrow, known.summary[tap])
    count, block = sums.numel(), 1024
    k.narrow_sums[-(-count // block),](
        sums, known.summary_shift[tap], inputs, count, sums.shape[1], inputs.shape[1], BLOCK=block, num_warps=4
    )


def _empty_on(device: torch.device) -> Any:
    return lambda shape, dtype: torch.empty(shape, dtype=dtype, device=device)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()
