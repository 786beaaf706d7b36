"""Batches: each row once, within the budget, little padding, and no cut that is cheaper."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featcache.batches import LAUNCHED_PRICES, PADDING_LIMIT, PRICES, _cheapest, batch_ends

SIZES = st.lists(st.integers(1, 480_000), min_size=1, max_size=60).map(lambda sizes: np.array(sorted(sizes)[::-1]))


def padded(sizes: np.ndarray, ends: np.ndarray) -> int:
    return sum(int(sizes[a]) * (b - a) for a, b in itertools.pairwise([0, *ends.tolist()]))


@given(SIZES, st.integers(1, 8_000_000), st.sampled_from([PRICES, LAUNCHED_PRICES]))
def test_padding_keeps_to_its_limit(sizes: np.ndarray, limit: int, prices: tuple[int, ...]) -> None:
    ends = batch_ends(sizes, limit, True, prices)
    assert ends[-1] == len(sizes) and (np.diff(ends) > 0).all()
    for a, b in itertools.pairwise([0, *ends.tolist()]):
        assert b - a == 1 or (b - a) * sizes[a] <= limit
    total = padded(sizes, ends)
    assert total - sizes.sum() <= PADDING_LIMIT * total


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30).map(lambda sizes: np.array(sorted(sizes)[::-1])))
def test_a_model_that_cannot_pad_gets_full_batches_of_one_length(sizes: np.ndarray) -> None:
    ends = batch_ends(sizes, 12, can_pad=False)
    assert padded(sizes, ends) == sizes.sum()
    fewest = sum(-(-int(n) // (12 // int(size))) for size, n in zip(*np.unique(sizes, return_counts=True), strict=True))
    assert len(ends) == fewest


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=9).map(lambda sizes: np.array(sorted(sizes)[::-1])),
    st.integers(1, 400),
    st.integers(0, 150),
)
def test_no_cut_is_cheaper(sizes: np.ndarray, limit: int, price: int) -> None:
    ends = _cheapest(sizes, limit, price, True)
    every = [
        np.array([*inner, len(sizes)])
        for n in range(len(sizes))
        for inner in itertools.combinations(range(1, len(sizes)), n)
    ]
    allowed = [
        e for e in every
        if all(b - a == 1 or (b - a) * sizes[a] <= limit for a, b in itertools.pairwise([0, *e.tolist()]))
    ]  # fmt: skip
    assert padded(sizes, ends) + price * len(ends) == min(padded(sizes, e) + price * len(e) for e in allowed)


def test_few_passes_rather_than_no_padding() -> None:
    sizes = np.array([1000] * 50 + [990] * 50)
    assert batch_ends(sizes, 100_000, can_pad=True).tolist() == [100]
    # Far shorter ones go by themselves.
    assert batch_ends(np.array([100_000] * 3 + [1000] * 3), 1_000_000, can_pad=True).tolist() == [3, 6]
