"""Measures of classification as statistics over utterances: macro F1, and the equal error rate of detection."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fusion.intervals import Array, Statistic, divide

Flags = NDArray[np.bool_]


def one_hot(values: Sequence[str], classes: Sequence[str]) -> Array:
    """(utterances, classes) of zeros and ones; a value that is no class has a row of zeros."""
    return (np.array(values, dtype=object)[:, None] == np.array(classes, dtype=object)[None]).astype(np.float64)


def macro_f1(hits: Array, references: Array, predictions: Array) -> Statistic:
    """The mean over classes of F1 = 2 TP / (references + predictions).

    All three are counts (utterances, classes). A class that a resample neither holds nor predicts is left
    out of its mean.
    """

    def statistic(weights: Array) -> Array:
        counts = weights @ (references + predictions)
        scores = divide(2 * (weights @ hits), counts)
        return divide(np.nansum(scores, 1), (counts > 0).sum(1).astype(np.float64))

    return statistic


def detection_scores(log_posteriors: Array) -> Array:
    """Evidence for each class against all others, from log posteriors, both (utterances, classes).

    log p_c - log sum_k!=c p_k, from the posteriors of the others rather than 1 - p_c, which is zero where
    the classifier is sure.
    """
    scores = np.empty_like(log_posteriors)
    for c in range(log_posteriors.shape[1]):
        others = np.delete(log_posteriors, c, axis=1)
        scores[:, c] = log_posteriors[:, c] - np.logaddexp.reduce(others, axis=1)
    return scores


def equal_error_rate(scores: Array, targets: Flags) -> Statistic:
    """Where as many targets are missed as others are let in, both (utterances, classes).

    Every utterance is a trial of every class, all trials are pooled under one threshold, and the operating
    characteristic is linear between two thresholds. NaN where a resample has only one sort of trial.
    """
    order = np.argsort(-scores, axis=None, kind="stable")
    utterance = order // scores.shape[1]
    is_target = targets.ravel()[order]
    ordered = scores.ravel()[order]
    # trials of equal score are let in together
    last = np.append(ordered[1:] != ordered[:-1], True)

    def one(weights: Array) -> float:
        mass = weights[utterance]
        let_in = np.cumsum(np.stack([mass * is_target, mass * ~is_target]), axis=1)
        total = let_in[:, -1]
        if not total.all():
            return float("nan")
        misses = np.append(1.0, 1 - let_in[0, last] / total[0])
        alarms = np.append(0.0, let_in[1, last] / total[1])
        gap = alarms - misses
        at = int(np.argmax(gap >= 0))
        share = -gap[at - 1] / (gap[at] - gap[at - 1])
        return float(alarms[at - 1] + share * (alarms[at] - alarms[at - 1]))

    def statistic(weights: Array) -> Array:
        return np.array([one(row) for row in weights])

    return statistic
