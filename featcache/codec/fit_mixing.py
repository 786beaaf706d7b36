"""The predictor of the `residual` profile: what a channel owes to its past, to the tap below, and to its own tap.

It is fitted tap after tap, on what a decoder will have: reconstructions of the tap below as the taps before them left
them, and codes of the tap itself. Its normal equations are sums of products of small integers, exact in any order, so
that the same speech gives the same predictor whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch

from featcache.codec import kernels, kernels_fit
from featcache.codec.arithmetic import BELOW_BITS, LARGEST, RANGE, UNIT, UNIT_BITS, WEIGHT_BITS, WEIGHT_LIMIT
from featcache.codec.base import Arrays
from featcache.codec.fit_summary import Moments
from featcache.codec.fitting import inverse_of
from featcache.codec.mixing import product
from featcache.codec.prediction import rounded_shift

# Frames of one product: below 2^31 / 127^2.
FRAMES = 1 << 17
# Mean squared error of a reconstruction, in squared steps: uniform noise, and the dead zone's.
NOISE = 0.04
# Added to the squares of regressors: of each frame, and where there are few frames for each weight; squared deviations.
RIDGE, PRIOR = 1e-3, 0.3
# Values are handed to products in units of which 127 are at least so many deviations.
REACH = 7.0
# Numbers that sum up a tap for the one above it, for each of its channels
# (docs/decisions/0018-a-summary-of-the-tap-below.md).
RANK = 0.25
# Where a tap's channels are divided into groups, each predicted from those before it too
# (docs/decisions/0016-prediction-within-a-tap.md).
DIVIDED = (0, 0.25, 0.5, 0.75, 1)
# Codes other than 0 of a channel that count against its evidence for where they lie in their steps.
FEW_CODES = 20


def group_edges(channels: int) -> np.ndarray:
    """int32, where each group of channels begins, and where the last ends; fewer where there are few channels."""
    return np.unique((np.array(DIVIDED) * channels).astype(np.int32))


def rank_of(channels: int) -> int:
    return max(1, round(RANK * channels))


def predictor(rows: Sequence[np.ndarray], mean: np.ndarray, deviation: np.ndarray, given: Arrays) -> Arrays:
    """The weights for `given` steps and rounding, fitted to float32 rows `(frames, taps, channels)`.

    `near` int16 `(taps, 3, channels)`: of the frame before, in `2 ** -WEIGHT_BITS`, and of the tap below in this frame
    and the one before, in `2 ** -BELOW_BITS`. `summary` int8 `(taps, 2 * channels, rank)`: what sums up the tap below,
    in this frame and the one before; of tap 0 all zero. `mixing` int8 `(taps, rank + channels, channels)`: of the
    summary, and of codes of the groups before, zero for all others. `groups` int32: where they begin and end.
    `summary_shift` int8 `(taps, rank)` and `mixing_shift` int8 `(taps, channels)`: by which the sums of products are
    shifted. `input_shift` and `code_shift` int8 `(taps,)`: of `kernels.narrow` and `kernels.narrow_codes`.
    `centroid` int16 `(taps, channels)`: by how many units values whose code is not 0 lie nearer to 0 than the middle of
    their step.
    """
    taps, channels = mean.shape
    rank, groups = rank_of(channels), group_edges(channels)
    steps = (given["step"].astype(np.float64) / deviation).mean(axis=1)
    out: Arrays = {
        "near": np.zeros((taps, 3, channels), np.int16),
        "summary": np.zeros((taps, 2 * channels, rank), np.int8),
        "summary_shift": np.zeros((taps, rank), np.int8),
        "mixing": np.zeros((taps, rank + channels, channels), np.int8),
        "mixing_shift": np.zeros((taps, channels), np.int8),
        "input_shift": np.clip(np.ceil(-np.log2(127.0 * steps / (REACH * UNIT))), 0, 8).astype(np.int8),
        # A residual is hardly ever more than a value's deviation.
        "code_shift": np.clip(np.floor(np.log2(127.0 / (1 + REACH / steps))), 0, 4).astype(np.int8),
        "groups": groups,
        "centroid": np.zeros((taps, channels), np.int16),
    }
    speech = _Speech(rows, channels)
    inverse = inverse_of(given["step"])
    for tap in range(taps):
        targets = speech.targets(tap, mean, inverse)
        fit = _Tap(speech, tap, steps, targets, out)
        if tap:
            fit.near_and_summary(rank)
        else:
            fit.near_alone()
        for low, high in pairwise(groups.tolist()):
            fit.beside(low, high)
            fit.code(low, high, given["rounding"][tap])
        fit.settle(given["rounding"][tap])
        speech.climb()
    return out


class _Speech:
    """Rows laid end to end, a frame of zeros before each; one tap in work, and the one below it.

    Attributes:
        below, here: int16 `(frames and those zeros, channels)`, framed reconstructions of both taps.
        places: where the rows' frames are in them.
    """

    def __init__(self, rows: Sequence[np.ndarray], channels: int) -> None:
        self.rows = rows
        lengths = np.array([len(row) for row in rows])
        ends = np.cumsum(lengths)
        self.plain = [slice(int(end - n), int(end)) for end, n in zip(ends, lengths, strict=True)]
        self.framed = [slice(s.start + number, s.stop + number + 1) for number, s in enumerate(self.plain)]
        self.places = np.concatenate([np.arange(s.start + 1, s.stop) for s in self.framed])
        self.below, self.here = (np.zeros((int(ends[-1]) + len(rows), channels), np.int16) for _ in range(2))

    def targets(self, tap: int, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        """int16 `(frames, channels)`, of `kernels.targets`."""
        values = np.concatenate([row[:, tap : tap + 1] for row in self.rows])
        out = np.empty((1, len(values), values.shape[2]), np.int16)
        return kernels.targets(values, mean[tap : tap + 1].astype(np.float32), inverse[tap : tap + 1], 0, out)[0]

    def before(self, values: np.ndarray) -> np.ndarray:
        """The same a frame before, zeros before the first of a row."""
        out = np.zeros_like(values)
        out[1:] = values[:-1]
        out[[s.start for s in self.plain if s.start < s.stop]] = 0
        return out

    def climb(self) -> None:
        """On to the next tap."""
        self.below = self.here
        self.here = np.zeros_like(self.below)


class _Tap:
    """One tap, whose weights are written into `out`.

    Sums over frames are of values in deviations; `unit` is what 1 of a narrowed value is, of the tap and of that below.
    """

    def __init__(self, speech: _Speech, tap: int, steps: np.ndarray, targets: np.ndarray, out: Arrays) -> None:
        self._speech, self._tap, self._out = speech, tap, out
        self._steps, self._targets = steps, targets
        self._frames, self._channels = targets.shape
        shift = out["input_shift"].astype(np.float64)
        self._unit = 2.0 ** shift[tap] / UNIT * steps[tap]
        self._unit_below = 2.0 ** shift[tap - 1] / UNIT * steps[tap - 1] if tap else 0.0
        self._past = np.clip(speech.before(targets), -RANGE, RANGE).astype(np.int32)
        rank = out["summary"].shape[2]
        self._inputs = np.zeros((self._frames, rank + self._channels), np.int8)
        self._codes = np.zeros(targets.shape, np.int16)
        self._weights = np.zeros((rank + self._channels, self._channels))
        self._ridge = RIDGE * self._frames + PRIOR

    def near_alone(self) -> None:
        """Weights of the frame before, of a tap with nothing below it."""
        values, past = (_narrowed(v, self._out["input_shift"][self._tap]) for v in (self._targets, self._past))
        own = _dots(past, values) / np.maximum(_dots(past, past) + self._noise() / self._unit**2, 1e-30)
        self._out["near"][self._tap, 0] = fixed(own, WEIGHT_BITS, WEIGHT_LIMIT)

    def near_and_summary(self, rank: int) -> None:
        """Weights of a channel's own neighbours; the summary of the tap below, and its weights."""
        out, tap, channels = self._out, self._tap, self._channels
        values, past = (_narrowed(v, out["input_shift"][tap]) for v in (self._targets, self._past))
        here = _narrowed(self._speech.below[self._speech.places], out["input_shift"][tap - 1])
        below = np.concatenate([here, self._speech.before(here)], axis=1)
        moments = Moments(
            gram=_sums(below, below) * self._unit_below**2,
            now=_sums(below, values) * (self._unit_below * self._unit),
            past=_sums(below, past) * (self._unit_below * self._unit),
            lag=_dots(past, values) * self._unit**2,
            power=_dots(past, past) * self._unit**2 + self._noise(),
        )
        near, inner, outer, spread = moments.solve(rank, self._ridge, PRIOR * 2 * channels)
        out["near"][tap, 0] = fixed(near[0], WEIGHT_BITS, WEIGHT_LIMIT)
        ratio = self._steps[tap - 1] / self._steps[tap]
        out["near"][tap, 1:] = fixed(near[1:] * ratio, BELOW_BITS, WEIGHT_LIMIT)
        # Every number of the summary in units of which 127 are at least REACH of its deviations.
        gain = 127 / np.maximum(np.abs(inner).max(axis=0), 1e-30)
        spread = spread / np.sqrt(self._frames)
        shift = np.clip(np.ceil(np.log2(np.maximum(gain * spread / self._unit_below * REACH / 127, 1.0))), 0, 24)
        out["summary"][tap] = np.rint(inner * gain)
        out["summary_shift"][tap] = shift
        sums = product(torch.from_numpy(below), torch.from_numpy(out["summary"][tap])).numpy()
        kernels.narrow_sums(sums, *rounded_shift(shift), self._inputs)
        unit = 2.0**shift / gain * self._unit_below
        self._weights[:rank] = outer * unit[:, None] * (UNIT / self._steps[tap])
        self._set(0, channels)

    def beside(self, low: int, high: int) -> None:
        """Weights of the codes of channels before `low`, for those from there up to `high`."""
        if not low:
            return
        out, tap = self._out, self._tap
        rank = len(self._weights) - self._channels
        code_shift = int(out["code_shift"][tap])
        own = _shift(out["near"][tap, 0, low:high].astype(np.int32) * self._past[:, low:high], WEIGHT_BITS)
        rest = self._targets[:, low:high].astype(np.int32) - own - self._below(low, high) - self._mixed(low, high)
        left = _narrowed(rest, UNIT_BITS - code_shift)
        known = self._inputs[:, rank : rank + low]
        # A deviation in units of narrowed codes.
        deviation = 2.0**code_shift / self._steps[tap]
        gram = _sums(known, known)
        gram.flat[:: low + 1] += (self._ridge + PRIOR * self._channels) * deviation**2
        found = np.linalg.solve(gram, _sums(known, left))
        self._weights[rank : rank + low, low:high] = found * 2.0 ** (UNIT_BITS - code_shift)
        self._set(low, high)

    def code(self, low: int, high: int, rounding: np.ndarray) -> None:
        """Codes and reconstructions of channels with the weights that they have."""
        out, tap, speech = self._out, self._tap, self._speech
        spent = np.zeros(self._frames, np.int32)
        added = np.zeros((self._frames, self._channels), np.int32)
        added[:, low:high] = self._below(low, high) + self._mixed(low, high, low)
        gaps = np.zeros(self._frames, np.bool_)
        for plain, framed in zip(speech.plain, speech.framed, strict=True):
            kernels.encode_channels(
                self._targets[plain], added[plain], gaps[plain], low, high, out["near"][tap, 0], rounding,
                out["centroid"][tap], LARGEST + 1, 0, spent[plain], self._codes[plain], speech.here[framed],
            )  # fmt: skip
        kernels.narrow_codes(self._codes, low, high, int(out["code_shift"][tap]), self._inputs)

    def settle(self, rounding: np.ndarray) -> None:
        """Centroids of the tap's codes, and with them what it ends in."""
        used, nearer = kernels_fit.gaps(self._targets, self._codes, self._speech.here, self._speech.places)
        # Channels with few such codes keep to the middle.
        centroid = np.rint(nearer / (used + FEW_CODES))
        self._out["centroid"][self._tap] = np.clip(centroid, -UNIT // 2, UNIT // 2)
        for low, high in pairwise(self._out["groups"].tolist()):
            self.code(low, high, rounding)

    def _noise(self) -> float:
        """Of reconstructions, squared deviations of all frames: values stand for them where they are not there yet."""
        return self._frames * (NOISE * float(self._steps[self._tap]) ** 2 + RIDGE) + PRIOR

    def _below(self, low: int, high: int) -> np.ndarray:
        """What the same channel of the tap below predicts, int32 `(frames, channels)`."""
        near = self._out["near"][self._tap, 1:, low:high].astype(np.int32)
        here = self._speech.below[self._speech.places, low:high].astype(np.int32)
        return _shift(near[0] * here + near[1] * self._speech.before(here), BELOW_BITS)

    def _mixed(self, low: int, high: int, known: int = 0) -> np.ndarray:
        """What the summary and the first channels' codes predict of channels, int32 `(frames, channels)`."""
        inputs = len(self._weights) - self._channels + known
        matrix = np.ascontiguousarray(self._out["mixing"][self._tap, :inputs, low:high])
        sums = product(torch.from_numpy(self._inputs[:, :inputs]), torch.from_numpy(matrix)).numpy()
        return _shift(sums, self._out["mixing_shift"][self._tap, low:high].astype(np.int32))

    def _set(self, low: int, high: int) -> None:
        """Weights of channels as the whole numbers that they become."""
        weights = self._weights[:, low:high]
        largest = np.maximum(np.abs(weights).max(axis=0), 2.0**-14)
        power = np.clip(np.floor(np.log2(127 / largest)), 0, 14)
        self._out["mixing"][self._tap, :, low:high] = np.clip(np.rint(weights * 2.0**power), -127, 127)
        self._out["mixing_shift"][self._tap, low:high] = power


def fixed(weights: np.ndarray, bits: int, limit: int) -> np.ndarray:
    """Weights as int16 whole numbers of `2 ** -bits`, cut at the limit."""
    # Kernels are fast on contiguous arrays only.
    return np.ascontiguousarray(np.clip(np.rint(weights * (1 << bits)), -limit, limit), np.int16)


def _shift(values: np.ndarray, bits: int | np.ndarray) -> np.ndarray:
    out: np.ndarray = values + ((1 << bits) >> 1)
    out >>= bits
    return out


def _narrowed(values: np.ndarray, shift: int) -> np.ndarray:
    """int8 of whole numbers, in `2 ** shift` of them."""
    whole = _shift(values.astype(np.int32), int(shift))
    return np.clip(whole, -127, 127, out=whole).astype(np.int8)


def _sums(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 `(a, b)`, sums over frames of products of int8 `(frames, a)` and `(frames, b)`."""
    total = np.zeros((left.shape[1], right.shape[1]))
    for at in range(0, len(left), FRAMES):
        columns = torch.from_numpy(left[at : at + FRAMES]).T.contiguous()
        total += product(columns, torch.from_numpy(np.ascontiguousarray(right[at : at + FRAMES]))).double().numpy()
    return total


def _dots(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """float64 `(a,)`, sums over frames of products of int8 `(frames, a)` with their like."""
    out: np.ndarray = np.einsum("ta,ta->a", left.astype(np.int32), right.astype(np.int32), dtype=np.int64)
    return out.astype(np.float64)
