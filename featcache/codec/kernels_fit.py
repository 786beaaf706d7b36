"""The normal equations behind predictor and smoother of the `residual` profile, on one core."""

from __future__ import annotations

import numba
import numpy as np

from featcache.codec.arithmetic import BEYOND


@numba.njit(nogil=True, cache=True)
def accumulate(
    target: np.ndarray,
    source: np.ndarray,
    frames_off: np.ndarray,
    taps_off: np.ndarray,
    gram: np.ndarray,
    cross: np.ndarray,
) -> None:
    """Add one row to normal equations: the target from its neighbours in `source`.

    Neighbour k of `(t, tap)` is `(t + frames_off[k], tap + taps_off[k])`, zero where there is none.

    Args:
        target: int16 `(taps, frames, channels)`; those that are BEYOND are left out.
        source: int32 or int16, of the same shape.
        gram: float64 `(taps, k, k, channels)`, lower triangle. cross: float64 `(taps, k, channels)`.
    """
    taps, frames, channels = target.shape
    count = len(frames_off)
    near = np.zeros((count, channels), np.float32)
    weight = np.zeros(channels, np.float32)
    x = np.zeros(channels, np.float32)
    for tap in range(taps):
        for t in range(frames):
            for k in range(count):
                tt, ll = t + frames_off[k], tap + taps_off[k]
                if 0 <= tt < frames and 0 <= ll < taps:
                    for c in range(channels):
                        near[k, c] = np.float32(source[ll, tt, c])
                else:
                    near[k, :] = 0
            for c in range(channels):
                weight[c] = np.float32(0) if target[tap, t, c] == BEYOND else np.float32(1)
                x[c] = np.float32(target[tap, t, c]) * weight[c]
            for k in range(count):
                for c in range(channels):
                    cross[tap, k, c] += near[k, c] * x[c]
                for j in range(k + 1):
                    for c in range(channels):
                        gram[tap, k, j, c] += near[k, c] * near[j, c] * weight[c]


@numba.njit(nogil=True, cache=True)
def gaps(target: np.ndarray, codes: np.ndarray, rec: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many codes of each channel are not 0, and by how much all of them end farther from 0 than the targets.

    Args:
        target, codes: int16 `(frames, channels)`; targets that are BEYOND are left out.
        rec: int16 `(frames or more, channels)`, reconstructions, where `places` int64 `(frames,)` are the frames.

    Returns:
        int64 `(channels,)` both.
    """
    channels = target.shape[1]
    used, farther = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    for t in range(len(target)):
        here = places[t]
        for c in range(channels):
            counts = np.int32(target[t, c] != BEYOND)
            sign = counts * (np.int32(codes[t, c] > 0) - np.int32(codes[t, c] < 0))
            used[c] += abs(sign)
            farther[c] += sign * (np.int32(rec[here, c]) - np.int32(target[t, c]))
    return used, farther


@numba.njit(nogil=True, cache=True)
def count_codes(codes: np.ndarray, limit: int) -> np.ndarray:
    """How often each channel has each code, int64 `(codes, taps, channels)`; those beyond `limit` count as it.

    Args:
        codes: int8 or int16 `(taps, frames, channels)`.
    """
    taps, frames, channels = codes.shape
    counts = np.zeros((2 * limit + 1, taps, channels), np.int64)
    for tap in range(taps):
        for t in range(frames):
            for c in range(channels):
                code: int = codes[tap, t, c]
                counts[min(max(code, -limit), limit) + limit, tap, c] += 1
    return counts
