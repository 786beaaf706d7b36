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

from featcache.codec.arithmetic import SMOOTH_SHIFT
from featcache.codec.mixing import product


class Neighbours:
    """A calibration on one device.

    Args:
        calibration: the arrays of `featcache.codec.residual`.
        scale: float32 `(taps, channels)`, SMOOTHED_UNIT * step.
    """

    def __init__(self, calibration: Mapping[str, np.ndarray], scale: np.ndarray, device: torch.device) -> None:
        self.device = device
        self.taps, self.channels = calibration["mean"].shape
        self.own = self.put(calibration["own"].astype(np.int32))
        self.mixing = self.put(calibration["mixing"])
        self.shift = self.put(calibration["mixing_shift"].astype(np.int32))
        self.input_shift = int(calibration["input_shift"][0])
        self.centroid = self.put(calibration["centroid"].astype(np.int32))
        self.smoother = self.put(calibration["smoother"].astype(np.int32))
        self.scale = self.put(scale)
        self.mean = self.put(calibration["mean"])

    def put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def from_below(self, below: torch.Tensor, first: torch.Tensor, tap: int) -> torch.Tensor:
        """What reconstructions `(frames, channels)` of the tap below say of this one, int32 of that shape."""
        rounded = (below.int() + ((1 << self.input_shift) >> 1)) >> self.input_shift
        here = rounded.clamp_(-127, 127).to(torch.int8)
        mixed = product(torch.cat([here, *around(here, first)], dim=1), self.mixing[tap])
        shift = self.shift[tap]
        return (mixed + ((1 << shift) >> 1)) >> shift

    def estimate(
        self, here: torch.Tensor, first: torch.Tensor, below: torch.Tensor, above: torch.Tensor, taps: Any
    ) -> torch.Tensor:
        """float32 estimates of the features from reconstructions and those around them, all of one shape.

        Args:
            here: `(frames, channels)` of one tap, or `(frames, taps, channels)` of several.
            below, above: of the taps beside them, zero where there are none.
            taps: the tap's position, or a list of several.
        """
        before, after = around(here, first)
        neighbours = zip(self.smoother[taps].unbind(-2), (here, before, after, below, above), strict=True)
        total = functools.reduce(torch.add, (weight * value for weight, value in neighbours))
        y = (total + (1 << (SMOOTH_SHIFT - 1))) >> SMOOTH_SHIFT
        return y.float() * self.scale[taps] + self.mean[taps]


def around(values: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same a frame before and a frame after, zero beyond the row."""
    shape = (-1, *[1] * (values.dim() - 1))
    begins, ends = first.view(shape), torch.cat([first[1:], first.new_ones(min(1, len(first)))]).view(shape)
    before = torch.cat([torch.zeros_like(values[:1]), values[:-1]]).masked_fill(begins, 0)
    after = torch.cat([values[1:], torch.zeros_like(values[:1])]).masked_fill(ends, 0)
    return before, after
