"""The predictor of the `residual` profile: every channel from all channels of the tap below, and from its own past.

Its normal equations are sums of products of small integers, exact in any order, so that the same speech gives
the same predictor whatever the number of threads. They are of the values as they are, once; what a decoder
predicts from are reconstructions, and their noise, which depends on the step, is added to the diagonal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
OFFSETS = (0, -1, 1)


@dataclass(frozen=True)
class Statistics:
    """Sums over frames of products of values, in squared deviations.

    `gram` is float64 `(taps - 1, 3 * channels, 3 * channels)`, of the tap below at `OFFSETS`; `now` and `past` are
    `(taps - 1, 3 * channels, channels)`, of those with a tap's values and with its values a frame before. `lag` and
    `power` are `(taps, channels)`: a tap's values with those a frame before, and the squares of those before.
    """

    frames: int
    gram: np.ndarray
    now: np.ndarray
    past: np.ndarray
    lag: np.ndarray
    power: np.ndarray


def statistics(rows: Sequence[np.ndarray], mean: np.ndarray, deviation: np.ndarray) -> Statistics:
    """Of float32 rows `(frames, taps, channels)`."""
    taps, channels = mean.shape
    scale = GRAIN / deviation
    frames = sum(map(len, rows))
    gram = np.zeros((taps - 1, 3 * channels, 3 * channels))
    now, past = (np.zeros((taps - 1, 3 * channels, channels)) for _ in range(2))
    lag, power = np.zeros((taps, channels)), np.zeros((taps, channels))
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
            lag[tap] += (around[0].int() * around[1].int()).sum(0).double().numpy()
            power[tap] += (around[1].int() ** 2).sum(0).double().numpy()
            if below is not None:
                columns = below.T.contiguous()
                for sums, with_what in ((gram, below), (now, around[0]), (past, around[1])):
                    sums[tap - 1] += product(columns, with_what).double().numpy()
            below = torch.cat(around, dim=1)
    for sums in (gram, now, past, lag, power):
        sums /= GRAIN**2
    return Statistics(frames, gram, now, past, lag, power)


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

    `own` int16 `(taps, channels)` in `2 ** -WEIGHT_BITS`; `mixing` int8 `(taps, 3 * channels, channels)`, of tap 0
    all zero, `mixing_shift` int8 `(taps, channels)`, by which the product is shifted to units; `input_shift`
    int8 `(1,)`, of `kernels.regressors`.
    """
    taps, channels = stats.lag.shape
    noise = stats.frames * (NOISE * steps**2 + 1e-3) + PRIOR * 3 * channels
    own = np.zeros((taps, channels))
    mixing = np.zeros((taps, 3 * channels, channels))
    own[0] = stats.lag[0] / (stats.power[0] + noise[0])
    for tap in range(1, taps):
        gram = stats.gram[tap - 1].copy()
        gram.flat[:: len(gram) + 1] += noise[tap - 1]
        now, past = stats.now[tap - 1], stats.past[tap - 1]
        solved = np.linalg.solve(gram, np.concatenate([now, past], axis=1))
        by_now, by_past = solved[:, :channels], solved[:, channels:]
        # What is left of a tap and of its past when both are predicted from the tap below.
        rest = stats.power[tap] + noise[tap] - (past * by_past).sum(axis=0)
        own[tap] = (stats.lag[tap] - (past * by_now).sum(axis=0)) / np.maximum(rest, noise[tap])
        # From steps of the tap below to steps of this one.
        mixing[tap] = (by_now - by_past * own[tap]) * (steps[tap - 1] / steps[tap])
    # The last tap predicts no other.
    units = 127.0 * steps[: max(taps - 1, 1)].min() / (REACH * UNIT)
    input_shift = int(np.clip(np.ceil(-np.log2(units)), 0, 8))
    largest = np.maximum(np.abs(mixing).max(axis=1), 2.0**-14)
    power = np.clip(np.floor(np.log2(127 / largest)), input_shift, 14).astype(np.int8)
    whole = np.clip(np.rint(mixing * 2.0 ** power[:, None].astype(np.float64)), -127, 127)
    return {
        "own": fixed(own, WEIGHT_BITS, WEIGHT_LIMIT),
        "mixing": whole.astype(np.int8),
        "mixing_shift": (power - input_shift).astype(np.int8),
        "input_shift": np.array([input_shift], np.int8),
    }


def fixed(weights: np.ndarray, bits: int, limit: int) -> np.ndarray:
    """Weights as int16 whole numbers of `2 ** -bits`, cut at the limit."""
    # Kernels are fast on contiguous arrays only.
    return np.ascontiguousarray(np.clip(np.rint(weights * (1 << bits)), -limit, limit), np.int16)
