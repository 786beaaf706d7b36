"""Profiles through codecs of numcodecs: their error, and the same values through the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featcache import Cache
from featcache import codec as codecs
from featcache.errors import UsageError
from tests.featcache.codec.examples import speech_like
from tests.helpers import make_cache

ROWS = {f"u{n}": speech_like(n, n) for n in (5, 64, 100)}


@pytest.mark.parametrize("profile", ["blosc:step=0.25", "pcodec:step=0.25", "bitround:4"])
def test_errors_are_within_what_was_asked_and_the_store_gives_them_back(profile: str, tmp_path: Path) -> None:
    name, parameters = codecs.parse_profile(profile)
    cache = Cache.open(make_cache(tmp_path / "cache", ROWS, profile=name, parameters=parameters))
    for key, row in ROWS.items():
        found = cache.read(key)
        error = np.abs(found.astype(np.float64) - row)
        if name == "bitround":
            assert (error <= np.abs(row) * 2.0**-5).all() and error.max() > 0
        else:
            assert (error <= cache.codec.calibration["step"] * 0.501).all()
        np.testing.assert_array_equal(cache.read(key, ["1"]), found[:, [1]])


def test_what_lies_beyond_the_codes_is_cut_and_counted() -> None:
    codec = codecs.build("blosc", 1, 3, 20, {"step": 0.5}, codecs.profile_class("blosc").fit([ROWS["u100"]], {}))
    row = ROWS["u5"].copy()
    row[2, 1, 1] = -1e30
    encoded = codec.encode(row)
    assert encoded.saturated == 1 and encoded.planes["codes"][2, 1, 1] == -32767


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("blosc", {"step": 0}),
        ("blosc", {"step": float("nan")}),
        ("blosc", {"step": 1e300}),
        ("pcodec", {"step": 1e-6}),
        ("pcodec", {"step": "x"}),
        ("blosc", {"keep": 3}),
        ("bitround", {"keep": 30}),
        ("bitround", {"keep": float("nan")}),
        ("residual", {"step": 1e40}),
    ],
)
def test_wrong_parameters_are_refused(name: str, parameters: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=name):
        codecs.profile_class(name).fit([ROWS["u5"]], parameters)


@pytest.mark.parametrize("bits", ["nan", "inf", "3.7", "0"])
def test_bits_that_cannot_be_kept_are_refused_as_they_are_written(bits: str) -> None:
    with pytest.raises(UsageError, match=r"profile bitround: keep = .* is no number of bits from 1 to 23"):
        codecs.parse_profile(f"bitround:{bits}")


@pytest.mark.parametrize("profile", ["fp16", "int8", "blosc", "bitround:1", "bitround:3"])
def test_values_next_to_the_limit_of_float32_stay_finite(profile: str) -> None:
    largest = np.finfo(np.float32).max
    row = np.tile(np.array([largest, -largest, 3.4e38, -1.0], np.float32)[:, None, None], (1, 2, 4))
    name, parameters = codecs.parse_profile(profile)
    kind = codecs.profile_class(name)
    codec = codecs.build(name, kind.version, 2, 4, parameters, kind.fit([row], parameters))
    encoded = codec.encode(row)
    found = codec.decode_row(codec.complete(encoded.planes), len(row))
    assert np.isfinite(found).all() and (np.sign(found[:3]) == np.sign(row[:3])).all()
    if name != "blosc":  # whose steps are of deviations, which have a limit of their own
        np.testing.assert_allclose(found[:3], row[:3], rtol=0.26)


@pytest.mark.parametrize("profile", ["residual:step=100", "residual:step=1", "residual:nmse=0.1", "blosc:step=0.5"])
@pytest.mark.parametrize("signs", [False, True])
def test_differences_beyond_float32_neither_spoil_a_calibration_nor_become_infinite(profile: str, signs: bool) -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((300, 2, 8))
    rows = np.clip((np.sign(values) * 3 if signs else values) * 1e38, -3.3e38, 3.3e38).astype(np.float32)
    name, parameters = codecs.parse_profile(profile)
    kind = codecs.profile_class(name)
    calibration = kind.fit([rows[:100], rows[100:]], parameters)
    assert all(np.isfinite(array).all() for array in calibration.values())
    codec = codecs.build(name, kind.version, 2, 8, parameters, calibration)
    found = codec.decode_row(codec.encode(rows).planes, len(rows))
    assert np.isfinite(found).all()
    if "100" not in profile:
        assert np.square((found.astype(np.float64) - rows) / 1e38).mean() < 1
