"""The predictor of the `residual` profile: every channel from all channels of the tap below, from those of its own tap
that are coded before it, and from its own past.

Its normal equations are sums of products of small integers, exact in any order, so that the same speech gives
the same predictor whatever the number of threads. They are of the values as they are, once; what a decoder
predicts from are reconstructions, and their noise, which depends on the step, is added to the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from featcache.codec.arithmetic import UNIT, WEIGHT_BITS, WEIGHT_LIMIT
from featcache.codec.base import Arrays
from featcache.codec.mixing import product

# Values are counted in this part of a deviation, up to 127 of them.
GRAIN = 16
# Frames of one product: below 2^31 / 127^2.
FRAMES = 1 << 17
# Mean squared error of a reconstruction, in squared steps: uniform noise, and the dead zone's.
NOISE = 0.04
# More is added where there are few frames for each weight.
PRIOR = 0.1
# Reconstructions are handed to the product in units of which 127 are at least so many deviations.
REACH = 7.0
# Frames of the tap below: this one and the one before. The one after would add 0.15 dB (decision 16).
OFFSETS = (0, -1)
# Where a tap's channels are divided into groups, each predicted from those before it too
# (docs/decisions/0016-prediction-within-a-tap.md).
DIVIDED = (0, 0.25, 0.5, 0.75, 1)


@dataclass(frozen=True)
class Statistics:
    """Sums over frames of products of values, in squared deviations.

    `gram` is float64 `(taps - 1, 2 * channels, 2 * channels)`, of the tap below at `OFFSETS`; `now` and `past` are
    `(taps - 1, 2 * channels, channels)`, of those with a tap's values and with its values a frame before. `own` and
    `lag` are `(taps, channels, channels)`: a tap's values with themselves, and with those a frame before. `power` is
    `(taps, channels)`, the squares of those before.
    """

    frames: int
    gram: np.ndarray
    now: np.ndarray
    past: np.ndarray
    own: np.ndarray
    lag: np.ndarray
    power: np.ndarray


def statistics(rows: Sequence[np.ndarray], mean: np.ndarray, deviation: np.ndarray) -> Statistics:
    """Of float32 rows `(frames, taps, channels)`."""
    taps, channels = mean.shape
    scale = GRAIN / deviation
    frames = sum(map(len, rows))
    gram = np.zeros((taps - 1, 2 * channels, 2 * channels))
    now, past = (np.zeros((taps - 1, 2 * channels, channels)) for _ in range(2))
    own, lag = (np.zeros((taps, channels, channels)) for _ in range(2))
    power = np.zeros((taps, channels))
    for batch in _batches(rows):
        # Frames of zeros around the rows stand for what does not exist.
        whole = np.zeros((sum(len(row) + 1 for row in batch) + 1, taps, channels), np.int8)
        places = []
        at = 1
        for row in batch:
            whole[at : at + len(row)] = np.clip(np.rint((row - mean) * scale), -127, 127)
            places.append(np.arange(at, at + len(row)))
            at += len(row) + 1
        here = np.concatenate(places)
        below: torch.Tensor | None = None
        for tap in range(taps):
            around = [torch.from_numpy(whole[here + offset, tap]) for offset in OFFSETS]
            columns = around[0].T.contiguous()
            own[tap] += product(columns, around[0]).double().numpy()
            lag[tap] += product(columns, around[1]).double().numpy()
            power[tap] += (around[1].int() ** 2).sum(0).double().numpy()
            if below is not None:
                columns = below.T.contiguous()
                for sums, with_what in ((gram, below), (now, around[0]), (past, around[1])):
                    sums[tap - 1] += product(columns, with_what).double().numpy()
            below = torch.cat(around, dim=1)
    for sums in (gram, now, past, own, lag, power):
        sums /= GRAIN**2
    return Statistics(frames, gram, now, past, own, lag, power)


def _batches(rows: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Pieces of rows, of at most `FRAMES` frames together."""
    out: list[list[np.ndarray]] = [[]]
    room = FRAMES
    for row in rows:
        for at in range(0, len(row), FRAMES):
            piece = row[at : at + FRAMES]
            if len(piece) > room:
                out.append([])
                room = FRAMES
            out[-1].append(piece)
            room -= len(piece)
    return [batch for batch in out if batch]


