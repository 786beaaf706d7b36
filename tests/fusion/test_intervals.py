"""Statistics over resampled utterances, and the measures of classification."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion import intervals
from fusion.classification import detection_scores, equal_error_rate, macro_f1, one_hot

CLASSES = ("a", "b", "c")
PAIRS = st.lists(st.tuples(st.sampled_from("abcz"), st.sampled_from("abc")), min_size=1, max_size=30)


def f1_by_definition(pairs: list[tuple[str, str]]) -> float:
    scores = []
    for name in {x for pair in pairs for x in pair}:
        hits = sum(a == b == name for a, b in pairs)
        scores.append(2 * hits / (sum(a == name for a, _ in pairs) + sum(b == name for _, b in pairs)))
    return sum(scores) / len(scores)


def f1(pairs: list[tuple[str, str]]) -> intervals.Statistic:
    references, hypotheses = (one_hot(side, (*CLASSES, "z")) for side in zip(*pairs, strict=True))
    return macro_f1(references * hypotheses, references, hypotheses)


def of(errors: np.ndarray, units: np.ndarray, **how: int) -> tuple[float, float]:
    return intervals.interval(intervals.ratio(errors, units), len(units), **how)


def test_intervals_are_seeded_and_shrink_with_more_utterances() -> None:
    generator = np.random.default_rng(0)
    words = generator.integers(3, 12, 4000).astype(float)
    errors = generator.binomial(words.astype(int), 0.3).astype(float)
    low, high = of(errors, words)
    assert low < errors.sum() / words.sum() < high
    assert of(errors, words) == (low, high)
    assert of(errors, words, seed=1) != (low, high)
    few = of(errors[:250], words[:250])
    assert (few[1] - few[0]) / (high - low) == pytest.approx(4, rel=0.25)  # sqrt(4000 / 250)


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(200):
        words = generator.integers(3, 12, 120).astype(float)
        errors = generator.binomial(words.astype(int), 0.3).astype(float)
        low, high = of(errors, words, resamples=400, seed=trial)
        hits += low <= 0.3 <= high
    assert 180 <= hits <= 199


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    generator = np.random.default_rng(2)
    words = np.full(300, 10.0)
    hard = generator.uniform(0, 10, 300).round()  # utterances differ far more than the systems
    a, b = hard, hard + (generator.uniform(size=300) < 0.3)
    difference = intervals.difference(intervals.ratio(a, words), intervals.ratio(b, words), 300)
    assert difference.diff == pytest.approx((a - b).sum() / words.sum())
    assert difference.low < difference.diff < difference.high < 0
    low, high = of(a, words)
    assert low < b.sum() / words.sum() < high
    swapped = intervals.difference(intervals.ratio(b, words), intervals.ratio(a, words), 300)
    assert swapped.diff == -difference.diff


@given(PAIRS)
def test_macro_f1_is_the_mean_over_the_classes_that_are_there(pairs: list[tuple[str, str]]) -> None:
    assert intervals.value(f1(pairs), len(pairs)) == pytest.approx(f1_by_definition(pairs))


@given(PAIRS, st.data())
def test_a_weight_is_as_many_copies(pairs: list[tuple[str, str]], data: st.DataObject) -> None:
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(pairs), max_size=len(pairs)).filter(any))
    copies = [pair for pair, n in zip(pairs, times, strict=True) for _ in range(n)]
    assert f1(pairs)(np.array([times], float))[0] == pytest.approx(f1_by_definition(copies))


def test_the_equal_error_rate_is_where_misses_equal_alarms() -> None:
    def rate(targets: list[float], others: list[float], times: list[int] | None = None) -> float:
        scores = np.array([*targets, *others])[:, None]
        flags = np.arange(len(scores))[:, None] < len(targets)
        weights = np.ones((1, len(scores))) if times is None else np.array([times], float)
        return float(equal_error_rate(scores, flags)(weights)[0])

    assert rate([3, 4], [1, 2]) == 0.0 and rate([1, 2], [3, 4]) == 1.0
    assert rate([1, 2, 3, 5], [0, 0, 4, 1.5]) == pytest.approx(0.25)
    assert rate([1, 1], [1, 1]) == pytest.approx(0.5)  # nothing tells them apart
    assert rate([3, 0], [1, 2], [1, 0, 1, 1]) == 0.0  # the missed one is not drawn
    assert np.isnan(rate([3], [1], [0, 1]))


@given(st.lists(st.floats(-5, 5), min_size=4, max_size=40), st.integers(0, 100))
def test_the_equal_error_rate_looks_at_order_only(scores: list[float], seed: int) -> None:
    values = np.round(np.array(scores), 1)[:, None]
    flags = np.random.default_rng(seed).random(values.shape) < 0.5
    flags[:2] = [[True], [False]]
    ones = np.ones((1, len(values)))
    found = equal_error_rate(values, flags)(ones)
    assert 0 <= found[0] <= 1
    np.testing.assert_allclose(equal_error_rate(3 * values + 1, flags)(ones), found)
    np.testing.assert_allclose(equal_error_rate(-values, ~flags)(ones), found, atol=1e-9)


def test_detection_scores_are_log_odds_even_where_the_classifier_is_sure() -> None:
    posteriors = np.array([[0.2, 0.3, 0.5]])
    np.testing.assert_allclose(detection_scores(np.log(posteriors)), np.log(posteriors / (1 - posteriors)))
    sure = detection_scores(np.array([[0.0, -30.0, -40.0], [0.0, -50.0, -60.0]]))
    assert sure[0, 0] == pytest.approx(30.0, abs=0.001) and sure[1, 0] > sure[0, 0]


def test_differences_are_paired() -> None:
    generator = np.random.default_rng(0)
    hard = generator.random(300)
    better, worse = hard, np.minimum(hard + (generator.random(300) < 0.1), 1)
    ones = np.ones(300)
    found = intervals.difference(intervals.ratio(better, ones), intervals.ratio(worse, ones), 300)
    low, high = intervals.interval(intervals.ratio(better, ones), 300)
    assert found.low < found.diff < found.high < 0 and found.high - found.low < (high - low) / 1.5
    assert intervals.difference(f1([("a", "a")]), f1([("a", "a")]), 1) == (0, 0, 0)


def test_a_statistic_that_is_undefined_has_an_undefined_interval() -> None:
    undefined = intervals.ratio([1.0, 2.0], [0.0, 0.0])
    assert np.isnan(intervals.interval(undefined, 2)).all()
    assert np.isnan(intervals.difference(undefined, undefined, 2)).all()
    assert intervals.figure(float("nan")) == "-" == intervals.span([float("nan")] * 2)
    assert intervals.figure(0.5) == "0.500" and intervals.span((0.25, 0.5), "+.1f", " to ") == "+0.2 to +0.5"
