"""Values that are kept as they are: found, placed, and put over what was decoded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache.codec import exact
from featcache.errors import CorruptCacheError

TAPS, CHANNELS = 3, 4
VALUES = st.sampled_from([0.0, -0.0, 1.5, np.inf, -np.inf, np.nan, 1e-45])


@st.composite
def kept_rows(draw: st.DrawFn) -> list[tuple[int, dict[tuple[int, int, int], float]]]:
    """Rows: how many frames each has, and what is kept of it."""
    rows = []
    for frames in draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)):
        places = st.tuples(st.integers(0, frames - 1), st.integers(0, TAPS - 1), st.integers(0, CHANNELS - 1))
        rows.append((frames, draw(st.dictionaries(places, VALUES, max_size=5)) if frames else {}))
    return rows


@given(kept_rows(), st.booleans(), st.sampled_from([(0, 1, 2), (2,), (1, 0)]))
def test_kept_values_replace_decoded_ones_and_nothing_else(
    rows: list[tuple[int, dict[tuple[int, int, int], float]]], whole: bool, taps: tuple[int, ...]
) -> None:
    planes, marks, out, expected = [], [], [], []
    for frames, values in rows:
        at = np.array(sorted(values), np.int64).reshape(-1, 3)
        kept = exact.gather((frames, TAPS, CHANNELS), at, np.array([values[tuple(i)] for i in at.tolist()], np.float32))
        marked = np.zeros(frames, np.bool_)
        plane = np.zeros((frames, TAPS, CHANNELS), np.float32)
        if kept is not None:
            marked[kept.frames] = True
            plane = kept.plane
        held = slice(0, frames) if whole else slice(exact.needed(marked).start, exact.needed(marked).stop)
        planes.append(plane[held])
        marks.append(marked)
        decoded = np.full((frames, TAPS, CHANNELS), 7.0, np.float32)
        out.append(torch.from_numpy(decoded[:, list(taps)]))
        for place, value in values.items():
            decoded[place] = value
        expected.append(decoded[:, list(taps)])
    exact.overlay(out, torch.from_numpy(np.concatenate(planes)), np.concatenate(marks), taps)
    for found, wanted in zip(out, expected, strict=True):
        np.testing.assert_array_equal(found.numpy(), wanted)


def test_a_marked_frame_of_which_nothing_is_kept_is_an_error() -> None:
    kept = exact.gather((3, TAPS, CHANNELS), np.array([[1, 0, 2]]), np.array([9.0], np.float32))
    assert kept is not None
    out = [torch.zeros((3, 1, CHANNELS))]
    exact.overlay(out, torch.from_numpy(kept.plane), np.array([False, True, False]), [2])
    assert not out[0].any(), "another tap's"
    with pytest.raises(CorruptCacheError, match="not where they belong.*run the command again"):
        exact.overlay(out, torch.from_numpy(kept.plane), np.array([False, True, True]), [0])


@given(st.lists(st.booleans(), max_size=20))
def test_what_is_needed_begins_and_ends_at_a_marked_frame(marks: list[bool]) -> None:
    found = exact.needed(np.array(marks, np.bool_))
    assert set(np.flatnonzero(marks)) <= set(found)
    if len(found):
        assert marks[found[0]] and marks[found[-1]]
