"""One row of the `residual` profile between targets, codes and reconstructions: tap after tap, on one core."""

from __future__ import annotations

import numpy as np
import torch

from featcache.codec import kernels
from featcache.codec.arithmetic import LARGEST
from featcache.codec.base import Arrays
from featcache.codec.mixing import product


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
        self._input_shift = int(arrays["input_shift"][0])
        self._mixing = [torch.from_numpy(np.ascontiguousarray(matrix)) for matrix in arrays["mixing"]]

    def encode(self, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes int16 `(frames, taps, channels)` and framed reconstructions of one row's `kernels.targets`."""
        arrays = self._arrays
        frames, taps, channels = target.shape
        codes = np.zeros(target.shape, np.int16)
        rec = np.zeros((frames + 1, taps + 2, channels), np.int16)
        spent = np.zeros(frames, np.int32)
        for tap in range(taps):
            kernels.encode_tap(
                target, tap, self._mixed(rec, tap), arrays["own"][tap], self._shift[tap], self._half[tap],
                arrays["rounding"][tap], arrays["centroid"][tap], self._limit, self._budget, spent, codes, rec,
            )  # fmt: skip
        return codes, rec

    def decode(self, codes: np.ndarray, depth: int) -> np.ndarray:
        """Framed reconstructions of one row's first `depth` taps; those above are zero."""
        arrays = self._arrays
        frames, taps, channels = codes.shape
        rec = np.zeros((frames + 1, taps + 2, channels), np.int16)
        for tap in range(depth):
            kernels.decode_tap(
                codes, tap, self._mixed(rec, tap), arrays["own"][tap], self._shift[tap], self._half[tap],
                arrays["centroid"][tap], rec,
            )  # fmt: skip
        return rec

    def _mixed(self, rec: np.ndarray, tap: int) -> np.ndarray:
        """int32 `(frames, channels)`: what the tap below says of this one, before it is shifted to units."""
        frames, channels = len(rec) - 1, rec.shape[2]
        if tap == 0 or not frames:
            return np.zeros((frames, channels), np.int32)
        around = np.empty((frames, 3 * channels), np.int8)
        kernels.regressors(rec, tap - 1, self._input_shift, around)
        mixed: np.ndarray = product(torch.from_numpy(around), self._mixing[tap]).numpy()
        return mixed
