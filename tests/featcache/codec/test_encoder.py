"""Encoding with torch on a device: the bytes of the CPU's kernels, and what is left to the CPU."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import codec as codecs
from featcache.codec.encoder import Coded
from featcache.codec.residual import Residual
from tests.featcache.codec.examples import FINITE, build, speech_like

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]
SHAPES = [(1, 1), (3, 20), (4, 7), (2, 150)]
PARAMETERS: list[dict[str, Any]] = [
    {"step": 0.05}, {"step": 0.5}, {"step": 4.0}, {"bits": 1.0, "last": 3}, {"nmse": 0.1}, {"nmse": 0.003},
]  # fmt: skip


@cache
def codec_of(shape: tuple[int, int], number: int) -> Residual:
    return build(PARAMETERS[number], [speech_like(200, seed, *shape) for seed in range(2)])


def begun(codec: codecs.Codec, rows: list[np.ndarray], device: str) -> list[codecs.EncodedRow]:
    return [row.rest() for row in codec.begin_encoding([torch.from_numpy(row).to(device) for row in rows])()]


def assert_same(found: codecs.EncodedRow, expected: codecs.EncodedRow) -> None:
    assert found.saturated == expected.saturated
    assert found.planes.keys() == expected.planes.keys()
    for name, plane in expected.planes.items():
        assert found.planes[name].dtype == plane.dtype and found.planes[name].shape == plane.shape
        # Not as numbers: NaN is what it was, and zeros keep their sign.
        assert found.planes[name].tobytes() == plane.tobytes(), name
    for name, frames in found.held.items():
        assert frames.tolist() == [n for n, frame in enumerate(found.planes[name]) if any(frame.tobytes())]


def coded(codec: Residual, rows: list[np.ndarray]) -> list[Coded | None]:
    """What the device made of rows; None where it leaves them to the CPU."""
    rests = [row.rest for row in codec.begin_encoding([torch.from_numpy(row) for row in rows])()]
    assert all(isinstance(rest, partial) for rest in rests)
    return [rest.args[0] if isinstance(rest.args[0], Coded) else None for rest in rests]  # type: ignore[attr-defined]


@st.composite
def rows_of(draw: st.DrawFn, codec: Residual) -> np.ndarray:
    """A row like the calibration's, louder perhaps, with strays and perhaps a frame that its tail has no room for."""
    frames = draw(st.integers(0, 40))
    row = speech_like(frames, draw(st.integers(0, 99)), codec.taps, codec.channels)
    row *= np.float32(draw(st.sampled_from([0, 1, 1, 1.5, 20, 1e4])))
    strays = st.one_of(FINITE, st.sampled_from([np.nan, np.inf, -np.inf, 1e4]))
    for _ in range(draw(st.integers(0, 3)) if frames else 0):
        place = tuple(draw(st.integers(0, size - 1)) for size in row.shape)
        row[place] = draw(strays)
    if frames and draw(st.booleans()):
        loud = draw(st.sampled_from([5, 100, 300, 1e5]))
        row[draw(st.integers(0, frames - 1))] = codec.calibration["mean"] + loud * codec.calibration["deviation"]
    return row


@pytest.mark.parametrize("device", DEVICES)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_a_device_gives_the_bytes_of_the_kernels(device: str, data: st.DataObject) -> None:
    codec = codec_of(data.draw(st.sampled_from(SHAPES)), data.draw(st.integers(0, len(PARAMETERS) - 1)))
    rows = data.draw(st.lists(rows_of(codec), max_size=5))
    found = begun(codec, rows, device)
    assert len(found) == len(rows)
    for row, encoded in zip(rows, found, strict=True):
        assert_same(encoded, codec.encode(row))


