"""fp16 and int8: within their stated error for any finite input, whatever the other channels hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from featcache import codec as codecs
from featcache.errors import CacheError, UsageError

LARGE = float(np.float32(1e37))
finite = st.floats(-LARGE, LARGE, allow_nan=False, width=32)
rows = arrays(np.float32, st.tuples(st.integers(1, 6), st.just(2), st.integers(1, 5)), elements=finite)


def round_trip(codec: codecs.Codec, row: np.ndarray) -> tuple[np.ndarray, int]:
    encoded = codec.encode(row)
    planes = {name: torch.from_numpy(plane) for name, plane in encoded.planes.items()}
    for plane in codec.planes:
        assert encoded.planes[plane.name].shape == (len(row), *plane.frame_shape)
        assert encoded.planes[plane.name].dtype == np.dtype(plane.dtype)
    return codec.decode(planes, [len(row)], range(codec.taps)).numpy(), encoded.saturated


def fitted(profile: str, row: np.ndarray) -> codecs.Codec:
    kind = codecs.profile_class(profile)
    return codecs.build(profile, kind.version, row.shape[1], row.shape[2], {}, kind.fit([row], {}))


@given(rows)
def test_fp16_keeps_eleven_bits_of_each_channel(row: np.ndarray) -> None:
    decoded, saturated = round_trip(fitted("fp16", row), row)
    peak = np.abs(row).max(axis=0)
    # Half precision, or its smallest step at the channel's scale; float32 itself ends at 1e-45.
    bound = np.maximum(np.abs(row) * 2.0**-11, np.maximum(peak * 2.0**-31, 2e-38))
    assert saturated == 0 and (np.abs(decoded - row) <= bound).all()


@given(rows)
@example(np.array([[[3.6e-37], [0]], [[0], [0]]], np.float32))
def test_int8_errs_by_half_a_step_of_its_own_channel(row: np.ndarray) -> None:
    codec = fitted("int8", row)
    decoded, saturated = round_trip(codec, row)
    span = row.max(axis=0).astype(np.float64) - row.min(axis=0)
    step = np.maximum(span * 1.25 / 254, np.finfo(np.float32).tiny)
    slack = 1e-5 * np.abs(row).max(axis=0) + 2e-38
    assert saturated == 0 and (np.abs(decoded.astype(np.float64) - row) <= step * 0.501 + slack).all()


@pytest.mark.parametrize("profile", ["fp16", "int8"])
def test_values_beyond_the_calibration_saturate_and_are_counted(profile: str) -> None:
    rng = np.random.default_rng(0)
    row = rng.standard_normal((20, 2, 3)).astype(np.float32)
    codec = fitted(profile, row)
    loud = row.copy()
    loud[4, 1, 2] = -1e30
    decoded, saturated = round_trip(codec, loud)
    assert saturated == 1
    assert decoded[4, 1, 2] < row[:, 1, 2].min()
    quiet = np.ones(row.shape, bool)
    quiet[4, 1, 2] = False
    assert np.array_equal(decoded[quiet], round_trip(codec, row)[0][quiet])


def test_a_loud_channel_does_not_coarsen_its_neighbours() -> None:
    row = np.random.default_rng(1).standard_normal((50, 2, 3)).astype(np.float32)
    row[:, 0, 1] *= 1e36
    decoded, _ = round_trip(fitted("int8", row), row)
    assert np.abs(decoded - row)[:, :, [0, 2]].max() < 0.02


def test_an_unknown_profile_or_version_is_named() -> None:
    with pytest.raises(UsageError, match="'zip'.*fp16"):
        codecs.profile_class("zip")
    with pytest.raises(CacheError, match="fp16 version 99.*install"):
        codecs.build("fp16", 99, 1, 1, {}, {})
