"""Around the kernels of the `residual` profile: bytes of frames, both ways, and values kept exactly."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def _symbols(codes: np.ndarray, limit: np.int32, out: np.ndarray, beyond: np.ndarray) -> int:
    """Codes to symbols, 0 for 0, and by how much each is beyond the limit; returns how many are at it or beyond."""
    reached = 0
    for i in range(len(codes)):
        k = np.int32(codes[i])
        size = abs(k)
        reached += int(size >= limit)
        beyond[i] = np.int16(size - limit)
        k = min(max(k, -limit), limit)
        out[i] = np.uint8(2 * k - 1 if k > 0 else -2 * k)
    return reached


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
def _tail(beyond: np.ndarray, order: np.ndarray, reached: int, sizes: np.ndarray, out: np.ndarray) -> None:
    """How far the codes at the limit lie beyond it, in their order; `reached` of them."""
    at = 0
    # Without a branch for each: which codes are at the limit cannot be foreseen.
    for i in range(len(order)):
        size = beyond[order[i]]
        sizes[at] = size
        at += int(size >= 0)
    large = (reached + 3) // 4
    for i in range(reached):
        size = sizes[i]
        out[i >> 2] |= np.uint8(min(size, 3) << (2 * (i & 3)))
        if size >= 3:
            out[large] = np.uint8((size - 3) & 255)
            out[large + 1] = np.uint8((size - 3) >> 8)
            large += 2


@numba.njit(nogil=True, cache=True)
def assemble(
    codes: np.ndarray, order: np.ndarray, radix: int, digits: int, header: int, body: int, out: np.ndarray
) -> None:
    """Whole frames into `out` uint8 `(frames, bytes)`, as `featcache.codec.packing` describes them.

    Args:
        codes: int8 or int16 `(taps, frames, channels)`.
        order: uint32, position of each packed value among those of a frame, padded to whole bytes with their number.
    """
    limit = np.int32((radix - 1) // 2)
    taps, frames, channels = codes.shape
    # The last ones stay as they are: they are what padding packs.
    symbols = np.zeros(taps * channels + 1, np.uint8)
    beyond = np.full(taps * channels + 1, -1, np.int16)
    sizes = np.empty(len(order) + 1, np.int16)
    for t in range(frames):
        reached = 0
        for tap in range(taps):
            at = tap * channels
            reached += _symbols(codes[tap, t], limit, symbols[at:], beyond[at:])
        _group(symbols, order, radix, digits, out[t, header : header + body])
        if reached:
            _tail(beyond, order, reached, sizes, out[t, header + body :])


@numba.njit(nogil=True, cache=True)
def _spread(packed: np.ndarray, table: np.ndarray, digits: int, order: np.ndarray, out: np.ndarray) -> None:
    """Codes of one frame to their places. Written out, as in `_group`."""
    if digits == 1:
        for b in range(len(packed)):
            out[order[b]] = table[packed[b], 0]
    elif digits == 2:
        for b in range(len(packed)):
            g = packed[b]
            out[order[2 * b]] = table[g, 0]
            out[order[2 * b + 1]] = table[g, 1]
    elif digits == 3:
        for b in range(len(packed)):
            g = packed[b]
            out[order[3 * b]] = table[g, 0]
            out[order[3 * b + 1]] = table[g, 1]
            out[order[3 * b + 2]] = table[g, 2]
    else:
        for b in range(len(packed)):
            g = packed[b]
            out[order[5 * b]] = table[g, 0]
            out[order[5 * b + 1]] = table[g, 1]
            out[order[5 * b + 2]] = table[g, 2]
            out[order[5 * b + 3]] = table[g, 3]
            out[order[5 * b + 4]] = table[g, 4]


@numba.njit(nogil=True, cache=True)
def _reached(
    packed: np.ndarray, counts: np.ndarray, places: np.ndarray, digits: int, order: np.ndarray, out: np.ndarray
) -> int:
    """The positions of the codes at the limit, in their order, and how many. Without a branch for each."""
    found = 0
    for b in range(len(packed)):
        g = packed[b]
        for i in range(digits):
            out[found + i] = order[digits * b + places[g, i]]
        found += counts[g]
    return found


@numba.njit(nogil=True, cache=True)
def disassemble(
    frames: np.ndarray,
    table: np.ndarray,
    counts: np.ndarray,
    places: np.ndarray,
    order: np.ndarray,
    header: int,
    body: int,
    values: int,
    at: np.ndarray,
    out: np.ndarray,
) -> int:
    """The codes of whole frames, the inverse of `assemble`.

    Args:
        table, counts, places: of `packing.table` and `packing.at_limit`.
        values: codes of a frame.
        at: int64 `(frames,)`, which frames of `out` they are.
        out: int16 `(taps, frames or more, channels)`, of the lowest taps.

    Returns:
        the first frame whose tail says what no encoder writes, or -1.
    """
    digits = table.shape[1]
    channels = out.shape[2]
    reached = np.zeros(len(order) + digits, np.uint32)
    # Padding is written just behind a frame.
    codes = np.empty(values + 1, np.int16)
    for t in range(len(frames)):
        packed, tail = frames[t, header : header + body], frames[t, header + body :]
        _spread(packed, table, digits, order, codes)
        found = _reached(packed, counts, places, digits, order, reached)
        large = (found + 3) // 4
        if large > len(tail):
            return t
        for b in range(large):
            byte = np.int32(tail[b])
            if byte == 0:
                continue
            for i in range(4):
                size = (byte >> (2 * i)) & 3
                if size and 4 * b + i < found:
                    if size == 3:
                        if large + 2 > len(tail):
                            return t
                        size += np.int32(tail[large]) | np.int32(tail[large + 1]) << 8
                        large += 2
                    code = np.int32(codes[reached[4 * b + i]])
                    codes[reached[4 * b + i]] = np.int16(code + size if code > 0 else code - size)
        for tap in range(len(out)):
            out[tap, at[t]] = codes[tap * channels : (tap + 1) * channels]
    return -1


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
