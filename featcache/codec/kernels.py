"""Integer kernels of the `residual` profile: prediction, quantisation and their inverse, on one core.

All of them run over channels in the inner loop, which compilers turn into vector code, and release the
interpreter lock. `featcache.codec.device` computes the same integers with torch.

Reconstructions are int16 in units of `step / UNIT`. A prediction is, in int32,

    ((own * before + 2^(WEIGHT_BITS - 1)) >> WEIGHT_BITS)
        + ((w0 * below + w1 * below_before + 2^(BELOW_BITS - 1)) >> BELOW_BITS)
        + ((mixed + 2^(shift - 1)) >> shift)

where `before` is the frame before, `below` the same channel of the tap below, in this frame and the one before, and
`mixed` a product with a matrix (`featcache.codec.mixing`) of a tap's inputs: the few numbers that sum up all channels
of the tap below, in both frames, and the codes of those channels of the tap itself, in this frame, that are coded
before (`prediction`). What does not exist is zero.

A row in work lies tap by tap, `(taps, frames, channels)`, so that what a kernel goes through is end to end in memory.
Framed reconstructions are `(1 + taps + 1, 1 + frames, channels)`: a tap of zeros below and above, in each a frame of
zeros before the first.
"""

from __future__ import annotations

import numba
import numpy as np

from featcache.codec.arithmetic import BELOW_BITS, BEYOND, LARGEST, RANGE, SMOOTH_SHIFT, UNIT, UNIT_BITS, WEIGHT_BITS


@numba.njit(nogil=True, cache=True)
def targets(features: np.ndarray, mean: np.ndarray, inverse: np.ndarray, out: np.ndarray) -> np.ndarray:
    """What to code, in units; `BEYOND` stands for all that lies beyond the range.

    Args:
        features: float32 `(frames, taps, channels)`.
        mean, inverse: float32 `(taps, channels)`; `inverse` is UNIT / step.
        out: int16 `(taps, frames, channels)`, which is returned.
    """
    frames, taps, channels = features.shape
    limit = np.float32(RANGE)
    for t in range(frames):
        for tap in range(taps):
            source, m, scale, here = features[t, tap], mean[tap], inverse[tap], out[tap, t]
            for c in range(channels):
                v = (source[c] - m[c]) * scale[c]
                if abs(v) <= limit:
                    here[c] = np.int16(np.rint(v))
                else:
                    here[c] = BEYOND
    return out


# Loops over channels are kept to few arrays each: with more, compilers do not prove that rows are distinct
# within their budget of checks, and leave the loop scalar (measured: 110 against 1,200 million values/s).


@numba.njit(nogil=True, cache=True)
def from_below(below: np.ndarray, near: np.ndarray, out: np.ndarray) -> None:
    """What the same channel of the tap below adds to a tap's predictions, int32 `(frames, channels)` into `out`.

    Args:
        below: framed reconstructions of the tap below.
        near: int16 `(3, channels)`, of this tap: weights of the frame before, and of the tap below in this frame and
            the one before.
    """
    w0, w1 = near[1], near[2]
    for t in range(len(out)):
        here, before, total = below[t + 1], below[t], out[t]
        for c in range(len(total)):
            both = np.int32(w0[c]) * np.int32(here[c]) + np.int32(w1[c]) * np.int32(before[c])
            total[c] = (both + np.int32(1 << (BELOW_BITS - 1))) >> np.int32(BELOW_BITS)


