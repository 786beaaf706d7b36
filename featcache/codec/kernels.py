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

How the loops are written is measured. Each over channels has few arrays: with more, compilers do not prove that they
are distinct within their budget of checks, and leave it scalar (a tenth of the speed). Frames are indexed where they
are used, and not cut out first: a view takes numba 10 ns, a frame of a group of channels 60. Where channels do not
begin with the first, they are counted unsigned, as numba would look at each for being negative.
"""

from __future__ import annotations

import numba
import numpy as np

from featcache.codec.arithmetic import BELOW_BITS, BEYOND, LARGEST, RANGE, SMOOTH_SHIFT, UNIT, UNIT_BITS, WEIGHT_BITS


@numba.njit(nogil=True, cache=True)
def targets(features: np.ndarray, mean: np.ndarray, inverse: np.ndarray, at: int, out: np.ndarray) -> np.ndarray:
    """What to code, in units; `BEYOND` stands for all that lies beyond the range.

    Args:
        features: float32 `(frames, taps, channels)`.
        mean, inverse: float32 `(taps, channels)`; `inverse` is UNIT / step.
        out: int16 `(taps, frames or more, channels)`, which is returned; they go to the frames from `at` on.
    """
    frames, taps, channels = features.shape
    limit = np.float32(RANGE)
    for t in range(frames):
        for tap in range(taps):
            for c in range(channels):
                v = (features[t, tap, c] - mean[tap, c]) * inverse[tap, c]
                if abs(v) <= limit:
                    out[tap, at + t, c] = np.int16(np.rint(v))
                else:
                    out[tap, at + t, c] = BEYOND
    return out


@numba.njit(nogil=True, cache=True)
def from_below(below: np.ndarray, near: np.ndarray, out: np.ndarray) -> None:
    """What the same channel of the tap below adds to a tap's predictions, int32 `(frames, channels)` into `out`.

    Args:
        below: framed reconstructions of the tap below.
        near: int16 `(3, channels)`, of this tap: weights of the frame before, and of the tap below in this frame and
            the one before.
    """
    for t in range(out.shape[0]):
        for c in range(out.shape[1]):
            here = np.int32(near[1, c]) * np.int32(below[t + 1, c])
            both = here + np.int32(near[2, c]) * np.int32(below[t, c])
            out[t, c] = (both + np.int32(1 << (BELOW_BITS - 1))) >> np.int32(BELOW_BITS)


@numba.njit(nogil=True, cache=True)
def add_mixed(mixed: np.ndarray, low: int, shift: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """Add to `out` what a product says of the channels from `low` on.

    Args:
        mixed: int32 `(frames, channels of a group)`.
        shift, half: int32 `(channels,)`: by how many bits it is shifted to units, and what is added to round it.
    """
    first = np.uintp(low)
    for t in range(mixed.shape[0]):
        for c in range(np.uintp(mixed.shape[1])):
            out[t, first + c] += (mixed[t, c] + half[first + c]) >> shift[first + c]


@numba.njit(nogil=True, cache=True)
def narrow(rec: np.ndarray, shift: int, out: np.ndarray) -> None:
    """A tap as it is handed to products: int8 `(frames, 2 * channels)`, beside each frame the one before.

    Args:
        rec: framed reconstructions of it.
        shift: they are counted in `2 ** shift` units, and cut at 127 of them.
    """
    half = np.int32((1 << shift) >> 1)
    channels = rec.shape[1]
    out[:1, channels:] = 0
    for t in range(len(out)):
        for c in range(channels):
            q = (np.int32(rec[t + 1, c]) + half) >> np.int32(shift)
            out[t, c] = np.int8(min(max(q, np.int32(-127)), np.int32(127)))
        if t + 1 < len(out):
            for c in range(channels):
                out[t + 1, channels + c] = out[t, c]


@numba.njit(nogil=True, cache=True)
def narrow_sums(sums: np.ndarray, shift: np.ndarray, half: np.ndarray, out: np.ndarray) -> None:
    """The summary of a tap as it is handed to products, int8, into the first columns of `out`; `sums` is int32."""
    for t in range(sums.shape[0]):
        for i in range(sums.shape[1]):
            q = (sums[t, i] + half[i]) >> shift[i]
            out[t, i] = np.int8(min(max(q, np.int32(-127)), np.int32(127)))


@numba.njit(nogil=True, cache=True)
def narrow_codes(codes: np.ndarray, low: int, high: int, shift: int, out: np.ndarray) -> None:
    """Codes of channels of a tap as they are handed to products, int8, into the columns of `out` that are theirs.

    Args:
        codes: int16 `(frames, channels)`.
        shift: codes are counted in `2 ** -shift`, and cut at 127 of them.
        out: `(frames, anything + channels)`.
    """
    rank = np.uintp(out.shape[1] - codes.shape[1])
    for t in range(len(codes)):
        for c in range(np.uintp(low), np.uintp(high)):
            k = np.int32(codes[t, c]) << np.int32(shift)
            out[t, rank + c] = np.int8(min(max(k, np.int32(-127)), np.int32(127)))


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
def _predict(
    own: np.ndarray, now: np.ndarray, added: np.ndarray, t: int, first: np.uintp, end: np.uintp, out: np.ndarray
) -> None:
    """The predictions of some channels in frame `t` into `out`; `now` is the frame before."""
    for c in range(first, end):
        past = (np.int32(own[c]) * now[c] + np.int32(1 << (WEIGHT_BITS - 1))) >> np.int32(WEIGHT_BITS)
        out[c] = past + added[t, c]


@numba.njit(nogil=True, cache=True)
def _reconstruct(
    predicted: np.ndarray,
    codes: np.ndarray,
    centroid: np.ndarray,
    t: int,
    first: np.uintp,
    end: np.uintp,
    now: np.ndarray,
    rec: np.ndarray,
) -> None:
    """What predictions and codes of frame `t` come to, into `now` and `rec`."""
    for c in range(first, end):
        k = np.int32(codes[t, c])
        sign = np.int32(k > 0) - np.int32(k < 0)
        r = predicted[c] + k * np.int32(UNIT) - sign * np.int32(centroid[c])
        now[c] = min(max(r, np.int32(-RANGE)), np.int32(RANGE))
        rec[t + 1, c] = np.int16(now[c])


@numba.njit(nogil=True, cache=True)
def encode_channels(
    target: np.ndarray,
    added: np.ndarray,
    gaps: np.ndarray,
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
    """Codes and reconstructions of channels `low` to `high` of a tap, into `codes` and `rec`.

    Args:
        target: int16 `(frames, channels)`, of `targets`.
        added: int32 `(frames, channels)`, what all but the frame before adds to predictions.
        gaps: bool `(frames,)`. Rows may be laid end to end with such a frame between them, which comes out as zeros.
        own: int16 `(channels,)`, weight of the frame before.
        rounding: int16 `(channels,)`, what is added to a residual's size before it is cut to whole steps;
            UNIT / 2 rounds to the nearest, less makes a dead zone.
        centroid: int16 `(channels,)`, by how much a code other than 0 is moved towards 0.
        limit: the largest code that is packed; of codes from it on the tail says more.
        budget: the room for that, a frame, in quarters of a byte. `spent` int32 `(frames,)` is what those before used.
        codes: int16 `(frames, channels)`. rec: framed reconstructions of the tap.
    """
    predicted = np.zeros(target.shape[1], np.int32)
    now = np.zeros(target.shape[1], np.int32)
    first, end = np.uintp(low), np.uintp(high)
    ordinary, large = np.int32(limit), np.int32(limit + 3)
    for t in range(len(target)):
        if gaps[t]:
            for c in range(first, end):
                now[c] = 0
                codes[t, c] = 0
                rec[t + 1, c] = 0
            continue
        _predict(own, now, added, t, first, end, predicted)
        for c in range(first, end):
            e = np.int32(target[t, c]) - predicted[c]
            m = min((abs(e) + np.int32(rounding[c])) >> np.int32(UNIT_BITS), np.int32(LARGEST))
            # What lies beyond the range is kept elsewhere, and does not disturb the prediction.
            m = np.int32(0) if target[t, c] == np.int16(BEYOND) else m
            codes[t, c] = np.int16(-m if e < 0 else m)
        cost = np.int32(0)
        for c in range(first, end):
            size = abs(np.int32(codes[t, c]))
            cost += np.int32(size >= ordinary) + (np.int32(size >= large) << np.int32(3))
        if spent[t] + cost > budget:
            spent[t] = _within(codes[t, low:high], limit, spent[t], budget)
        else:
            spent[t] += cost
        _reconstruct(predicted, codes, centroid, t, first, end, now, rec)


@numba.njit(nogil=True, cache=True)
def decode_channels(
    codes: np.ndarray, added: np.ndarray, gaps: np.ndarray, own: np.ndarray, centroid: np.ndarray, rec: np.ndarray
) -> None:
    """The inverse of `encode_channels` for all channels of a tap, with its arguments."""
    predicted = np.zeros(codes.shape[1], np.int32)
    now = np.zeros(codes.shape[1], np.int32)
    first, end = np.uintp(0), np.uintp(codes.shape[1])
    for t in range(len(codes)):
        if gaps[t]:
            for c in range(first, end):
                now[c] = 0
                rec[t + 1, c] = 0
            continue
        _predict(own, now, added, t, first, end, predicted)
        _reconstruct(predicted, codes, centroid, t, first, end, now, rec)


@numba.njit(nogil=True, cache=True)
def _around(rec: np.ndarray, tap: int, t: int, smoother: np.ndarray, total: np.ndarray) -> None:
    """The smoother's sums for frame `t` of a tap, int32 `(channels,)`."""
    after = t + 2 if t + 2 < rec.shape[1] else 0
    for c in range(len(total)):
        total[c] = (
            np.int32(smoother[tap, 0, c]) * np.int32(rec[tap + 1, t + 1, c])
            + np.int32(smoother[tap, 1, c]) * np.int32(rec[tap + 1, t, c])
            + np.int32(smoother[tap, 2, c]) * np.int32(rec[tap + 1, after, c])
        )
    for c in range(len(total)):
        below = np.int32(smoother[tap, 3, c]) * np.int32(rec[tap, t + 1, c])
        total[c] += below + np.int32(smoother[tap, 4, c]) * np.int32(rec[tap + 2, t + 1, c])