def predictor(stats: Statistics, steps: np.ndarray) -> Arrays:
    """Weights for reconstructions in steps of so many deviations, `(taps,)`, as the calibration holds them.

    `own` int16 `(taps, channels)` in `2 ** -WEIGHT_BITS`; `mixing` int8 `(taps, 2 * channels, channels)`, of the tap
    below, of tap 0 all zero; `beside` int8 `(taps, channels, channels)`, of the groups of channels that are coded
    before, zero for all others; `groups` int32, where they begin and end; `mixing_shift` int8 `(taps, channels)`, by
    which the sum of both products is shifted to units; `input_shift` int8 `(taps,)`, of `kernels.narrow`.
    """
    taps, channels, _ = stats.own.shape
    noise = stats.frames * (NOISE * steps**2 + 1e-3) + PRIOR * 2 * channels
    groups = group_edges(channels)
    own = np.zeros((taps, channels))
    mixing = np.zeros((taps, 2 * channels, channels))
    beside = np.zeros((taps, channels, channels))
    # Each tap is handed to products in units of which 127 are at least REACH deviations.
    input_shift = np.clip(np.ceil(-np.log2(127.0 * steps / (REACH * UNIT))), 0, 8)
    for tap in range(taps):
        rest = _Rest(stats, tap, noise)
        own[tap], beside[tap] = rest.weights(groups, noise[tap])
        if tap:
            # From steps of the tap below to steps of this one.
            mixing[tap] = rest.below(own[tap], beside[tap]) * (steps[tap - 1] / steps[tap])
            beside[tap] *= 2.0 ** (input_shift[tap] - input_shift[tap - 1])
    source_shift = np.concatenate([input_shift[:1], input_shift[:-1]])[:, None]
    largest = np.maximum(np.maximum(np.abs(mixing).max(axis=1), np.abs(beside).max(axis=1)), 2.0**-14)
    power = np.clip(np.floor(np.log2(127 / largest)), source_shift, 14)

    def whole(weights: np.ndarray) -> np.ndarray:
        return np.clip(np.rint(weights * 2.0 ** power[:, None]), -127, 127).astype(np.int8)

    return {
        "own": fixed(own, WEIGHT_BITS, WEIGHT_LIMIT),
        "mixing": whole(mixing),
        "beside": whole(beside),
        "groups": groups,
        "mixing_shift": (power - source_shift).astype(np.int8),
        "input_shift": input_shift.astype(np.int8),
    }


def group_edges(channels: int) -> np.ndarray:
    """int32, where each group of channels begins, and where the last ends; fewer where there are few channels."""
    return np.unique((np.array(DIVIDED) * channels).astype(np.int32))


class _Rest:
    """What the tap below leaves of a tap's values, and of those a frame before: their products, summed over frames."""

    def __init__(self, stats: Statistics, tap: int, noise: np.ndarray) -> None:
        # Covariances with all of the own tap's channels, now and a frame before.
        self.now, self.past = stats.own[tap], stats.lag[tap]
        self.power = stats.power[tap] + noise[tap]
        self._by_now = self._by_past = np.zeros((0, len(self.now)))
        if tap:
            gram = stats.gram[tap - 1].copy()
            gram.flat[:: len(gram) + 1] += noise[tap - 1]
            now, past = stats.now[tap - 1], stats.past[tap - 1]
            solved = np.linalg.solve(gram, np.concatenate([now, past], axis=1))
            self._by_now, self._by_past = np.split(solved, 2, axis=1)
            self.now = self.now - now.T @ self._by_now
            self.past = self.past - now.T @ self._by_past
            self.power = np.maximum(self.power - (past * self._by_past).sum(axis=0), noise[tap])

    def weights(self, groups: np.ndarray, noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Of the frame before `(channels,)`, and of the groups before `(channels, channels)`, one group at a time."""
        channels = len(self.now)
        own, beside = np.zeros(channels), np.zeros((channels, channels))
        for low, high in pairwise(groups.tolist()):
            now, past = self.now[:low, low:high], self.past[:low, low:high]
            gram = self.now[:low, :low] + noise * np.eye(low)
            by_now, by_past = np.split(np.linalg.solve(gram, np.concatenate([now, past], axis=1)), 2, axis=1)
            # What is left of a channel and of its past when both are predicted from all that is known of this frame.
            power = self.power[low:high] - (past * by_past).sum(axis=0)
            lag = np.diagonal(self.past)[low:high] - (past * by_now).sum(axis=0)
            own[low:high] = lag / np.maximum(power, noise)
            beside[:low, low:high] = by_now - by_past * own[low:high]
        return own, beside

    def below(self, own: np.ndarray, beside: np.ndarray) -> np.ndarray:
        """Of the tap below, `(2 * channels, channels)`, beside those weights of the tap itself."""
        weights: np.ndarray = self._by_now - self._by_past * own - self._by_now @ beside
        return weights


def fixed(weights: np.ndarray, bits: int, limit: int) -> np.ndarray:
    """Weights as int16 whole numbers of `2 ** -bits`, cut at the limit."""
    # Kernels are fast on contiguous arrays only.
    return np.ascontiguousarray(np.clip(np.rint(weights * (1 << bits)), -limit, limit), np.int16)
