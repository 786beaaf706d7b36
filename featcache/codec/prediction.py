"""One row of the `residual` profile between targets, codes and reconstructions, on one core.

Tap after tap, and of each tap one group of channels after the other: a group is predicted from the whole tap below,
in this frame and the one before, and from the groups of its own tap that are known by then, in this frame.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from featcache.codec import kernels
from featcache.codec.arithmetic import LARGEST
from featcache.codec.base import Arrays
from featcache.codec.mixing import channel_groups, product


class Coding:
    """Prediction and quantisation with a calibration; see `featcache.codec.kernels` for the arithmetic.

    Args:
        limit: codes from this one on need the tail of their frame.
        budget: the room there, in quarters of a byte; without one any code will do.
    """

    def __init__(self, arrays: Arrays, limit: int = LARGEST + 1, budget: int = 0) -> None:
        self._arrays = arrays
        self._limit, self._budget = limit, budget
        self._shift = arrays["mixing_shift"].astype(np.int32)
        self._half = (1 << self._shift) >> 1
        self._input_shift = arrays["input_shift"].tolist()
        self._mixing = [torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in arrays["mixing"]]
        self._groups = channel_groups(arrays)

    def encode(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes int16 `(frames, taps, channels)` and framed reconstructions of one row's `kernels.targets`."""
        arrays = self._arrays
        frames, taps, channels = target.shape
        codes = np.zeros(target.shape, np.int16)
        rec = np.zeros((frames + 1, taps + 2, channels), np.int16)
        spent = np.zeros(frames, np.int32)

        def step(tap: int, low: int, high: int, mixed: np.ndarray) -> None:
            kernels.encode_channels(
                target, tap, low, high, mixed, arrays["own"][tap], self._shift[tap], self._half[tap],
                arrays["rounding"][tap], arrays["centroid"][tap], self._limit, self._budget, spent, codes, rec,
            )  # fmt: skip

        self._run(rec, taps, step)
        return codes, rec

    def decode(self, codes: np.ndarray, depth: int) -> np.ndarray:
        """Framed reconstructions of one row's first `depth` taps; those above are zero."""
        arrays = self._arrays
        frames, taps, channels = codes.shape
        rec = np.zeros((frames + 1, taps + 2, channels), np.int16)

        def step(tap: int, low: int, high: int, mixed: np.ndarray) -> None:
            kernels.decode_channels(
                codes, tap, low, high, mixed, arrays["own"][tap], self._shift[tap], self._half[tap],
                arrays["centroid"][tap], rec,
            )  # fmt: skip

        self._run(rec, depth, step)
        return rec

    def _run(self, rec: np.ndarray, depth: int, step: Callable[[int, int, int, np.ndarray], None]) -> None:
        """Call `step` for each group of the first taps, with what is said of it by all that is in `rec` by then."""
        frames, channels = len(rec) - 1, rec.shape[2]
        if not frames:
            return
        below = np.zeros((frames, 2 * channels), np.int8)
        products, known = torch.from_numpy(below), torch.from_numpy(below)[:, :channels]
        for tap in range(depth):
            if tap:
                # Beside each frame the one before; nothing is before the first.
                below[1:, channels:] = below[:-1, :channels]
                mixed = product(products, self._mixing[tap])
            else:
                mixed = torch.zeros((frames, channels), dtype=torch.int32)
            for low, high, matrix in self._groups[tap]:
                if low:
                    mixed[:, low:high] += product(known[:, :low], matrix)
                step(tap, low, high, mixed.numpy())
                # For the groups after it, and then for the tap above.
                kernels.narrow(rec, tap, low, high, self._input_shift[tap], below)
