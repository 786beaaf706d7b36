"""Calibration of the `residual` profile: scales, predictors, smoother, packing, and the step for a target."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.codec import arithmetic, literal, packing
from featcache.codec.base import Arrays
from featcache.codec.parameters import DEFAULT_LEVEL, Asked
from featcache.codec.step_search import search

# Neighbours of the smoother: frames and taps away.
SMOOTHER = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
RIDGE = 1e-3
# Values this many times the width of a channel's middle 90 % from its median are no part of its deviation.
OUTLIER = 100.0
# By what values are divided where float32 does not hold their differences.
SMALLER = 256.0
# Frames that the step is searched on, and that the predictor is fitted to.
SEARCH_FRAMES = 4096
FIT_FRAMES = 32_768
# Predictors for each power of two of the step. One that was fitted to a step a sixth coarser loses 0.15 dB.
PREDICTORS = 4
# By how many of those a predictor may be off for a rough fit (on the demo errors are the same within 0.3 %).
NEAR = 2
# Other recordings take up to this much more room than those of the calibration, and their errors are this much
# larger on some rows (measured on the demo: up to 3 %). Asked bits and errors are reduced by it.
SIZE_MARGIN = 0.96
ERROR_MARGIN = 0.93
CHUNK_FRAMES = 64
LOOK_FRAMES = 8 * CHUNK_FRAMES


@dataclass(frozen=True)
class Fitted:
    """A calibration and how it does on the rows that it was fitted to.

    `nmse` is `(taps,)`: mean squared error over variance, per tap.
    """

    arrays: Arrays
    bits: float
    nmse: np.ndarray


class Fitter:
    """Calibrations for several targets on the same rows, which share all that does not depend on the step."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self._mean, self._deviation = moments(rows)
        self._learnt, self._held_out = split(rows)
        self._predictors: dict[tuple[int, float], Arrays] = {}
        self._fitted: dict[tuple[float, float, int], Fitted] = {}

    def fit(self, asked: Asked, rough: bool = False) -> Arrays:
        """The calibration that reaches a target: `bits` per value, worst tap's `nmse`, or `step` in deviations.

        Args:
            rough: with a predictor that was fitted to another step already, where one is near enough.

        Raises:
            UsageError: no step reaches the target on these rows.
        """
        target, value = asked.target, asked.value
        if target == "step":
            return self._at(value, asked, rough).arrays

        def measure(step: float) -> float:
            fitted = self._at(step, asked, rough)
            return fitted.bits if target == "bits" else float(fitted.nmse.max())

        goal = value * (SIZE_MARGIN if target == "bits" else ERROR_MARGIN)
        frames = sum(map(len, self._held_out))
        step = search(measure, goal, 1.0 if target == "bits" else -1.0, str(value), target, frames)
        return self._at(step, asked, rough).arrays

    def _at(self, step: float, asked: Asked, rough: bool) -> Fitted:
        number = round(PREDICTORS * math.log2(step))
        if rough:
            near = [n for n, last in self._predictors if last == asked.last and abs(n - number) <= NEAR]
            number = min(near, key=lambda other: (abs(other - number), other), default=number)
        key = (step, asked.last, number)
        if key not in self._fitted:
            predictor, steps = self._predictor(number, asked.last), self._steps(step, asked.last)
            self._fitted[key] = fit_step(self._held_out, self._mean, self._deviation, predictor, steps)
        return self._fitted[key]

    def _predictor(self, number: int, last: float) -> Arrays:
        """Its equations are large, and it changes little with the step: steps that are near one another share one."""
        from featcache.codec import fit_mixing

        if (number, last) not in self._predictors:
            given = quantiser(self._deviation, self._steps(2.0 ** (number / PREDICTORS), last))
            self._predictors[number, last] = fit_mixing.predictor(self._learnt, self._mean, self._deviation, given)
        return self._predictors[number, last]

    def _steps(self, step: float, last: float) -> np.ndarray:
        """Of each tap, in deviations. Where there is but one, it is no finer than asked."""
        steps = np.full(len(self._mean), step)
        steps[1:][-1:] /= last
        return steps


