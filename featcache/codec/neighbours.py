"""What profile `residual` makes of neighbours in time and taps, with torch on any device: prediction and smoother.

Rows lie end to end; `first` is bool `(frames,)`, true where one begins. The integers are those of
`featcache.codec.kernels`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from featcache.codec.arithmetic import BELOW_BITS, SMOOTH_SHIFT
from featcache.codec.mixing import Group, by_columns, channel_groups, product


class Neighbours:
    """A calibration on one device.

    Args:
        calibration: the arrays of `featcache.codec.residual`.
        scale: float32 `(taps, channels)`, SMOOTHED_UNIT * step.
    """

    def __init__(self, calibration: Mapping[str, np.ndarray], scale: np.ndarray, device: torch.device) -> None:
        self.device = device
        self.taps, self.channels = calibration["mean"].shape
        self.near = self.put(calibration["near"].astype(np.int32))
        self.summary = by_columns(self.put(calibration["summary"]))
        self.summary_shift = self.put(calibration["summary_shift"].astype(np.int32))
        self.mixing = by_columns(self.put(calibration["mixing"]))
        self.shift = self.put(calibration["mixing_shift"].astype(np.int32))
        self.input_shift = calibration["input_shift"].tolist()
        self.code_shift = calibration["code_shift"].tolist()
        self.groups = channel_groups(calibration, device)
        self.centroid = self.put(calibration["centroid"].astype(np.int32))
        self.smoother = self.put(calibration["smoother"].astype(np.int32))
        self.scale = self.put(scale)
        self.mean = self.put(calibration["mean"])

    def put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def from_below(self, rec: torch.Tensor, first: torch.Tensor, tap: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What the tap below says of a tap: int32 `(frames, channels)` that the same channel there adds to a
        prediction, and the summary of all, int8 `(frames, rank)`.

        Args:
            rec: `(frames, taps, channels)`, reconstructions.
        """
        if not tap:
            nothing = torch.zeros((len(rec), self.channels), dtype=torch.int32, device=rec.device)
            return nothing, nothing[:, : self.summary.shape[2]].to(torch.int8)
        here = rec[:, tap - 1].int()
        total = self.near[tap, 1] * here + self.near[tap, 2] * before(here, first)
        narrow = _narrow(here, self.input_shift[tap - 1])
        sums = product(torch.cat([narrow, before(narrow, first)], dim=1), self.summary[tap])
        return (total + (1 << (BELOW_BITS - 1))) >> BELOW_BITS, _narrow(sums, self.summary_shift[tap])

    def inputs(self, summary: torch.Tensor, codes: torch.Tensor, tap: int) -> torch.Tensor:
        """int8 `(frames, rank + channels)`: the summary, and codes `(frames, channels)` of the tap itself."""
        return torch.cat([summary, (codes.int() << self.code_shift[tap]).clamp_(-127, 127).to(torch.int8)], dim=1)

    def mixed(self, inputs: torch.Tensor, tap: int, group: Group | None = None) -> torch.Tensor:
        """int32 `(frames, channels)` that inputs add to the prediction of a group, or of all channels."""
        if group is None:
            return _shifted(product(inputs, self.mixing[tap]), self.shift[tap])
        if group.alone:
            return inputs.new_zeros((len(inputs), group.high - group.low), dtype=torch.int32)
        return _shifted(product(inputs[:, group.inputs], group.matrix), self.shift[tap, group.low : group.high])

    def estimate(
        self, here: torch.Tensor, first: torch.Tensor, below: torch.Tensor, above: torch.Tensor, taps: Any
    ) -> torch.Tensor:
        """float32 estimates of the features from reconstructions and those around them, all of one shape.

        Args:
            here: `(frames, channels)` of one tap, or `(frames, taps, channels)` of several.
            below, above: of the taps beside them, zero where there are none.
            taps: the tap's position, or a list of several.
        """
        neighbours = zip(self.smoother[taps].unbind(-2), (here, *around(here, first), below, above), strict=True)
        total = functools.reduce(torch.add, (weight * value for weight, value in neighbours))
        y = (total + (1 << (SMOOTH_SHIFT - 1))) >> SMOOTH_SHIFT
        return y.float() * self.scale[taps] + self.mean[taps]


def _shifted(values: torch.Tensor, shift: Any) -> torch.Tensor:
    """Whole numbers divided by powers of two, rounded."""
    return (values + ((1 << shift) >> 1)) >> shift


def _narrow(values: torch.Tensor, shift: Any) -> torch.Tensor:
    """int32 values as they are handed to products, int8."""
    return _shifted(values, shift).clamp_(-127, 127).to(torch.int8)


def around(values: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same a frame before and a frame after, zero beyond the row."""
    ends = torch.cat([first[1:], first.new_ones(min(1, len(first)))])
    after = torch.cat([values[1:], torch.zeros_like(values[:1])]).masked_fill(_fitting(ends, values), 0)
    return before(values, first), after


def before(values: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """The same a frame before, zero before the row."""
    return torch.cat([torch.zeros_like(values[:1]), values[:-1]]).masked_fill(_fitting(first, values), 0)


def _fitting(frames: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return frames.view(-1, *[1] * (values.dim() - 1))
