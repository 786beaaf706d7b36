"""What each view makes of samples: as long as planned, the same every time, and what its name says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.augment import augment
from featcache.views import LIMITS, View, parse


def number(name: str) -> st.SearchStrategy[str]:
    low, high = (round(1000 * limit) for limit in LIMITS[name])
    return st.integers(low, high).filter(lambda n: (name, n) != ("speed", 1000)).map(lambda n: f"{n / 1000:g}")


VIEWS = (
    st.lists(st.sampled_from(sorted(LIMITS)), min_size=1, max_size=3, unique=True)
    .flatmap(lambda names: st.tuples(*(number(name).map(f"{name}={{}}".format) for name in names)))
    .map(",".join)
)
KINDS = ("noise", "silence", "constant", "one sample", "tiny")


def recording(kind: str, samples: int, level: float = 1.0) -> np.ndarray:
    made = np.zeros(samples, np.float32)
    if kind == "constant":
        made[:] = level
    elif kind == "one sample" and samples:
        made[samples // 2] = level
    elif kind == "tiny":
        made[:] = 1e-45
    elif kind == "noise":
        made[:] = level * np.random.default_rng(samples).uniform(-1, 1, samples)
    return made


def make(
    text: str, samples: int, kind: str = "noise", level: float = 1.0, row: str = "u", start: int = 0
) -> np.ndarray:
    view = parse(text)
    return augment(recording(kind, view.source(samples), level), view, samples, row, start)


@settings(max_examples=100)
@given(VIEWS, st.integers(2, 4000), st.sampled_from(KINDS), st.sampled_from([1e-6, 0.1, 1.0, 3.0, 1e30]))
def test_any_view_of_anything_is_finite_as_long_as_planned_and_never_beyond_1(
    text: str, samples: int, kind: str, level: float
) -> None:
    made = make(text, samples, kind, level)
    assert made.dtype == np.float32 and made.shape == (samples,)
    assert np.isfinite(made).all() and np.abs(made).max() <= 1
    assert np.array_equal(made, make(text, samples, kind, level))
    if kind == "silence":
        assert not made.any()


@given(st.integers(0, 10**9), number("speed"))
def test_the_samples_of_a_view_follow_from_those_of_the_recording(samples: int, speed: str) -> None:
    """Both ways, by no more than the rounding: the resampler's own length never differs by more than one."""
    view = parse(f"speed={speed}")
    source = view.source(samples)
    assert abs(source - samples * float(speed)) <= 0.5 + 1e-6
    resampled = (2 * source * 16_000 + view.rate) // (2 * view.rate)
    assert abs(resampled - samples) <= 1
    assert View(()).source(samples) == samples


@settings(max_examples=40)
@given(st.integers(-10, 60), st.integers(1, 20_000))
def test_noise_has_the_level_that_it_says(decibels: int, samples: int) -> None:
    # So quiet that nothing is scaled down; in float64 the noise would be exact.
    speech = recording("noise", samples, 1e-3)
    noise = make(f"noise={decibels}", samples, "noise", 1e-3).astype(np.float64) - speech
    found = 10 * math.log10(np.square(speech, dtype=np.float64).mean() / np.square(noise).mean())
    assert found == pytest.approx(decibels, abs=0.05)


def test_noise_falls_by_3_decibels_an_octave() -> None:
    noise = make("noise=0", 320_000, "constant", 0.1) - 0.1
    power = np.abs(np.fft.rfft(noise)) ** 2
    hertz = np.fft.rfftfreq(len(noise), 1 / 16_000)
    octaves = [power[(hertz >= low) & (hertz < 2 * low)].mean() for low in (100, 200, 400, 800, 1600, 3200)]
    falls = 10 * np.log10(np.array(octaves[:-1]) / octaves[1:])
    assert np.abs(falls - 3.01).max() < 0.7, falls


def test_noise_is_another_in_each_row_and_window_and_a_room_another_in_each_row() -> None:
    noises = [make("noise=10", 2000, "constant", 0.1, row, start) for row, start in (("a", 0), ("b", 0), ("a", 9))]
    rooms = [make("reverb=0.1", 2000, "one sample", 0.1, row, start) for row, start in (("a", 0), ("b", 0), ("a", 9))]
    for made in noises, rooms[:2]:
        for i, one in enumerate(made):
            assert all(np.abs(one - other).max() > 1e-3 for other in made[:i])
    assert np.array_equal(rooms[0], rooms[2])


@pytest.mark.parametrize("seconds", [0.1, 0.4, 1.0])
def test_a_room_begins_with_the_direct_sound_and_falls_by_60_decibels_in_its_time(seconds: float) -> None:
    impulse = np.zeros(20_000, np.float32)
    impulse[0] = 1
    room = augment(impulse, parse(f"reverb={seconds:g}"), len(impulse), "u").astype(np.float64)
    assert room[0] == pytest.approx(math.sqrt(0.5), abs=1e-6) and np.square(room).sum() == pytest.approx(1, abs=1e-3)
    # Schroeder's backward integration of what is behind the direct sound, from 5 to 25 dB below its beginning
    left = 10 * np.log10(np.cumsum(np.square(room[1:])[::-1])[::-1] + 1e-30)
    times = [int(np.argmax(left < left[0] - fall)) / 16_000 for fall in (5, 25)]
    assert 3 * (times[1] - times[0]) == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize("speed", [0.9, 1.1])
def test_speed_changes_tempo_and_pitch(speed: float) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    samples = round(16_000 / speed)
    made = augment(tone, parse(f"speed={speed:g}"), samples, "u")
    peak = np.abs(np.fft.rfft(made * np.hanning(samples))).argmax() * 16_000 / samples
    assert peak == pytest.approx(1000 * speed, abs=2)


@pytest.mark.parametrize(
    ("text", "samples"),
    [
        ("speed=0.9", (-0.500000, -0.353553, -0.000000, 0.353553, 0.500000)),
        ("noise=15", (-0.102073, -0.441906, 0.026718, 0.469405, -0.092071)),
        ("reverb=0.4", (-0.180650, -0.438047, 0.158774, 0.436450, -0.161298)),
        ("speed=1.1,noise=20,reverb=0.2", (0.835351, -0.586860, -0.108584, 0.684242, -0.877388)),
    ],
)
def test_a_rule_is_never_changed_under_its_name(text: str, samples: tuple[float, ...]) -> None:
    """Caches hold views by their names alone; a better rule takes a new name."""
    view = parse(text)
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(view.source(8000)) / 16_000).astype(np.float32)
    made = augment(tone, view, 8000, "golden")
    assert made[1000:8000:1500].tolist() == pytest.approx(samples, abs=1e-5)