def split(rows: Sequence[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows for the predictor, which has many weights, and others for all that is measured with it."""
    usable = [np.ascontiguousarray(row, np.float32) for row in rows if len(row)]
    if len(usable) < 2:
        return usable, usable
    stride = min(max(2, sum(map(len, usable)) // SEARCH_FRAMES), len(usable))
    learnt = [row for number, row in enumerate(usable) if number % stride]
    return _some(learnt, FIT_FRAMES), _some(usable[::stride], SEARCH_FRAMES)


def dead_zone(steps: np.ndarray) -> np.ndarray:
    """How much less than half a step of a residual still rounds up, in steps; measured to be best at equal size."""
    return np.interp(steps, (0.25, 0.5, 1.0, 1.5, 2.0), (0.04, 0.10, 0.18, 0.25, 0.30))


def moments(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, float64 `(taps, channels)`.

    A channel that does not vary here gets the typical deviation of its tap, or 1, so that it is stored
    sensibly where it does.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = _moments(rows)
    if not (np.isfinite(mean).all() and np.isfinite(deviation).all()):
        # Values differ by more than float32 holds. A power of two changes nothing else.
        mean, deviation = (SMALLER * found for found in _moments([row / np.float32(SMALLER) for row in rows]))
    return mean, np.clip(deviation, 2.0**-90, 2.0**120)


def _moments(rows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    low, middle, high = np.quantile(np.concatenate(_some(rows, SEARCH_FRAMES)), (0.05, 0.5, 0.95), axis=0)
    # A stray value far outside what a channel does must not set its step.
    reach = np.where(high > low, OUTLIER * (high - low), np.inf)
    count, total, square = (np.zeros(middle.shape) for _ in range(3))
    for row in rows:
        centred = row - middle
        usual = np.abs(centred) <= reach
        centred[~usual] = 0
        count += usual.sum(axis=0)
        total += centred.sum(axis=0, dtype=np.float64)
        square += np.square(centred, dtype=np.float64).sum(axis=0)
    shift = total / count
    mean = middle + shift
    deviation = np.sqrt(np.maximum(square / count - np.square(shift), 0))
    # Rounding of float32 is no variation.
    varies = deviation > np.abs(mean) * 1e-6
    for tap in range(len(deviation)):
        typical = float(np.median(deviation[tap][varies[tap]])) if varies[tap].any() else 1.0
        deviation[tap][~varies[tap]] = typical
    return mean, deviation


def fit_step(
    rows: Sequence[np.ndarray],
    mean: np.ndarray,
    deviation: np.ndarray,
    predictor: Arrays,
    steps: np.ndarray,
) -> Fitted:
    """Everything but the predictor and the choice of the steps: `(taps,)`, in deviations."""
    from featcache.codec import fit_mixing, kernels
    from featcache.codec.prediction import Coding

    taps, channels = mean.shape
    arrays: Arrays = {
        "mean": np.ascontiguousarray(mean, np.float32),
        "deviation": np.ascontiguousarray(deviation, np.float32),
        **quantiser(deviation, steps),
        **predictor,
    }
    inverse = inverse_of(arrays["step"])
    empty = [np.empty((taps, len(row), channels), np.int16) for row in rows]
    target = [kernels.targets(row, arrays["mean"], inverse, 0, out) for row, out in zip(rows, empty, strict=True)]
    free = Coding(arrays)
    coded = [free.encode(row, np.zeros(row.shape[1], np.bool_)) for row in target]
    codes, framed = [c for c, _ in coded], [r for _, r in coded]
    source = [np.ascontiguousarray(r[1:-1, 1:]) for r in framed]
    smoother = _solve(target, source, SMOOTHER)
    arrays["smoother"] = fit_mixing.fixed(smoother, arithmetic.SMOOTH_BITS, arithmetic.SMOOTH_LIMIT)
    together = np.concatenate(codes, axis=1)
    arrays["order"] = np.argsort(_entropy(together).reshape(-1), kind="stable").astype(np.int32)
    arrays["coding"], bits = _choose(together, arrays["order"])
    return Fitted(arrays, bits, _nmse(rows, framed, arrays))


def quantiser(deviation: np.ndarray, steps: np.ndarray) -> Arrays:
    """`step` float32 and `rounding` int16, `(taps, channels)`, of steps in deviations `(taps,)`."""
    rounding = np.rint((0.5 - dead_zone(steps)) * arithmetic.UNIT).astype(np.int16)
    return {
        "step": np.ascontiguousarray(deviation * steps[:, None], np.float32),
        "rounding": np.repeat(rounding[:, None], deviation.shape[1], axis=1),
    }


def inverse_of(step: np.ndarray) -> np.ndarray:
    """float32 units in one of value, for `kernels.targets`."""
    return (np.float32(arithmetic.UNIT) / step).astype(np.float32)


def _solve(
    target: Sequence[np.ndarray], source: Sequence[np.ndarray], neighbours: tuple[tuple[int, int], ...]
) -> np.ndarray:
    """Least squares of the target from neighbours in the source, float64 `(taps, neighbours, channels)`."""
    from featcache.codec.kernels_fit import accumulate

    taps, _, channels = target[0].shape
    count = len(neighbours)
    gram, cross = np.zeros((taps, count, count, channels)), np.zeros((taps, count, channels))
    frames_off, taps_off = np.array(neighbours, np.int64).T.copy()
    for row, around in zip(target, source, strict=True):
        accumulate(row, around, frames_off, taps_off, gram, cross)
    system = np.moveaxis(_symmetric(gram), 3, 1).copy()
    diagonal = np.einsum("tckk->tck", system)
    # Relative to the variances, and never singular.
    diagonal *= 1 + RIDGE
    diagonal += 1.0
    return np.moveaxis(np.linalg.solve(system, np.moveaxis(cross, 2, 1)[..., None])[..., 0], 2, 1)


def _symmetric(lower: np.ndarray) -> np.ndarray:
    """The whole of matrices of which the lower triangles are given, `(taps, k, k, channels)`."""
    upper = lower.transpose(0, 2, 1, 3)
    index = np.arange(lower.shape[1])
    below = (index[:, None] >= index[None, :])[None, :, :, None]
    return np.where(below, lower, upper)


def _entropy(codes: np.ndarray) -> np.ndarray:
    """Bits per code of every channel of a tap, float64 `(taps, channels)`, of codes `(taps, frames, channels)`."""
    from featcache.codec.kernels_fit import count_codes

    total = np.zeros((len(codes), codes.shape[2]))
    for count in count_codes(codes, 15):
        share = count / codes.shape[1]
        total -= share * np.log2(np.where(share > 0, share, 1))
    return np.round(total, 9)


def _choose(codes: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, float]:
    """int32 `(radix, bytes of a frame's tail)` of the smallest packing, and its bits per value."""
    values = codes.shape[0] * codes.shape[2]
    quarters = {radix: packing.tail_quarters(codes, radix) for radix in packing.DIGITS}
    finest = max(packing.DIGITS)
    usable = [r for r in packing.DIGITS if r == finest or quarters[r].mean() <= values]
    # Room for frames half as large again as the largest here: zeros cost next to nothing.
    tails = {r: packing.tail_bytes(values, r, 1.5 * quarters[r].max(initial=0)) for r in usable}

    def size(radix: int, frames: int) -> float:
        padded = packing.padded_order(order, radix)
        some = np.ascontiguousarray(codes[:, :frames])
        return _size_zstd(packing.assemble(some, padded, radix, tails[radix]))

    # Two are left after a look at a part.
    likely = sorted(usable, key=lambda radix: size(radix, LOOK_FRAMES))[:2]
    sizes = {radix: size(radix, codes.shape[1]) for radix in sorted(likely)}
    radix = min(sizes, key=lambda r: sizes[r])
    overhead = _chunk_overhead(values) / min(CHUNK_FRAMES, codes.shape[1])
    return np.array([radix, tails[radix]], np.int32), 8 * (sizes[radix] + overhead) / values


def _size_zstd(frames: np.ndarray) -> float:
    """Bytes a frame `(frames, piece, word)` as zstd leaves them, chunk by chunk."""
    chunks = range(0, max(len(frames) // CHUNK_FRAMES, 1) * CHUNK_FRAMES, CHUNK_FRAMES)
    stored = [np.ascontiguousarray(frames[at : at + CHUNK_FRAMES].transpose(literal.ORDER)) for at in chunks]
    return sum(map(len, literal.compress_each(stored))) / min(len(frames), len(chunks) * CHUNK_FRAMES)


def _chunk_overhead(values: int) -> int:
    """Bytes of a chunk beyond its codes: two checksums and index entries, and an empty chunk of plane `exact`."""
    from numcodecs.zstd import Zstd

    empty = len(Zstd(level=DEFAULT_LEVEL, checksum=True).encode(np.zeros(CHUNK_FRAMES * values, np.float32)))
    return empty + 2 * (4 + 16)


def _nmse(rows: Sequence[np.ndarray], rec: Sequence[np.ndarray], arrays: Arrays) -> np.ndarray:
    total = np.zeros(len(arrays["mean"]))
    for row, r in zip(rows, rec, strict=True):
        error = (row - smoothed(r, arrays)) / arrays["deviation"]
        total += np.where(np.abs(error) < 100, np.square(error, dtype=np.float64), 0).sum(axis=(0, 2))
    return total / (sum(len(row) for row in rows) * arrays["mean"].shape[1])


def smoothed(rec: np.ndarray, arrays: Arrays) -> np.ndarray:
    """The float32 estimate of one row, `(frames, taps, channels)`, from its framed reconstructions."""
    from featcache.codec import kernels

    scale = (arrays["step"] * np.float32(arithmetic.SMOOTHED_UNIT)).astype(np.float32)
    taps, channels = scale.shape
    out = np.empty((rec.shape[1] - 1, taps, channels), np.float32)
    kernels.smooth(rec, 0, arrays["smoother"], scale, arrays["mean"], np.arange(taps), out)
    return out


def _some(rows: Sequence[np.ndarray], frames: int) -> list[np.ndarray]:
    """Whole rows, evenly spread, of about so many frames in all."""
    total = sum(len(row) for row in rows)
    usable = [np.ascontiguousarray(row, np.float32) for row in rows if len(row)]
    if total <= frames:
        return usable
    count = math.ceil(len(usable) * frames / total)
    return [usable[n * len(usable) // count] for n in range(count)]
