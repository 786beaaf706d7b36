"""What the encoder of the `residual` profile does after quantisation: bytes of frames, and values kept exactly."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def _symbols(codes: np.ndarray, limit: np.int32, out: np.ndarray) -> int:
    """Codes to symbols, 0 for 0; returns how many lay beyond the limit."""
    beyond = 0
    for i in range(len(codes)):
        k = np.int32(codes[i])
        beyond += int(abs(k) > limit)
        k = min(max(k, -limit), limit)
        out[i] = np.uint8(2 * k - 1 if k > 0 else -2 * k)
    return beyond


@numba.njit(nogil=True, cache=True)
def _group(symbols: np.ndarray, order: np.ndarray, radix: int, digits: int, out: np.ndarray) -> None:
    """Symbols in their order, `digits` of them a byte. Written out, as a loop over digits is three times as slow."""
    s, o, r = symbols, order, np.uint32(radix)
    if digits == 1:
        for b in range(len(out)):
            out[b] = s[o[b]]
    elif digits == 2:
        for b in range(len(out)):
            out[b] = np.uint8(s[o[2 * b]] + r * s[o[2 * b + 1]])
    elif digits == 3:
        for b in range(len(out)):
            out[b] = np.uint8(s[o[3 * b]] + r * (s[o[3 * b + 1]] + r * s[o[3 * b + 2]]))
    else:
        for b in range(len(out)):
            high = s[o[5 * b + 2]] + r * (s[o[5 * b + 3]] + r * s[o[5 * b + 4]])
            out[b] = np.uint8(s[o[5 * b]] + r * (s[o[5 * b + 1]] + r * high))


@numba.njit(nogil=True, cache=True)
def assemble(
    codes: np.ndarray, order: np.ndarray, radix: int, digits: int, header: int, body: int, out: np.ndarray
) -> None:
    """Whole frames into `out` uint8 `(frames, bytes)`, as `featcache.codec.packing` describes them.

    Args:
        codes: int16 `(frames, values)`.
        order: uint32, position of each packed value, padded to whole bytes with `values`.
    """
    limit = np.int32((radix - 1) // 2)
    # The last one stays zero: it is what padding packs.
    symbols = np.zeros(codes.shape[1] + 1, np.uint8)
    for t in range(len(codes)):
        row = codes[t]
        beyond = _symbols(row, limit, symbols)
        _group(symbols, order, radix, digits, out[t, header : header + body])
        out[t, 1] = np.uint8(beyond)
        at = header + body
        if beyond:
            for i in range(len(row)):
                if abs(row[i]) > limit:
                    code = np.int32(row[i])
                    for byte in range(4):
                        out[t, at + byte] = np.uint8((i >> (8 * byte)) & 255)
                    out[t, at + 4] = np.uint8(code & 255)
                    out[t, at + 5] = np.uint8((code >> 8) & 255)
                    at += 6


@numba.njit(nogil=True, cache=True)
def squares(features: np.ndarray, decoded: np.ndarray, bound: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Mean squared errors in deviations, float64 `(frames, taps)`, of values that are within the bound.

    Args:
        features, decoded: float32 `(frames, taps, channels)`.
        bound, deviation: float32 `(taps, channels)`.
    """
    frames, taps, channels = features.shape
    out = np.zeros((frames, taps))
    for t in range(frames):
        for tap in range(taps):
            x, y, b, d = features[t, tap], decoded[t, tap], bound[tap], deviation[tap]
            total = 0.0
            for c in range(channels):
                error = abs(x[c] - y[c])
                if error <= b[c]:
                    total += float(error / d[c]) ** 2
            out[t, tap] = total / channels
    return out


@numba.njit(nogil=True, cache=True)
def _misses(x: np.ndarray, y: np.ndarray, bound: np.ndarray) -> int:
    count = 0
    for c in range(len(x)):
        count += int(not (abs(x[c] - y[c]) <= bound[c]))
    return count


@numba.njit(nogil=True, cache=True)
def keep_exact(
    features: np.ndarray, decoded: np.ndarray, bound: np.ndarray, whole: np.ndarray, out: np.ndarray
) -> np.ndarray:
    """Copy into `out` the values farther than `bound` from the truth, and all of the taps in `whole`.

    Zero marks what is not kept, so a zero that is has its sign bit set.

    Args:
        whole: bool `(frames, taps)`.
        out: float32 of the features' shape, zeros.

    Returns:
        bool `(frames,)`, whether anything of a frame is kept.
    """
    frames, taps, channels = features.shape
    marked = np.zeros(frames, np.bool_)
    for t in range(frames):
        for tap in range(taps):
            x, y, b = features[t, tap], decoded[t, tap], bound[tap]
            if not whole[t, tap] and _misses(x, y, b) == 0:
                continue
            marked[t] = True
            for c in range(channels):
                if whole[t, tap] or not (abs(x[c] - y[c]) <= b[c]):
                    out[t, tap, c] = x[c] if x[c] != 0 else np.float32(-0.0)
    return marked
