"""Around the kernels of the `residual` profile: bytes of frames, both ways, and values kept exactly."""

from __future__ import annotations

import numba
import numpy as np

# Beside a symbol of up to 8 bits, that its code is beyond the limit. Numbers of several symbols keep it apart from
# the byte that they make, as `radix ** digits` is at most this.
FARTHER = 256
# Of up to five fields of two bits, the lowest that is not zero.
LOWEST = np.array([0] + [((fields & -fields).bit_length() - 1) // 2 for fields in range(1, 1 << 10)], np.uint8)


@numba.njit(nogil=True, cache=True)
def _symbols(codes: np.ndarray, t: int, limit: np.int32, out: np.ndarray, beyond: np.ndarray) -> None:
    """Symbols of the codes of a frame, 0 for 0, `FARTHER` more for those beyond the limit; and by how much they are."""
    channels = np.uintp(codes.shape[2])
    for tap in range(codes.shape[0]):
        first = np.uintp(tap) * channels
        for c in range(channels):
            k = np.int32(codes[tap, t, c])
            farther = np.int32(abs(k) > limit) * np.int32(FARTHER)
            k = min(max(k, -limit), limit)
            out[first + c] = np.uint16((2 * k - 1 if k > 0 else -2 * k) + farther)
        for c in range(channels):
            beyond[first + c] = np.int16(abs(np.int32(codes[tap, t, c])) - limit)


@numba.njit(nogil=True, cache=True)
def _group(symbols: np.ndarray, order: np.ndarray, radix: int, digits: int, out: np.ndarray) -> None:
    """Symbols in their order, `digits` of them a number. Written out, as a loop over digits is three times as slow."""
    s, o, r = symbols, order, np.uint32(radix)
    if digits == 1:
        for b in range(len(out)):
            out[b] = s[o[b]]
    elif digits == 2:
        for b in range(len(out)):
            out[b] = np.uint16(s[o[2 * b]] + r * s[o[2 * b + 1]])
    elif digits == 3:
        for b in range(len(out)):
            out[b] = np.uint16(s[o[3 * b]] + r * (s[o[3 * b + 1]] + r * s[o[3 * b + 2]]))
    else:
        for b in range(len(out)):
            high = s[o[5 * b + 2]] + r * (s[o[5 * b + 3]] + r * s[o[5 * b + 4]])
            out[b] = np.uint16(s[o[5 * b]] + r * (s[o[5 * b + 1]] + r * high))


@numba.njit(nogil=True, cache=True)
def _look(numbers: np.ndarray, counts: np.ndarray, marked: np.ndarray, before: np.ndarray) -> tuple[int, int]:
    """Which bytes hold codes beyond the limit, and how many codes before each are at it or beyond.

    Returns:
        how many codes there are of those, and how many such bytes. Found without a branch for each, as which they
        are cannot be foreseen.
    """
    reached, found = 0, 0
    for b in range(len(numbers)):
        number = numbers[b]
        marked[found] = b
        before[found] = reached
        found += int(number >= np.uint16(FARTHER))
        reached += int(counts[number & np.uint16(FARTHER - 1)])
    return reached, found


@numba.njit(nogil=True, cache=True)
def assemble(
    codes: np.ndarray,
    counts: np.ndarray,
    places: np.ndarray,
    order: np.ndarray,
    radix: int,
    header: int,
    body: int,
    out: np.ndarray,
) -> None:
    """Whole frames into `out` uint8 `(frames, bytes)`, as `featcache.codec.packing` describes them.

    Args:
        codes: int8 or int16 `(taps, frames, channels)`.
        counts, places: of `packing.at_limit`.
        order: uint32, position of each packed value among those of a frame, padded to whole bytes with their number.
    """
    limit = np.int32((radix - 1) // 2)
    digits = places.shape[1]
    taps, frames, channels = codes.shape
    # The last ones stay as they are: they are what padding packs.
    symbols = np.zeros(taps * channels + 1, np.uint16)
    beyond = np.zeros(taps * channels + 1, np.int16)
    numbers = np.empty(body, np.uint16)
    marked, before = np.empty(body + 1, np.int32), np.empty(body + 1, np.int32)
    for t in range(frames):
        _symbols(codes, t, limit, symbols, beyond)
        _group(symbols, order, radix, digits, numbers)
        for b in range(body):
            out[t, header + b] = np.uint8(numbers[b] & np.uint16(FARTHER - 1))
        reached, found = _look(numbers, counts, marked, before)
        tail = header + body
        large = tail + (reached + 3) // 4
        for n in range(found):
            b = marked[n]
            byte = out[t, header + b]
            for i in range(counts[byte]):
                size = np.int32(beyond[order[digits * b + places[byte, i]]])
                place = before[n] + i
                out[t, tail + (place >> 2)] |= np.uint8(min(size, 3) << (2 * (place & 3)))
                if size >= 3:
                    out[t, large] = np.uint8((size - 3) & 255)
                    out[t, large + 1] = np.uint8((size - 3) >> 8)
                    large += 2


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
def _fields(
    packed: np.ndarray, counts: np.ndarray, tail: np.ndarray, marked: np.ndarray, fields: np.ndarray
) -> tuple[int, int]:
    """What the tail says of each byte's codes at the limit, two bits each, where that is not nothing.

    Args:
        tail: uint8, filled up with zeros to hold two bits for every code.

    Returns:
        how many codes are at the limit, and how many bytes have more to say. As in `_look` without a branch.
    """
    reached, found = 0, 0
    for b in range(len(packed)):
        count = np.int32(counts[packed[b]])
        bits = np.int32(tail[reached >> 2]) | np.int32(tail[(reached >> 2) + 1]) << 8
        field = (bits >> np.int32(2 * (reached & 3))) & ((np.int32(1) << (2 * count)) - np.int32(1))
        marked[found] = b
        fields[found] = field
        found += int(field != 0)
        reached += int(count)
    return reached, found


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
    channels = np.uintp(out.shape[2])
    width = frames.shape[1] - header - body
    # Padding is written just behind a frame.
    codes = np.empty(values + 1, np.int16)
    tail = np.zeros(max(width, len(order) // 4) + 2, np.uint8)
    marked, fields = np.empty(body + 1, np.int32), np.empty(body + 1, np.int32)
    for t in range(len(frames)):
        packed = frames[t, header : header + body]
        for b in range(width):
            tail[b] = frames[t, header + body + b]
        _spread(packed, table, digits, order, codes)
        reached, found = _fields(packed, counts, tail, marked, fields)
        large = (reached + 3) // 4
        if large > width:
            return t
        for n in range(found):
            b, rest = marked[n], fields[n]
            while rest:
                i = np.int32(LOWEST[rest])
                size = (rest >> (2 * i)) & 3
                rest ^= size << (2 * i)
                if size == 3:
                    if large + 2 > width:
                        return t
                    size += np.int32(tail[large]) | np.int32(tail[large + 1]) << 8
                    large += 2
                place = order[digits * b + places[packed[b], i]]
                code = np.int32(codes[place])
                codes[place] = np.int16(code + size if code > 0 else code - size)
        # Not read in the loop, where nothing says that it stays as it is.
        here = at[t]
        for tap in range(len(out)):
            first = np.uintp(tap) * channels
            for c in range(channels):
                out[tap, here, c] = codes[first + c]
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
