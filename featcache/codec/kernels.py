"""Integer kernels of the `residual` profile: prediction, quantisation and their inverse, on one core.

All of them run over channels in the inner loop, which compilers turn into vector code, and release the
interpreter lock. `featcache.codec.device` computes the same integers with torch.

Reconstructions are int16 in units of `step / UNIT`. A prediction is

    (w0 * before + w1 * below + w2 * below_before + 2^(WEIGHT_BITS - 1)) >> WEIGHT_BITS

in int32, where `before` is the frame before, `below` the tap below, and what does not exist is zero. With
weights below 2^14 and reconstructions below 2^15, three products stay below 2^31.
"""

from __future__ import annotations

import numba
import numpy as np

# A reconstruction counts in these parts of a step.
UNIT_BITS = 6
UNIT = 1 << UNIT_BITS
# The largest reconstruction: 511.98 steps.
RANGE = 32767
WEIGHT_BITS = 12
WEIGHT_LIMIT = (1 << 14) - 1
# The smoother: five neighbours, weights below 4. Its sum keeps 24 bits, which float32 holds exactly.
SMOOTH_BITS = 11
SMOOTH_LIMIT = (1 << 13) - 1
SMOOTH_SHIFT = 8
# What one unit of a smoothed value is, in steps.
SMOOTHED_UNIT = float(2.0 ** (SMOOTH_SHIFT - SMOOTH_BITS - UNIT_BITS))


