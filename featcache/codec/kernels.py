"""Integer kernels of the `residual` profile: prediction, quantisation and their inverse, on one core.

All of them run over channels in the inner loop, which compilers turn into vector code, and release the
interpreter lock. `featcache.codec.device` computes the same integers with torch.

Reconstructions are int16 in units of `step / UNIT`. A prediction is

    (w0 * before + w1 * below + w2 * below_before + 2^(WEIGHT_BITS - 1)) >> WEIGHT_BITS

in int32, where `before` is the frame before, `below` the tap below, and what does not exist is zero. With
weights below 2^14 and reconstructions below 2^15, three products stay below 2^31.

Framed reconstructions are `(1 + frames, 1 + taps + 1, channels)`: a frame of zeros before the first, a tap of
zeros below and above.
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


@numba.njit(nogil=True, cache=True)
def _predict(before: np.ndarray, below: np.ndarray, corner: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    w0, w1, w2 = weights[0], weights[1], weights[2]
    for c in range(len(out)):
        out[c] = (
            np.int32(w0[c]) * np.int32(before[c])
            + np.int32(w1[c]) * np.int32(below[c])
            + np.int32(w2[c]) * np.int32(corner[c])
            + np.int32(1 << (WEIGHT_BITS - 1))
        ) >> np.int32(WEIGHT_BITS)


@numba.njit(nogil=True, cache=True)
def _update(predicted: np.ndarray, code: np.ndarray, centroid: np.ndarray, out: np.ndarray) -> None:
    for c in range(len(out)):
        k = np.int32(code[c])
        sign = np.int32(k > 0) - np.int32(k < 0)
        r = predicted[c] + k * np.int32(UNIT) - sign * np.int32(centroid[c])
        out[c] = np.int16(min(max(r, np.int32(-RANGE)), np.int32(RANGE)))


@numba.njit(nogil=True, cache=True)
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
    """Codes int16 `(frames, taps, channels)` and framed reconstructions of one row.

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
    rec = np.zeros((frames + 1, taps + 2, channels), np.int16)
    predicted = np.zeros(channels, np.int32)
    for t in range(frames):
        escaped = 0
        for tap in range(taps):
            code = codes[t, tap]
            _predict(rec[t, tap + 1], rec[t + 1, tap], rec[t, tap], weights[tap], predicted)
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
            _update(predicted, code, centroid[tap], rec[t + 1, tap + 1])
    return codes, rec


@numba.njit(nogil=True, cache=True)
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
def _smooth(
    frame: np.ndarray,
    past: np.ndarray,
    future: np.ndarray,
    smoother: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    taps: np.ndarray,
    total: np.ndarray,
    out: np.ndarray,
) -> None:
    """Estimates of one frame, from it and those around it, `(1 + taps + 1, channels)` each."""
    channels = len(total)
    for i in range(len(taps)):
        tap = taps[i]
        here, before, after = frame[tap + 1], past[tap + 1], future[tap + 1]
        below, above = frame[tap], frame[tap + 2]
        a = smoother[tap]
        a0, a1, a2, a3, a4 = a[0], a[1], a[2], a[3], a[4]
        for c in range(channels):
            total[c] = (
                np.int32(a0[c]) * np.int32(here[c])
                + np.int32(a1[c]) * np.int32(before[c])
                + np.int32(a2[c]) * np.int32(after[c])
            )
        for c in range(channels):
            total[c] += np.int32(a3[c]) * np.int32(below[c]) + np.int32(a4[c]) * np.int32(above[c])
        target, s, m = out[i], scale[tap], mean[tap]
        for c in range(channels):
            y = (total[c] + np.int32(1 << (SMOOTH_SHIFT - 1))) >> np.int32(SMOOTH_SHIFT)
            target[c] = np.float32(y) * s[c] + m[c]


@numba.njit(nogil=True, cache=True)
def smooth(rec: np.ndarray, smoother: np.ndarray, scale: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Estimates of the features of one row, float32 `(frames, taps, channels)`, from its framed reconstructions.

    Args:
        smoother: int16 `(taps, 5, channels)`: weights of here, before, after, below, above.
        scale: float32 `(taps, channels)`, SMOOTHED_UNIT * step.
        mean: float32 `(taps, channels)`.
    """
    frames = len(rec) - 1
    out = np.empty((frames, *mean.shape), np.float32)
    total = np.empty(mean.shape[1], np.int32)
    taps = np.arange(len(mean))
    for t in range(frames):
        _smooth(rec[t + 1], rec[t], rec[t + 2 if t + 1 < frames else 0], smoother, scale, mean, taps, total, out[t])
    return out


@numba.njit(nogil=True, cache=True)
def decode(
    packed: np.ndarray,
    table: np.ndarray,
    digits: int,
    order: np.ndarray,
    escapes: np.ndarray,
    first: np.ndarray,
    weights: np.ndarray,
    centroid: np.ndarray,
    smoother: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    taps: np.ndarray,
) -> np.ndarray:
    """Features float32 `(frames, len(taps), channels)` of rows laid end to end, from packed codes.

    Three frames of reconstructions are held at a time, so that they stay in the cache nearest to the core.

    Args:
        packed: uint8 `(frames, bytes)`, or int16 `(frames, values)` where `digits` is 0.
        table: int8 `(256, digits)`, the codes that a byte stands for.
        order: uint32, position `tap * channels + channel` of each packed value, padded to whole bytes with
            positions beyond all taps.
        escapes: int32 `(escapes, 3)`: frame, position, code; sorted by frame.
        first: bool `(frames,)`, whether a row begins here.
        weights, centroid: as in `encode`, for the taps up to one above the highest wanted.
        smoother, scale, mean: as in `smooth`.
        taps: positions of the taps wanted.
    """
    frames = len(packed)
    depth, _, channels = weights.shape
    out = np.empty((frames, len(taps), channels), np.float32)
    # Frames t - 2, t - 1 and t in turns; the last one stays zero.
    rec = np.zeros((4, depth + 2, channels), np.int16)
    codes = np.zeros(int(order.max()) + 1, np.int16)
    buffer = np.zeros(channels, np.int32)
    at = 0
    for t in range(frames):
        _unpack(packed[t], table, digits, order, codes)
        while at < len(escapes) and escapes[at, 0] == t:
            codes[escapes[at, 1]] = np.int16(escapes[at, 2])
            at += 1
        past, now = rec[3 if first[t] else (t + 2) % 3], rec[t % 3]
        for tap in range(depth):
            _predict(past[tap + 1], now[tap], past[tap], weights[tap], buffer)
            _update(buffer, codes[tap * channels : (tap + 1) * channels], centroid[tap], now[tap + 1])
        if t > 0:
            before = rec[3 if first[t - 1] else (t + 1) % 3]
            after = rec[3 if first[t] else t % 3]
            _smooth(rec[(t + 2) % 3], before, after, smoother, scale, mean, taps, buffer, out[t - 1])
    if frames:
        before = rec[3 if first[frames - 1] else (frames + 1) % 3]
        _smooth(rec[(frames - 1) % 3], before, rec[3], smoother, scale, mean, taps, buffer, out[frames - 1])
    return out