@numba.njit(nogil=True, cache=True)
def smooth(
    rec: np.ndarray,
    at: int,
    smoother: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    taps: np.ndarray,
    out: np.ndarray,
) -> None:
    """Estimates of the features of a row from framed reconstructions.

    Args:
        at: which frame of `rec`, but for the first of all, is its first.
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
            _around(rec, tap, at + t, smoother, total)
            for c in range(len(total)):
                y = (total[c] + np.int32(1 << (SMOOTH_SHIFT - 1))) >> np.int32(SMOOTH_SHIFT)
                out[t, i, c] = np.float32(y) * scale[tap, c] + mean[tap, c]


@numba.njit(nogil=True, cache=True)
def beyond(
    rec: np.ndarray,
    at: int,
    smoother: np.ndarray,
    scale: np.ndarray,
    mean: np.ndarray,
    features: np.ndarray,
    bound: np.ndarray,
) -> np.ndarray:
    """Frames of a row in which what `smooth` makes of it is farther from it than `bound` somewhere; from NaN it is.

    Args:
        features: float32 `(frames, taps, channels)`. bound: float32 `(taps, channels)`.

    Returns:
        bool `(frames,)`.
    """
    frames, taps, channels = features.shape
    marked = np.zeros(frames, np.bool_)
    total = np.empty(channels, np.int32)
    for tap in range(taps):
        for t in range(frames):
            _around(rec, tap, at + t, smoother, total)
            missed = np.int32(0)
            for c in range(channels):
                y = (total[c] + np.int32(1 << (SMOOTH_SHIFT - 1))) >> np.int32(SMOOTH_SHIFT)
                estimate = np.float32(y) * scale[tap, c] + mean[tap, c]
                missed += np.int32(not (abs(features[t, tap, c] - estimate) <= bound[tap, c]))
            marked[t] |= missed > 0
    return marked