@numba.njit(nogil=True, cache=True)
def add_mixed(mixed: np.ndarray, low: int, shift: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """Add to `out` what a product says of the channels from `low` on.

    Args:
        mixed: int32 `(frames, channels of a group)`.
        shift, half: int32 `(channels,)`: by how many bits it is shifted to units, and what is added to round it.
    """
    width = mixed.shape[1]
    shift, half = shift[low : low + width], half[low : low + width]
    for t in range(len(mixed)):
        source, total = mixed[t], out[t, low : low + width]
        for c in range(width):
            total[c] += (source[c] + half[c]) >> shift[c]


@numba.njit(nogil=True, cache=True)
def narrow(rec: np.ndarray, shift: int, out: np.ndarray) -> None:
    """A tap as it is handed to products: int8 `(frames, 2 * channels)`, beside each frame the one before.

    Args:
        rec: framed reconstructions of it.
        shift: they are counted in `2 ** shift` units, and cut at 127 of them.
    """
    half = np.int32((1 << shift) >> 1)
    channels = rec.shape[1]
    for t in range(len(out)):
        source, here = rec[t + 1], out[t, :channels]
        for c in range(channels):
            q = (np.int32(source[c]) + half) >> np.int32(shift)
            here[c] = np.int8(min(max(q, np.int32(-127)), np.int32(127)))
        if t:
            out[t, channels:] = out[t - 1, :channels]
        else:
            out[t, channels:] = 0


@numba.njit(nogil=True, cache=True)
def narrow_sums(sums: np.ndarray, shift: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """The summary of a tap as it is handed to products, int8, into the first columns of `out`; `sums` is int32."""
    for t in range(len(sums)):
        source, here = sums[t], out[t, : sums.shape[1]]
        for i in range(len(source)):
            q = (source[i] + half[i]) >> shift[i]
            here[i] = np.int8(min(max(q, np.int32(-127)), np.int32(127)))


@numba.njit(nogil=True, cache=True)
def narrow_codes(codes: np.ndarray, low: int, high: int, shift: int, out: np.ndarray) -> None:
    """Codes of channels of a tap as they are handed to products, int8, into the columns of `out` that are theirs.

    Args:
        codes: int16 `(frames, channels)`.
        shift: codes are counted in `2 ** -shift`, and cut at 127 of them.
        out: `(frames, anything + channels)`.
    """
    rank = out.shape[1] - codes.shape[1]
    for t in range(len(codes)):
        source, here = codes[t, low:high], out[t, rank + low : rank + high]
        for c in range(high - low):
            k = np.int32(source[c]) << np.int32(shift)
            here[c] = np.int8(min(max(k, np.int32(-127)), np.int32(127)))


# Loops over channels are kept to few arrays each: with more, compilers do not prove that rows are distinct
# within their budget of checks, and leave the loop scalar (measured: 110 against 1,200 million values/s).


@numba.njit(nogil=True, cache=True)
def _predict(now: np.ndarray, own: np.ndarray, added: np.ndarray, out: np.ndarray) -> None:
    for c in range(len(out)):
        past = (np.int32(own[c]) * now[c] + np.int32(1 << (WEIGHT_BITS - 1))) >> np.int32(WEIGHT_BITS)
        out[c] = past + added[c]


@numba.njit(nogil=True, cache=True)
def _quantise(target: np.ndarray, predicted: np.ndarray, rounding: np.ndarray, largest: int, out: np.ndarray) -> None:
    for c in range(len(out)):
        e = np.int32(target[c]) - predicted[c]
        m = min((abs(e) + np.int32(rounding[c])) >> np.int32(UNIT_BITS), np.int32(largest))
        # What lies beyond the range is kept elsewhere, and does not disturb the prediction.
        m = np.int32(0) if target[c] == np.int16(BEYOND) else m
        out[c] = np.int16(-m if e < 0 else m)


@numba.njit(nogil=True, cache=True)
def _update(predicted: np.ndarray, code: np.ndarray, centroid: np.ndarray, now: np.ndarray, out: np.ndarray) -> None:
    for c in range(len(out)):
        k = np.int32(code[c])
        sign = np.int32(k > 0) - np.int32(k < 0)
        r = predicted[c] + k * np.int32(UNIT) - sign * np.int32(centroid[c])
        now[c] = min(max(r, np.int32(-RANGE)), np.int32(RANGE))
        out[c] = np.int16(now[c])


@numba.njit(nogil=True, cache=True)
def _within(code: np.ndarray, limit: int, spent: int, budget: int) -> int:
    """Cut codes for which a frame's tail has no room; returns what is spent then, in quarters of a byte."""
    for c in range(len(code)):
        size = abs(np.int32(code[c])) - limit
        if size >= 0:
            cost = 1 if size < 3 else 9
            if spent + cost > budget:
                code[c] = np.int16(limit - 1 if code[c] > 0 else 1 - limit)
            else:
                spent += cost
    return spent


@numba.njit(nogil=True, cache=True)
def encode_channels(
    target: np.ndarray,
    added: np.ndarray,
    low: int,
    high: int,
    own: np.ndarray,
    rounding: np.ndarray,
    centroid: np.ndarray,
    limit: int,
    budget: int,
    spent: np.ndarray,
    codes: np.ndarray,
    rec: np.ndarray,
) -> None:
    """Codes and reconstructions of channels `low` to `high` of a tap of a row, into `codes` and `rec`.

    Args:
        target: int16 `(frames, channels)`, of `targets`.
        added: int32 `(frames, channels)`, what all but the frame before adds to predictions.
        own: int16 `(channels,)`, weight of the frame before.
        rounding: int16 `(channels,)`, what is added to a residual's size before it is cut to whole steps;
            UNIT / 2 rounds to the nearest, less makes a dead zone.
        centroid: int16 `(channels,)`, by how much a code other than 0 is moved towards 0.
        limit: the largest code that is packed; of codes from it on the tail says more.
        budget: the room for that, a frame, in quarters of a byte. `spent` int32 `(frames,)` is what those before used.
        codes: int16 `(frames, channels)`. rec: framed reconstructions of the tap.
    """
    own, rounding, centroid = own[low:high], rounding[low:high], centroid[low:high]
    predicted = np.zeros(high - low, np.int32)
    now = np.zeros(high - low, np.int32)
    for t in range(len(target)):
        code = codes[t, low:high]
        _predict(now, own, added[t, low:high], predicted)
        _quantise(target[t, low:high], predicted, rounding, LARGEST, code)
        ordinary, large = 0, 0
        for c in range(high - low):
            ordinary += int(abs(code[c]) >= limit)
            large += int(abs(code[c]) >= limit + 3)
        cost = ordinary + 8 * large
        if spent[t] + cost > budget:
            spent[t] = _within(code, limit, spent[t], budget)
        else:
            spent[t] += cost
        _update(predicted, code, centroid, now, rec[t + 1, low:high])


@numba.njit(nogil=True, cache=True)
def decode_channels(
    codes: np.ndarray, added: np.ndarray, gaps: np.ndarray, own: np.ndarray, centroid: np.ndarray, rec: np.ndarray
) -> None:
    """The inverse of `encode_channels` for all channels of a tap, with its arguments.

    Rows may be laid end to end with a frame between them: bool `(frames,)` `gaps`, which come out as zeros.
    """
    predicted = np.zeros(codes.shape[1], np.int32)
    now = np.zeros(codes.shape[1], np.int32)
    for t in range(len(codes)):
        if gaps[t]:
            now[:] = 0
            rec[t + 1] = 0
        else:
            _predict(now, own, added[t], predicted)
            _update(predicted, codes[t], centroid, now, rec[t + 1])


@numba.njit(nogil=True, cache=True)
def _smooth(
    rec: np.ndarray,
    tap: int,
    t: int,
    smoother: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    total: np.ndarray,
    out: np.ndarray,
) -> None:
    """Estimates of one frame of a tap, `(channels,)`; `smoother` `(5, channels)`, scale and mean are the tap's."""
    here, before, after = rec[tap + 1, t + 1], rec[tap + 1, t], rec[tap + 1, t + 2 if t + 2 < rec.shape[1] else 0]
    below, above = rec[tap, t + 1], rec[tap + 2, t + 1]
    a0, a1, a2, a3, a4 = smoother[0], smoother[1], smoother[2], smoother[3], smoother[4]
    for c in range(len(total)):
        total[c] = (
            np.int32(a0[c]) * np.int32(here[c])
            + np.int32(a1[c]) * np.int32(before[c])
            + np.int32(a2[c]) * np.int32(after[c])
        )
    for c in range(len(total)):
        total[c] += np.int32(a3[c]) * np.int32(below[c]) + np.int32(a4[c]) * np.int32(above[c])
    for c in range(len(total)):
        y = (total[c] + np.int32(1 << (SMOOTH_SHIFT - 1))) >> np.int32(SMOOTH_SHIFT)
        out[c] = np.float32(y) * scale[c] + mean[c]


@numba.njit(nogil=True, cache=True)
def smooth(
    rec: np.ndarray,
    places: np.ndarray,
    smoother: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    taps: np.ndarray,
    out: np.ndarray,
) -> None:
    """Estimates of the features of rows from their framed reconstructions.

    Args:
        places: int64 `(frames,)`, which frames of `rec`, but for the first, they are.
        smoother: int16 `(taps, 5, channels)`: weights of here, before, after, below, above.
        scale: float32 `(taps, channels)`, SMOOTHED_UNIT * step.
        mean: float32 `(taps, channels)`.
        taps: positions of the taps wanted.
        out: float32 `(frames, len(taps), channels)`.
    """
    total = np.empty(mean.shape[1], np.int32)
    for i in range(len(taps)):
        tap = taps[i]
        for t in range(len(out)):
            _smooth(rec, tap, places[t], smoother[tap], scale[tap], mean[tap], total, out[t, i])


@numba.njit(nogil=True, cache=True)
def all_within(
    rec: np.ndarray,
    smoother: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    features: np.ndarray,
    bound: np.ndarray,
) -> bool:
    """Whether what `smooth` makes of a row is nowhere farther from it than `bound`; from NaN it is.

    Args:
        features: float32 `(frames, taps, channels)`. bound: float32 `(taps, channels)`.
    """
    frames, taps, channels = features.shape
    total = np.empty(channels, np.int32)
    estimate = np.empty(channels, np.float32)
    for tap in range(taps):
        reach = bound[tap]
        for t in range(frames):
            _smooth(rec, tap, t, smoother[tap], scale[tap], mean[tap], total, estimate)
            value, missed = features[t, tap], 0
            for c in range(channels):
                missed += int(not (abs(value[c] - estimate[c]) <= reach[c]))
            if missed:
                return False
    return True