@pytest.mark.parametrize("device", DEVICES)
def test_views_of_a_padded_batch_are_encoded_as_rows(device: str) -> None:
    codec = codec_of((3, 20), 1)
    batch = torch.stack([torch.from_numpy(speech_like(50, seed)) for seed in range(3)]).to(device)
    views = [batch[row, 2:end] for row, end in enumerate((50, 7, 31))]
    for view, row in zip(views, codec.begin_encoding(views)(), strict=True):
        assert_same(row.rest(), codec.encode(view.cpu().numpy()))


@pytest.mark.parametrize("device", DEVICES)
def test_batches_that_were_begun_together_do_not_mix(device: str) -> None:
    """Of each some rows have strays, one has none, one no frame, and one is the CPU's."""
    codec = codec_of((3, 20), 1)
    batches = [[speech_like(n + 7 * batch, n, 3, 20) for n in (30, 12, 0, 25, 9)] for batch in range(3)]
    for number, rows in enumerate(batches):
        rows[0][5 + number, 1, number] = rows[0][-1, 2, 19] = rows[3][0, 0, 0] = 1e6 + number
        rows[4] *= 1e5
    on_device = [[torch.from_numpy(row).to(device) for row in rows] for rows in batches]
    ends = [codec.begin_encoding(rows) for rows in on_device]
    for rows, end in zip(batches, ends, strict=True):
        found = [row.rest() for row in end()]
        assert [bool(row.held) for row in found] == [True, False, False, True, True]
        for row, expected in zip(found, rows, strict=True):
            assert_same(row, codec.encode(expected))


def test_ordinary_rows_cross_as_small_codes_alone() -> None:
    codec = codec_of((3, 20), 1)
    rows = [speech_like(n, n) for n in (1, 30, 80)]
    found = [made for made in coded(codec, rows) if made is not None]
    assert len(found) == 3 and all(made.codes.dtype == np.int8 and not len(made.at) for made in found)


@pytest.mark.parametrize("code", [127, -127, 128, -128])
def test_a_row_with_codes_beyond_int8_crosses_as_int16(code: int) -> None:
    codec = codec_of((3, 20), 1)
    row = np.repeat(codec.calibration["mean"][None], 4, axis=0)
    # Nothing comes before it that could predict it.
    row[0, 0, 5] += np.float32(code) * codec.calibration["step"][0, 5]
    [made] = coded(codec, [row])
    assert made is not None and made.codes[0, 0, 5] == code
    assert made.codes.dtype == (np.int8 if abs(code) < 128 else np.int16)


def test_values_beyond_the_bound_cross_with_their_places() -> None:
    codec = codec_of((3, 20), 1)
    row = speech_like(40, 5)
    row[30, 2, 1], row[7, 1, 3] = 1e30, np.nan
    [made] = coded(codec, [row])
    assert made is not None
    places = made.at.tolist()
    assert [7, 1, 3] in places and [30, 2, 1] in places and len(places) < 20
    np.testing.assert_array_equal(made.exact, row[tuple(made.at.T)])


def test_what_a_device_cannot_decide_or_make_small_is_left_to_the_cpu() -> None:
    codec, bounded = codec_of((3, 20), 1), codec_of((3, 20), 4)
    ordinary, crowded, broken = (speech_like(40, 3) for _ in range(3))
    # Every code of a frame is large, and none is beyond the range.
    crowded[20] = codec.calibration["mean"] + 100 * codec.calibration["deviation"]
    broken[:] = np.nan
    assert [made is None for made in coded(codec, [ordinary, crowded, broken, ordinary])] == [False, True, True, False]
    assert [made is None for made in coded(bounded, [speech_like(200, 0), ordinary * np.float32(4)])] == [False, True]


def test_a_profile_without_a_way_leaves_all_to_the_cpu() -> None:
    rows = [speech_like(n, n) for n in (5, 20)]
    codec = codecs.build("int8", 1, 3, 20, {}, codecs.profile_class("int8").fit(rows, {}))
    for row, encoded in zip(rows, begun(codec, rows, "cpu"), strict=True):
        assert_same(encoded, codec.encode(row))
