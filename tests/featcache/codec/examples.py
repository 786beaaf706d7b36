"""Rows that tests of profile `residual` code, and codecs that are fitted to such."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from featcache import codec as codecs
from featcache.codec.residual import Residual

TAPS, CHANNELS = 3, 20
FINITE = st.one_of(
    st.floats(-50, 50, width=32),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-40, 3.4e38, -3.4e38]),
)


def speech_like(frames: int, seed: int, taps: int = TAPS, channels: int = CHANNELS) -> np.ndarray:
    """Values that follow one another in time and over taps, float32 `(frames, taps, channels)`."""
    rng = np.random.default_rng(seed)
    x = np.zeros((frames + 1, taps, channels))
    noise = rng.standard_normal(x.shape)
    for t in range(1, frames + 1):
        x[t] = 0.8 * x[t - 1] + noise[t]
        for tap in range(1, taps):
            x[t, tap] += 0.5 * x[t, tap - 1]
    return (x[1:] * np.linspace(0.01, 30, channels) + np.linspace(-5, 5, channels)).astype(np.float32)


def build(parameters: dict[str, Any], rows: list[np.ndarray] | None = None) -> Residual:
    rows = rows or [speech_like(400, seed) for seed in range(3)]
    taps, channels = rows[0].shape[1:]
    calibration = Residual.fit(rows, parameters)
    made = codecs.build("residual", Residual.version, taps, channels, parameters, calibration)
    assert isinstance(made, Residual)
    return made
