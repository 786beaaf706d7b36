"""Rows of the `residual` profile between targets, codes and reconstructions, on one core.

Tap after tap, and of each tap one group of channels after the other. A channel is predicted from itself, in the frame
before and in the tap below; from the numbers that sum up the whole tap below, in this frame and the one before; and
from the codes of the groups of its own tap that are known by then, in this frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from featcache.codec import kernels
from featcache.codec.arithmetic import LARGEST
from featcache.codec.base import Arrays
from featcache.codec.mixing import Group, channel_groups, product
from featcache.codec.room import Take, fresh


class Coding:
    """Prediction and quantisation with a calibration; see `featcache.codec.kernels` for the arithmetic.

    Args:
        limit: codes from this one on need the tail of their frame.
        budget: the room there, in quarters of a byte; without one any code will do.
        take: where results are.
    """

    def __init__(self, arrays: Arrays, limit: int = LARGEST + 1, budget: int = 0, take: Take = fresh) -> None:
        self._arrays = arrays
        self._take = take
        self._limit, self._budget = limit, budget
        self._shift, self._half = rounded_shift(arrays["mixing_shift"])
        self._summary = [torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in arrays["summary"]]
        self._summary_shift, self._summary_half = rounded_shift(arrays["summary_shift"])
        self._input_shift, self._code_shift = arrays["input_shift"].tolist(), arrays["code_shift"].tolist()
        self._groups = channel_groups(arrays)

    def encode(self, target: np.ndarray, gaps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes int16 `(taps, frames, channels)` and framed reconstructions of rows.

        Args:
            target: of `kernels.targets`, int16 `(taps, frames, channels)`, rows end to end, with a frame between
                them that is none.
            gaps: bool `(frames,)`, where those are. They come out as zeros, as what is around a row has to be.
        """
        arrays = self._arrays
        taps, frames, channels = target.shape
        codes = self._take("codes", target.shape, np.int16)
        rec = self._framed(taps, frames, channels)
        spent = np.zeros(frames, np.int32)
        inputs = _Inputs(self, frames, channels)
        for tap in range(taps if frames else 0):
            added = inputs.sum_up(rec[tap], tap)
            for group in self._groups[tap]:
                inputs.say(group, tap)
                kernels.encode_channels(
                    target[tap], added, gaps, group.low, group.high, arrays["near"][tap, 0], arrays["rounding"][tap],
                    arrays["centroid"][tap], self._limit, self._budget, spent, codes[tap], rec[tap + 1],
                )  # fmt: skip
                inputs.add(codes[tap], tap, group.low, group.high)
        return codes, rec

    def decode(self, codes: np.ndarray, gaps: np.ndarray, taps: int) -> np.ndarray:
        """Framed reconstructions of rows from the codes of their lowest taps; of `taps`, those above are zero.

        Args:
            codes: int16 `(depth, frames, channels)`, laid out as for `encode`. gaps: as there.
        """
        arrays = self._arrays
        depth, frames, channels = codes.shape
        rec = self._framed(taps, frames, channels)
        rec[depth + 1 :] = 0
        inputs = _Inputs(self, frames, channels)
        for tap in range(depth if frames else 0):
            added = inputs.sum_up(rec[tap], tap)
            inputs.add(codes[tap], tap, 0, channels)
            for group in self._groups[tap]:
                inputs.say(group, tap)
            kernels.decode_channels(
                codes[tap], added, gaps, arrays["near"][tap, 0], arrays["centroid"][tap], rec[tap + 1]
            )
        return rec

    def _framed(self, taps: int, frames: int, channels: int) -> np.ndarray:
        """Framed reconstructions of which the frame is there."""
        rec = self._take("rec", (taps + 2, frames + 1, channels), np.int16)
        rec[0] = rec[-1] = rec[:, 0] = 0
        return rec


class _Inputs:
    """What products are made of, and what they add to predictions, one tap after the other."""

    def __init__(self, coding: Coding, frames: int, channels: int) -> None:
        self._coding = coding
        self._below = coding._take("below", (frames, 2 * channels), np.int8)
        self._below_view = torch.from_numpy(self._below)
        self._array = coding._take("inputs", (frames, coding._summary[0].shape[1] + channels), np.int8)
        self._views: dict[tuple[int, int], torch.Tensor] = {}
        self._added = coding._take("added", (frames, channels), np.int32)

    def sum_up(self, below: np.ndarray, tap: int) -> np.ndarray:
        """Begin a tap with framed reconstructions of the one below it.

        Returns:
            int32 `(frames, channels)`: what the same channel there adds to predictions.
        """
        if not tap:
            self._added[:] = 0
        else:
            coding = self._coding
            kernels.from_below(below, coding._arrays["near"][tap], self._added)
            kernels.narrow(below, coding._input_shift[tap - 1], self._below)
            sums = product(self._below_view, coding._summary[tap]).numpy()
            kernels.narrow_sums(sums, coding._summary_shift[tap], coding._summary_half[tap], self._array)
        return self._added

    def add(self, codes: np.ndarray, tap: int, low: int, high: int) -> None:
        """Codes `(frames, channels)` of the tap itself."""
        kernels.narrow_codes(codes, low, high, self._coding._code_shift[tap], self._array)

    def say(self, group: Group, tap: int) -> None:
        """Add what the inputs say of a group of channels."""
        if not group.alone:
            coding = self._coding
            mixed = product(self._view(group.inputs), group.matrix).numpy()
            kernels.add_mixed(mixed, group.low, coding._shift[tap], coding._half[tap], self._added)

    def _view(self, columns: slice) -> torch.Tensor:
        key = (columns.start, columns.stop)
        if key not in self._views:
            self._views[key] = torch.from_numpy(self._array[:, columns])
        return self._views[key]


def end_to_end(lengths: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How rows are laid out, a frame between two: int64 `(rows,)` where each begins, bool `(frames,)` those frames."""
    begins = np.cumsum(np.add(lengths, 1), dtype=np.int64) - np.add(lengths, 1)
    gaps = np.zeros(max(int(np.sum(lengths)) + len(lengths) - 1, 0), np.bool_)
    gaps[begins[1:] - 1] = True
    return begins, gaps


def rounded_shift(shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A shift to the right and what is added before it, so that it rounds: int32 both."""
    whole = shift.astype(np.int32)
    return whole, (1 << whole) >> 1