@numba.njit(nogil=True, cache=True)
def targets(features: np.ndarray, mean: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """What to code, int32 in units; `RANGE + 1` stands for all that lies beyond the range.

    Args:
        features: float32 `(frames, taps, channels)`.
        mean, inverse: float32 `(taps, channels)`; `inverse` is UNIT / step.
    """
    frames, taps, channels = features.shape
    out = np.empty(features.shape, np.int32)
    limit = np.float32(RANGE)
    for t in range(frames):
        for tap in range(taps):
            for c in range(channels):
                v = (features[t, tap, c] - mean[tap, c]) * inverse[tap, c]
                if abs(v) <= limit:
                    out[t, tap, c] = np.int32(np.rint(v))
                else:
                    out[t, tap, c] = RANGE + 1
    return out


# Loops over channels are kept to few arrays each: with more, compilers do not prove that rows are distinct
# within their budget of checks, and leave the loop scalar (measured: 110 against 1,200 million values/s).


@numba.njit(nogil=True, cache=True, inline="always")
def _predict(before: np.ndarray, below: np.ndarray, corner: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    w0, w1, w2 = weights[0], weights[1], weights[2]
    for c in range(len(out)):
        out[c] = (
            np.int32(w0[c]) * np.int32(before[c])
            + np.int32(w1[c]) * np.int32(below[c])
            + np.int32(w2[c]) * np.int32(corner[c])
            + np.int32(1 << (WEIGHT_BITS - 1))
        ) >> np.int32(WEIGHT_BITS)


@numba.njit(nogil=True, cache=True, inline="always")
def _update(predicted: np.ndarray, code: np.ndarray, centroid: np.ndarray, out: np.ndarray) -> None:
    for c in range(len(out)):
        k = np.int32(code[c])
        sign = np.int32(k > 0) - np.int32(k < 0)
        r = predicted[c] + k * np.int32(UNIT) - sign * np.int32(centroid[c])
        out[c] = np.int16(min(max(r, np.int32(-RANGE)), np.int32(RANGE)))


@numba.njit(nogil=True, cache=True, inline="always")
def _quantise(target: np.ndarray, predicted: np.ndarray, rounding: np.ndarray, largest: int, out: np.ndarray) -> None:
    for c in range(len(out)):
        e = target[c] - predicted[c]
        m = min((abs(e) + np.int32(rounding[c])) >> np.int32(UNIT_BITS), np.int32(largest))
        # What lies beyond the range is kept elsewhere, and does not disturb the prediction.
        m = np.int32(0) if target[c] > np.int32(RANGE) else m
        out[c] = np.int16(-m if e < 0 else m)


@numba.njit(nogil=True, cache=True)
def encode(
    target: np.ndarray,
    weights: np.ndarray,
    rounding: np.ndarray,
    centroid: np.ndarray,
    limit: int,
    escapes: int,
    escape_limit: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Codes int16 and reconstructions int16, both `(frames, taps, channels)`, of one row.

    Args:
        target: int32, from `targets`.
        weights: int16 `(taps, 3, channels)`.
        rounding: int16 `(taps, channels)`, what is added to a residual's size before it is cut to whole
            steps; UNIT / 2 rounds to the nearest, less makes a dead zone.
        centroid: int16 `(taps, channels)`, by how much a code other than 0 is moved towards 0.
        limit: the largest code; beyond it lie the first `escapes` codes of a frame, up to `escape_limit`.
    """
    frames, taps, channels = target.shape
    codes = np.zeros(target.shape, np.int16)
    rec = np.zeros((frames, taps, channels), np.int16)
    nothing = np.zeros(channels, np.int16)
    predicted = np.zeros(channels, np.int32)
    for t in range(frames):
        escaped = 0
        for tap in range(taps):
            before = rec[t - 1, tap] if t > 0 else nothing
            below = rec[t, tap - 1] if tap > 0 else nothing
            corner = rec[t - 1, tap - 1] if t > 0 and tap > 0 else nothing
            code = codes[t, tap]
            _predict(before, below, corner, weights[tap], predicted)
            _quantise(target[t, tap], predicted, rounding[tap], escape_limit, code)
            beyond = 0
            for c in range(channels):
                beyond += int(abs(code[c]) > limit)
            if escaped + beyond > escapes:
                for c in range(channels):
                    if abs(code[c]) > limit:
                        escaped += 1
                        if escaped > escapes:
                            code[c] = np.int16(limit if code[c] > 0 else -limit)
            else:
                escaped += beyond
            _update(predicted, code, centroid[tap], rec[t, tap])
    return codes, rec


@numba.njit(nogil=True, cache=True, inline="always")
def _unpack(packed: np.ndarray, table: np.ndarray, digits: int, order: np.ndarray, out: np.ndarray) -> None:
    """Codes of one frame in their places; `order` is padded to whole bytes, `out` to the padding's places."""
    if digits == 0:
        for i in range(len(order)):
            out[order[i]] = packed[i]
    elif digits == 1:
        for b in range(len(order)):
            out[order[b]] = table[packed[b], 0]
    elif digits == 2:
        for b in range(len(order) // 2):
            g = packed[b]
            out[order[2 * b]] = table[g, 0]
            out[order[2 * b + 1]] = table[g, 1]
    elif digits == 3:
        for b in range(len(order) // 3):
            g = packed[b]
            out[order[3 * b]] = table[g, 0]
            out[order[3 * b + 1]] = table[g, 1]
            out[order[3 * b + 2]] = table[g, 2]
    else:
        for b in range(len(order) // 5):
            g = packed[b]
            out[order[5 * b]] = table[g, 0]
            out[order[5 * b + 1]] = table[g, 1]
            out[order[5 * b + 2]] = table[g, 2]
            out[order[5 * b + 3]] = table[g, 3]
            out[order[5 * b + 4]] = table[g, 4]


@numba.njit(nogil=True, cache=True)
def reconstruct(
    packed: np.ndarray,
    table: np.ndarray,
    digits: int,
    order: np.ndarray,
    escapes: np.ndarray,
    first: np.ndarray,
    weights: np.ndarray,
    centroid: np.ndarray,
) -> np.ndarray:
    """Reconstructions int16 `(frames, taps, channels)` from packed codes.

    Args:
        packed: uint8 `(frames, bytes)`, or int16 `(frames, values)` where `digits` is 0.
        table: int8 `(256, digits)`, the codes that a byte stands for.
        order: uint32, position `tap * channels + channel` of each packed value, padded to whole bytes with
            positions beyond all taps.
        escapes: int32 `(escapes, 3)`: frame, position, code; sorted by frame.
        first: bool `(frames,)`, whether a row begins here.
        weights, centroid: as in `encode`, for the taps that are wanted: the lowest ones.
    """
    frames = len(packed)
    taps, _, channels = weights.shape
    rec = np.zeros((frames, taps, channels), np.int16)
    nothing = np.zeros(channels, np.int16)
    codes = np.zeros(int(order.max()) + 1, np.int16)
    predicted = np.zeros(channels, np.int32)
    at = 0
    for t in range(frames):
        _unpack(packed[t], table, digits, order, codes)
        while at < len(escapes) and escapes[at, 0] == t:
            codes[escapes[at, 1]] = np.int16(escapes[at, 2])
            at += 1
        begins = first[t] or t == 0
        for tap in range(taps):
            before = nothing if begins else rec[t - 1, tap]
            below = rec[t, tap - 1] if tap > 0 else nothing
            corner = nothing if begins or tap == 0 else rec[t - 1, tap - 1]
            _predict(before, below, corner, weights[tap], predicted)
            _update(predicted, codes[tap * channels : (tap + 1) * channels], centroid[tap], rec[t, tap])
    return rec


@numba.njit(nogil=True, cache=True)
def smooth(
    rec: np.ndarray,
    first: np.ndarray,
    smoother: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    taps: np.ndarray,
    out: np.ndarray,
) -> None:
    """Estimates of the features from reconstructions around them, into `out` float32 `(frames, len(taps), channels)`.

    Args:
        rec: int16 `(frames, taps or more, channels)`.
        first: bool `(frames,)`, whether a row begins here.
        smoother: int16 `(taps, 5, channels)`: weights of here, before, after, below, above.
        scale: float32 `(taps, channels)`, SMOOTHED_UNIT * step.
        mean: float32 `(taps, channels)`.
        taps: positions of the taps wanted.
    """
    frames, known, channels = rec.shape
    nothing = np.zeros(channels, np.int16)
    total = np.zeros(channels, np.int32)
    for t in range(frames):
        for i in range(len(taps)):
            tap = taps[i]
            here = rec[t, tap]
            before = nothing if first[t] or t == 0 else rec[t - 1, tap]
            after = rec[t + 1, tap] if t + 1 < frames and not first[t + 1] else nothing
            below = rec[t, tap - 1] if tap > 0 else nothing
            above = rec[t, tap + 1] if tap + 1 < known else nothing
            a0, a1, a2, a3, a4 = (
                smoother[tap, 0],
                smoother[tap, 1],
                smoother[tap, 2],
                smoother[tap, 3],
                smoother[tap, 4],
            )
            for c in range(channels):
                total[c] = (
                    np.int32(a0[c]) * np.int32(here[c])
                    + np.int32(a1[c]) * np.int32(before[c])
                    + np.int32(a2[c]) * np.int32(after[c])
                )
            for c in range(channels):
                total[c] += np.int32(a3[c]) * np.int32(below[c]) + np.int32(a4[c]) * np.int32(above[c])
            target, s, m = out[t, i], scale[tap], mean[tap]
            for c in range(channels):
                y = (total[c] + np.int32(1 << (SMOOTH_SHIFT - 1))) >> np.int32(SMOOTH_SHIFT)
                target[c] = np.float32(y) * s[c] + m[c]


@numba.njit(nogil=True, cache=True)
def pack(codes: np.ndarray, order: np.ndarray, radix: int, digits: int, out: np.ndarray) -> None:
    """Packed codes into `out` uint8 `(frames, bytes)`; what lies beyond the radix's limit is cut to it.

    Args:
        codes: int16 `(frames, values)`.
        order: int32, position of each packed value.
    """
    limit = (radix - 1) // 2
    symbols = np.zeros(out.shape[1] * digits, np.int32)
    for t in range(len(codes)):
        row = codes[t]
        for i in range(len(order)):
            k = min(max(np.int32(row[order[i]]), np.int32(-limit)), np.int32(limit))
            symbols[i] = 2 * k - 1 if k > 0 else -2 * k
        for b in range(out.shape[1]):
            group = np.int32(0)
            for d in range(digits - 1, -1, -1):
                group = group * np.int32(radix) + symbols[b * digits + d]
            out[t, b] = np.uint8(group)


@numba.njit(nogil=True, cache=True)
def misses(features: np.ndarray, decoded: np.ndarray, bound: np.ndarray) -> int:
    """How many decoded values are farther than `bound` `(taps, channels)` from the truth."""
    frames, taps, channels = features.shape
    count = 0
    for t in range(frames):
        for tap in range(taps):
            x, y, b = features[t, tap], decoded[t, tap], bound[tap]
            for c in range(channels):
                count += int(not (abs(x[c] - y[c]) <= b[c]))
    return count


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
        target: int32 `(frames, taps, channels)`; values beyond RANGE are left out.
        source: int32 or int16, of the same shape.
        gram: float64 `(taps, k, k, channels)`, lower triangle. cross: float64 `(taps, k, channels)`.
    """
    frames, taps, channels = target.shape
    count = len(frames_off)
    near = np.zeros((count, channels), np.float32)
    weight = np.zeros(channels, np.float32)
    x = np.zeros(channels, np.float32)
    for t in range(frames):
        for tap in range(taps):
            for k in range(count):
                tt, ll = t + frames_off[k], tap + taps_off[k]
                if 0 <= tt < frames and 0 <= ll < taps:
                    for c in range(channels):
                        near[k, c] = np.float32(source[tt, ll, c])
                else:
                    near[k, :] = 0
            for c in range(channels):
                weight[c] = np.float32(0) if target[t, tap, c] > RANGE else np.float32(1)
                x[c] = np.float32(target[t, tap, c]) * weight[c]
            for k in range(count):
                for c in range(channels):
                    cross[tap, k, c] += near[k, c] * x[c]
                for j in range(k + 1):
                    for c in range(channels):
                        gram[tap, k, j, c] += near[k, c] * near[j, c] * weight[c]
