"""What every profile would take is measured once, and agrees with what a cache of that profile takes."""

from __future__ import annotations

import numpy as np

from featcache import codec as codecs
from featcache.forecast import PROFILES, bits_per_value, forecast
from featcache.plan import make_plan
from featcache.sizes import predicted_bytes, profile_sizes
from featcache.spec import Forecast, Layout
from tests.featcache.codec.examples import speech_like
from tests.helpers import make_spec

ROWS = [speech_like(300, seed, 4, 64) for seed in range(24)]
OTHERS = [speech_like(300, seed, 4, 64) for seed in range(100, 108)]


def test_forecasts_hold_on_other_rows() -> None:
    found = forecast(codecs.Fits(ROWS), Layout())
    assert tuple(found) == PROFILES
    for text, guess in found.items():
        name, parameters = codecs.parse_profile(text)
        kind = codecs.profile_class(name)
        codec = codecs.build(name, kind.version, 4, 64, parameters, kind.fit(ROWS, parameters))
        assert abs(bits_per_value(codec, Layout(), OTHERS) / guess.bits_per_value - 1) < 0.1, text
    errors = [guess.nmse for guess in found.values()]
    # Listed from the finest to the coarsest.
    assert errors == sorted(errors) and errors[-1] < 0.5
    assert forecast(codecs.Fits([row.copy() for row in ROWS]), Layout()) == found


def test_errors_are_in_deviations_of_all_rows() -> None:
    rows = [row.copy() for row in ROWS[:10]]
    rows[1][:60, :, :16] *= 50  # a loud stretch that is not in the sample, which is every other row
    name, parameters = codecs.parse_profile("residual:1.0")
    kind = codecs.profile_class(name)
    fits = codecs.Fits(rows)
    calibration = fits(kind, parameters)
    codec = codecs.build(name, kind.version, 4, 64, parameters, calibration)
    errors = [
        (row - codec.decode_row(codec.encode(row).planes, len(row))) / calibration["deviation"] for row in rows[::2]
    ]
    worst = np.square(np.concatenate(errors), dtype=np.float64).mean(axis=(0, 2)).max()
    assert abs(forecast(fits, Layout())["residual:1.0"].nmse / worst - 1) < 0.02


def test_rows_that_say_nothing_are_forecast_too() -> None:
    constant = [np.full((5, 2, 3), 7, np.float32)]
    for guess in forecast(codecs.Fits(constant), Layout()).values():
        assert guess.bits_per_value > 0 and guess.nmse == 0


def test_sizes_are_of_the_whole_manifest_with_the_own_profile_first() -> None:
    calibration = codecs.profile_class("int8").fit(ROWS[:1], {})
    guesses = {"fp16": Forecast(bits_per_value=15, nmse=1e-7), "int8": Forecast(bits_per_value=7.9, nmse=1e-4)}
    spec = make_spec(4, 64, calibration, "int8").model_copy(update={"forecasts": guesses})
    samples = [16_000, 40 * 16_000, 0]
    sizes = profile_sizes(samples, spec)
    assert [size.profile for size in sizes] == ["int8", "fp16"]
    plan = make_plan(["a", "b", "c"], samples, spec, 256)
    # The own profile keeps what all of the calibration gave, not what a sample of it did.
    assert sizes[0].bits_per_value == spec.bits_per_value == 8.0 and sizes[0].nmse == 1e-4
    assert sizes[0].bytes == predicted_bytes(plan.total_frames, 3, spec, 8.0)
    old = spec.model_copy(update={"forecasts": {}})
    assert [size.profile for size in profile_sizes(samples, old)] == ["int8"]


def test_profiles_are_written_as_users_write_them() -> None:
    spec = make_spec(4, 64, {}, "fp16")
    for text in (*PROFILES, "residual", "residual:nmse=0.02", "bitround:keep=3"):
        name, parameters = codecs.parse_profile(text)
        assert spec.model_copy(update={"profile": name, "parameters": parameters}).profile_text == text
