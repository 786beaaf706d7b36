"""Profile `residual`: prediction over time, taps and channels, small codes, and a smoother that reads between them.

A value is coded as the residual of an integer prediction, in steps fixed per tap and channel by the calibration. It
is predicted from its channel in the frame before and from all channels of the tap below in two frames, as they are
reconstructed, and from the codes of those of its own tap that were coded before it (`featcache.codec.prediction`).
What is returned is not the reconstruction itself but an estimate from it and its neighbours in time and taps, also in
integers. Every value is within `BOUND` steps of the truth: what would not be is kept as float32 in the plane `exact`,
which is read only where a frame's flags ask for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featcache.codec import exact, fitting, literal, packing
from featcache.codec.arithmetic import SMOOTHED_UNIT
from featcache.codec.base import Arrays, Begun, Codec, EncodedRow, Fitting, Plane, Rest
from featcache.codec.packing import EXACT, FIRST
from featcache.codec.parameters import DEFAULT_LEVEL, check, parse
from featcache.codec.room import Room
from featcache.errors import CorruptCacheError

if TYPE_CHECKING:
    from featcache.codec.encoder import Coded

BOUND = 4.0
# Frames that are coded at a time, where rows are not longer.
TOGETHER = 512


class Residual(Codec):
    """Parameters: one of `bits` (per value, at most), `nmse` (per tap and row, guaranteed) and `step` (in
    standard deviations); `last` is how many times finer than the others the steps of the last tap are.

    NMSE is the mean squared error of a row's tap, each channel divided by its variance in the calibration.
    """

    profile = "residual"
    version = 5

    def __init__(self, taps: int, channels: int, parameters: Mapping[str, Any], calibration: Arrays) -> None:
        # Kernels are fast on contiguous arrays only.
        contiguous = {name: np.ascontiguousarray(array) for name, array in calibration.items()}
        super().__init__(taps, channels, parameters, contiguous)
        self.radix, self.tail = (int(n) for n in calibration["coding"])
        step = calibration["step"]
        self._inverse = fitting.inverse_of(step)
        self._scale = (step * np.float32(SMOOTHED_UNIT)).astype(np.float32)
        # Finite, so that an estimate that is not is farther from the truth than that.
        self._bound = np.minimum(step.astype(np.float64) * BOUND, np.finfo(np.float32).max).astype(np.float32)
        self._keeper = exact.Keeper(self.calibration, self._scale, self._bound, parameters.get("nmse"))
        self._order = packing.padded_order(calibration["order"], self.radix)
        self._room = Room()
        self._decoders: dict[torch.device, Any] = {}
        self._encoders: dict[torch.device, Any] = {}

    @classmethod
    def parse(cls, text: str) -> dict[str, Any]:
        return parse(text)

    @classmethod
    def fit(cls, rows: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Arrays:
        return cls.fitter(rows)(parameters, False)

    @classmethod
    def fitter(cls, rows: Sequence[np.ndarray]) -> Fitting:
        fits = fitting.Fitter(rows)
        return lambda parameters, rough: fits.fit(check(parameters), rough)

    @cached_property
    def planes(self) -> tuple[Plane, ...]:
        width = packing.HEADER + packing.packed_bytes(self.taps * self.channels, self.radix) + self.tail
        shape = (width // literal.PIECE, literal.WORDS)
        return (
            Plane(
                "codes",
                literal.WORD,
                shape,
                level=DEFAULT_LEVEL,
                coder="literal",
                order=literal.ORDER,
                axes=("piece", "word"),
            ),
            Plane("exact", "<f4", (self.taps, self.channels), level=DEFAULT_LEVEL, sparse=True),
        )

    @cached_property
    def _coding(self) -> Any:
        from featcache.codec.prediction import Coding

        return Coding(self.calibration, packing.limit_of(self.radix), packing.budget_of(self.tail), self._room)

    def needed(self, plane: str, found: Arrays, frames: int) -> range:
        if plane != "exact":
            return range(frames)
        return exact.needed(_marks(found["codes"], EXACT))

    def encode(self, features: np.ndarray) -> EncodedRow:
        return self._encode([features])[0]

    def encode_rows(self, rows: Sequence[np.ndarray]) -> list[Rest]:
        rests: list[Rest] = []
        for together in _batches([len(row) for row in rows]):
            encoded = cache(partial(self._encode, rows[together]))
            rests += [partial(_nth, encoded, n) for n in range(together.stop - together.start)]
        return rests

    def _encode(self, rows: Sequence[np.ndarray]) -> list[EncodedRow]:
        """Rows are encoded together since each product and kernel costs something however few frames it has."""
        from featcache.codec import kernels
        from featcache.codec.prediction import end_to_end

        arrays = self.calibration
        rows = [np.ascontiguousarray(row, np.float32) for row in rows]
        begins, gaps = end_to_end([len(row) for row in rows])
        target = self._room("target", (self.taps, len(gaps), self.channels), np.int16)
        for row, begin in zip(rows, begins, strict=True):
            kernels.targets(row, arrays["mean"], self._inverse, begin, target)
        codes, rec = self._coding.encode(target, gaps)
        block = self._block(codes)
        block[begins[[len(row) > 0 for row in rows]], 0, 0] |= FIRST
        return [
            _row(block[begin : begin + len(row)], self._keeper.find(row, rec, begin))
            for row, begin in zip(rows, begins.tolist(), strict=True)
        ]

    def _block(self, codes: np.ndarray) -> np.ndarray:
        """The plane `codes` from int8 or int16 `(taps, frames, channels)`, without flags."""
        return packing.assemble(codes, self._order, self.radix, self.tail)

    def begin_encoding(self, rows: Sequence[torch.Tensor]) -> Callable[[], list[Begun]]:
        if not rows:
            return list
        end = self._encoder(rows[0].device).begin(rows)
        # A row that the device leaves to the CPU comes as its features.
        return lambda: [
            self._on_cpu(row) if isinstance(row, np.ndarray) else Begun(row.bad_taps, partial(self._encoded, row))
            for row in end()
        ]

    def _encoder(self, device: torch.device) -> Any:
        from featcache.codec.encoder import Encoder, Limits

        if device not in self._encoders:
            limits = Limits(
                bound=self._bound,
                radix=self.radix,
                tail=self.tail,
                nmse=self.parameters.get("nmse"),
            )
            self._encoders[device] = Encoder(self.calibration, self._scale, self._inverse, limits, device)
        return self._encoders[device]

    def _encoded(self, coded: Coded) -> EncodedRow:
        """What a device has coded, as it is stored."""
        if coded.codes is not None:
            block = self._block(np.ascontiguousarray(coded.codes.swapaxes(0, 1)))
        else:
            assert coded.block is not None
            block = packing.as_words(coded.block)
        block[:1, 0, 0] |= FIRST
        return _row(block, exact.gather((len(block), self.taps, self.channels), coded.at, coded.exact))

    def decode_into(self, planes: Mapping[str, torch.Tensor], taps: Sequence[int], out: Sequence[torch.Tensor]) -> None:
        codes, lengths = planes["codes"], [len(row) for row in out]
        # The smoother looks one tap up, the prediction down to the first.
        depth = min(max(taps, default=0) + 2, self.taps)
        if codes.device.type == "cpu":
            self._decode_cpu(codes.numpy(), lengths, depth, taps, out)
        else:
            self._decoder(codes.device).decode_into(codes, depth, taps, out)
        if len(planes["exact"]):
            exact.overlay(out, planes["exact"], _marks(codes, EXACT).cpu().numpy(), taps)

    def _decode_cpu(
        self,
        block: np.ndarray,
        utterances: Sequence[int],
        depth: int,
        taps: Sequence[int],
        out: Sequence[torch.Tensor],
    ) -> None:
        from featcache.codec import kernels
        from featcache.codec.prediction import end_to_end

        arrays, wanted = self.calibration, np.asarray(taps, np.int64)
        first = _marks(block, FIRST)
        sizes = np.asarray(utterances, np.int64)
        ends = np.cumsum(sizes)
        if not first[(ends - sizes)[sizes > 0]].all():
            raise CorruptCacheError("codes do not begin with a row: run `featcache verify CACHE`")
        starts = np.flatnonzero(first)
        lengths = np.diff(starts, append=len(block))
        rows = [
            part
            for row, end, length in zip(out, ends.tolist(), utterances, strict=True)
            for part in np.split(row.numpy(), np.flatnonzero(first[end - length : end])[1:])
            if length
        ]
        # Few rows at a time, so that what is in work stays near the core; but each time costs something too.
        for together in _batches(lengths.tolist()):
            begins, gaps = end_to_end(lengths[together])
            places = np.flatnonzero(~gaps)
            span = slice(starts[together.start], starts[together.start] + len(places))
            rec = self._coding.decode(self._codes(block[span], places, len(gaps), depth), gaps, self.taps)
            for row, begin in zip(rows[together], begins.tolist(), strict=True):
                kernels.smooth(rec, begin, arrays["smoother"], self._scale, arrays["mean"], wanted, row)

    def _codes(self, block: np.ndarray, places: np.ndarray, frames: int, depth: int) -> np.ndarray:
        """int16 `(depth, frames, channels)`, the lowest taps of whole frames, which go to these places."""
        from featcache.codec import kernels_pack

        values = self.taps * self.channels
        out = self._room("codes", (depth, frames, self.channels), np.int16)
        body = packing.packed_bytes(values, self.radix)
        wrong = kernels_pack.disassemble(
            block.reshape(len(block), -1).view(np.uint8),
            packing.table(self.radix),
            *packing.at_limit(self.radix),
            self._order,
            packing.HEADER,
            body,
            values,
            places,
            out,
        )
        if wrong >= 0:
            raise CorruptCacheError("a frame's codes are none that were ever written: run `featcache verify CACHE`")
        return out

    def _decoder(self, device: torch.device) -> Any:
        from featcache.codec.device import Decoder

        if device not in self._decoders:
            self._decoders[device] = Decoder(self.calibration, self._scale, self.radix, device)
        return self._decoders[device]


def _row(block: np.ndarray, kept: exact.Kept | None) -> EncodedRow:
    """A row as it is stored, its frames marked where the other plane has more of them."""
    if kept is None:
        return EncodedRow({"codes": block}, 0)
    block[kept.frames, 0, 0] |= EXACT
    return EncodedRow({"codes": block, "exact": kept.plane}, 0, {"exact": kept.frames})


def _marks(codes: Any, flag: int) -> Any:
    """Bool `(frames,)`: whether a frame is marked so, in the lowest byte of its first word."""
    return (codes[:, 0, 0] & flag) != 0


def _batches(lengths: Sequence[int]) -> list[slice]:
    """Rows that are coded together: as many as have about `TOGETHER` frames."""
    found: list[slice] = []
    frames = 0
    for row, length in enumerate(lengths):
        if not found or frames + length > TOGETHER:
            found.append(slice(row, row))
            frames = 0
        found[-1] = slice(found[-1].start, row + 1)
        frames += length
    return found


def _nth(encoded: Callable[[], list[EncodedRow]], number: int) -> EncodedRow:
    return encoded()[number]
