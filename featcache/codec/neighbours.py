"""What profile `residual` makes of neighbours in time and taps, with torch on any device: prediction and smoother.

Rows lie end to end; `first` is bool `(frames,)`, true where one begins. The integers are those of
`featcache.codec.kernels`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from featcache.codec.arithmetic import SMOOTH_SHIFT
from featcache.codec.mixing import channel_groups, product


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
        self.input_shift = calibration["input_shift"].tolist()
        self.groups = channel_groups(calibration, device)
        self.centroid = self.put(calibration["centroid"].astype(np.int32))
        self.smoother = self.put(calibration["smoother"].astype(np.int32))
        self.scale = self.put(scale)
        self.mean = self.put(calibration["mean"])

    def put(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def predictions(self, rec: torch.Tensor, first: torch.Tensor, tap: int) -> Iterator[tuple[slice, torch.Tensor]]:
        """One group of a tap's channels after the other, and what others add to their prediction.

        Args:
            rec: `(frames, taps, channels)`, reconstructions of the taps below. Those of a group that was given must
                be in it when the next one is asked for.

        Yields:
            the group's channels, and int32 `(frames, channels of the group)`.
        """
        if tap:
            here = self._narrow(rec[:, tap - 1], tap - 1)
            mixed = product(torch.cat([here, before(here, first)], dim=1), self.mixing[tap])
        else:
            mixed = torch.zeros((len(rec), self.channels), dtype=torch.int32, device=rec.device)
        for low, high, matrix in self.groups[tap]:
            total = mixed[:, low:high]
            if low:
                total = total + product(self._narrow(rec[:, tap, :low], tap), matrix)
            shift = self.shift[tap, low:high]
            yield slice(low, high), (total + ((1 << shift) >> 1)) >> shift

    def _narrow(self, rec: torch.Tensor, tap: int) -> torch.Tensor:
        """Reconstructions of a tap as they are handed to products, int8."""
        shift = self.input_shift[tap]
        return ((rec.int() + ((1 << shift) >> 1)) >> shift).clamp_(-127, 127).to(torch.int8)

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
