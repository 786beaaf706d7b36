"""What a statistic of a test set is worth: percentile intervals of a bootstrap over utterances.

Bisani and Ney, 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation". The
intervals speak of the choice of test utterances, not of the training seed, nor of correlation between
utterances of one speaker.

A statistic is a function of how often each utterance is drawn: weights (resamples, utterances) give values
(resamples,), NaN where the statistic is undefined. So the same few lines serve rates, macro F1, equal error
rates and the paired differences of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
RESAMPLES = 2000
_CHUNK_VALUES = 4_000_000


class Difference(NamedTuple):
    """A minus B, with the ends of its 95 % interval."""

    diff: float
    low: float
    high: float


def ratio(numerators: ArrayLike, denominators: ArrayLike) -> Statistic:
    """sum(numerators) / sum(denominators) over utterances, both (utterances,): WER, accuracy and their like."""
    top, bottom = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)

    def statistic(weights: Array) -> Array:
        return divide(weights @ top, weights @ bottom)

    return statistic


def divide(a: Array, b: Array) -> Array:
    """a / b, NaN where b is zero."""
    return np.divide(a, b, out=np.full(np.broadcast(a, b).shape, np.nan), where=b != 0)


def mean_of(statistics: Sequence[Statistic]) -> Statistic:
    """The mean of statistics of the same utterances: of runs that differ in their seeds, say."""

    def mean(weights: Array) -> Array:
        found: Array = np.mean([statistic(weights) for statistic in statistics], axis=0)
        return found

    return mean


def value(statistic: Statistic, utterances: int) -> float:
    """The statistic of the utterances themselves, each taken once."""
    return float(statistic(np.ones((1, utterances)))[0])


def interval(
    statistic: Statistic, utterances: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % interval over resampled utterances; resamples in which the statistic is undefined are left out.

    NaN where it is undefined in all of them.
    """
    found = np.concatenate([statistic(weights) for weights in _draws(utterances, resamples, seed)])
    defined = found[np.isfinite(found)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)


def figure(value: float, form: str = ".3f") -> str:
    """A value for a table; "-" where it is undefined."""
    return format(value, form) if math.isfinite(value) else "-"


def span(ends: Sequence[float], form: str = ".3f", between: str = ", ") -> str:
    """The ends of an interval for a table; "-" where they are undefined."""
    return between.join(figure(end, form) for end in ends) if all(map(math.isfinite, ends)) else "-"


def difference(a: Statistic, b: Statistic, utterances: int, *, resamples: int = RESAMPLES, seed: int = 0) -> Difference:
    """a - b on the same utterances, by paired bootstrap: a resample takes the same utterances for both."""

    def statistic(weights: Array) -> Array:
        return a(weights) - b(weights)

    low, high = interval(statistic, utterances, resamples=resamples, seed=seed)
    return Difference(value(statistic, utterances), low, high)


def _draws(utterances: int, resamples: int, seed: int) -> Iterator[Array]:
    """How often each utterance is drawn, (some resamples, utterances), in chunks of bounded memory."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_VALUES // utterances)
    for start in range(0, resamples, step):
        draws = generator.multinomial(
            utterances, np.full(utterances, 1 / utterances), size=min(step, resamples - start)
        )
        yield draws.astype(np.float64)
