"""Profile `residual` on CUDA, in Triton: the integers of `featcache.codec.kernels`, a few launches a tap.

A program of the recursions has some channels of one row and goes through its frames. What `AHEAD` frames read is on its
way while those before them are in work, as a step alone takes a tenth of the time that memory does. Reconstructions lie
tap by tap, `(taps, frames, channels)`; rows lie end to end.

Compile with `OPTIONS`: a product and a sum that are fused into one operation round otherwise than on the CPU.
"""

from __future__ import annotations

import triton
import triton.language as tl

from featcache.codec import arithmetic

WEIGHT_BITS = tl.constexpr(arithmetic.WEIGHT_BITS)
WEIGHT_HALF = tl.constexpr(1 << (arithmetic.WEIGHT_BITS - 1))
BELOW_BITS = tl.constexpr(arithmetic.BELOW_BITS)
BELOW_HALF = tl.constexpr(1 << (arithmetic.BELOW_BITS - 1))
UNIT_BITS = tl.constexpr(arithmetic.UNIT_BITS)
SMOOTH_SHIFT = tl.constexpr(arithmetic.SMOOTH_SHIFT)
SMOOTH_HALF = tl.constexpr(1 << (arithmetic.SMOOTH_SHIFT - 1))
RANGE = tl.constexpr(arithmetic.RANGE)
LARGEST = tl.constexpr(arithmetic.LARGEST)
# Added to a float32 and taken away again, it leaves the nearest whole number, to the even one of two.
ROUNDER = tl.constexpr(float(3 << 22))
AHEAD = 8
OPTIONS = {"enable_fp_fusion": False}


@triton.jit
def _shifted(value, shift):
    """Divided by a power of two, rounded."""
    return (value + ((1 << shift) >> 1)) >> shift


@triton.jit
def as_input(value):
    """As it is handed to products."""
    return tl.minimum(tl.maximum(value, -127), 127).to(tl.int8)


@triton.jit
def _target(value, mean, inverse):
    """What to code, in units; what lies beyond the range is more than it."""
    scaled = (value - mean) * inverse
    inside = tl.abs(scaled) <= RANGE
    whole = (tl.where(inside, scaled, 0.0) + ROUNDER) - ROUNDER
    return tl.where(inside, whole.to(tl.int32), RANGE + 1)


@triton.jit
def _hand_on(now, rec_at, narrow_at, mask, follows, narrow_shift, channels):
    """A reconstruction to its place, and to those in what the next tap's summary is made of: beside a frame the one
    before."""
    tl.store(rec_at, now.to(tl.int16), mask=mask)
    small = as_input(_shifted(now, narrow_shift))
    tl.store(narrow_at, small, mask=mask)
    tl.store(narrow_at + 3 * channels, small, mask=mask & follows)


@triton.jit
def _none_before(at, mask, WIDTH: tl.constexpr):
    """A row has no frame before its first."""
    tl.store(at, tl.zeros((WIDTH,), tl.int8), mask=mask)


@triton.jit
def _ahead_of_encoding(
    value_at, below_at, mixed_at, left, stride, channels, columns, zero, inside,
    BELOW: tl.constexpr, MIXED: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """What the next `STEPS` frames take, of `left` ones: values, reconstructions of the tap below, what inputs say."""
    read = ()
    for step in tl.static_range(STEPS):
        mask = inside & (step < left)
        value = tl.load(value_at + step * stride, mask=mask, other=0.0)
        under = zero
        if BELOW:
            under = tl.load(below_at + step * channels, mask=mask, other=0).to(tl.int32)
        said = zero
        if MIXED:
            said = tl.load(mixed_at + step * columns, mask=mask, other=0)
        read = read + ((value, under, said),)
    return read


@triton.jit(do_not_specialize=["tap", "low", "high", "code_shift", "narrow_shift"])
def encode(
    values, at, starts, lengths, mean, inverse, near, rounding, centroid, mixed, mixed_shift,
    below, codes, rec, inputs, narrow,
    tap, low, high, rank, taps, channels, code_shift, narrow_shift,
    BELOW: tl.constexpr, MIXED: tl.constexpr, EVEN: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Codes and reconstructions of the channels `low` to `high` of a tap, and what is handed on of them.

    Args:
        values: float32; `at` is where each row begins in it.
        mean ... centroid, mixed_shift: of this tap.
        mixed: int32 `(frames, high - low)`, what the inputs say of them.
        below, rec: int16 `(frames, channels)`, reconstructions of the tap below and of this one.
        codes: int16 `(frames, taps, channels)`. inputs: int8 `(frames, rank + channels)`.
        narrow: int8 `(frames, 2, channels)`.
        EVEN: all channels of a program are there.
    """
    row = tl.program_id(0)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    channel = low + column
    inside = column >= 0 if EVEN else channel < high
    m = tl.load(mean + channel, mask=inside, other=0.0)
    i = tl.load(inverse + channel, mask=inside, other=0.0)
    own = tl.load(near + channel, mask=inside, other=0)
    here_weight = tl.load(near + channels + channel, mask=inside, other=0)
    before_weight = tl.load(near + 2 * channels + channel, mask=inside, other=0)
    extra = tl.load(rounding + channel, mask=inside, other=0)
    shrink = tl.load(centroid + channel, mask=inside, other=0)
    shift = tl.load(mixed_shift + channel, mask=inside, other=0)
    start = tl.load(starts + row)
    left = tl.load(lengths + row).to(tl.int32)
    stride = taps * channels
    columns = high - low
    # Places go on from step to step, as their products would take longer than what is done there.
    value_at = values + tl.load(at + row) + tap * channels + channel
    below_at = below + start * channels + channel
    mixed_at = mixed + start * columns + column
    code_at = codes + (start * taps + tap) * channels + channel
    input_at = inputs + start * (rank + channels) + rank + channel
    rec_at = rec + start * channels + channel
    narrow_at = narrow + start * 2 * channels + channel
    zero = tl.zeros((WIDTH,), dtype=tl.int32)
    now = zero
    before = zero
    _none_before(narrow_at + channels, inside & (left > 0), WIDTH)
    read = _ahead_of_encoding(
        value_at, below_at, mixed_at, left, stride, channels, columns, zero, inside, BELOW, MIXED, STEPS
    )
    while left > 0:
        value_at += STEPS * stride
        below_at += STEPS * channels
        mixed_at += STEPS * columns
        following = _ahead_of_encoding(
            value_at, below_at, mixed_at, left - STEPS, stride, channels, columns, zero, inside, BELOW, MIXED, STEPS
        )
        for step in tl.static_range(STEPS):
            value, under, said = read[step]
            mask = inside & (step < left)
            goal = _target(value, m, i)
            added = zero
            if BELOW:
                added = (here_weight * under + before_weight * before + BELOW_HALF) >> BELOW_BITS
                before = under
            if MIXED:
                added += _shifted(said, shift)
            predicted = ((own * now + WEIGHT_HALF) >> WEIGHT_BITS) + added
            error = goal - predicted
            size = tl.minimum((tl.abs(error) + extra) >> UNIT_BITS, LARGEST)
            # What lies beyond the range is kept elsewhere, and does not disturb the prediction.
            size = tl.where(goal > RANGE, 0, size)
            code = tl.where(error < 0, -size, size)
            moved = tl.where(size > 0, (size << UNIT_BITS) - shrink, 0)
            now = predicted + tl.where(error < 0, -moved, moved)
            now = tl.minimum(tl.maximum(now, -RANGE), RANGE)
            tl.store(code_at + step * stride, code.to(tl.int16), mask=mask)
            tl.store(input_at + step * (rank + channels), as_input(code << code_shift), mask=mask)
            _hand_on(
                now, rec_at + step * channels, narrow_at + step * 2 * channels, mask, step + 1 < left, narrow_shift,
                channels,
            )  # fmt: skip
        read = following
        code_at += STEPS * stride
        input_at += STEPS * (rank + channels)
        rec_at += STEPS * channels
        narrow_at += STEPS * 2 * channels
        left -= STEPS


@triton.jit
def _ahead_of_decoding(
    code_at, mixed_at, below_at, flag_at, left, stride, channels, width, zero, inside,
    BELOW: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """What the next `STEPS` frames take, of `left` ones: codes, what inputs say, the tap below, where rows begin."""
    read = ()
    for step in tl.static_range(STEPS):
        mask = inside & (step < left)
        code = tl.load(code_at + step * stride, mask=mask, other=0).to(tl.int32)
        said = tl.load(mixed_at + step * channels, mask=mask, other=0)
        under = zero
        if BELOW:
            under = tl.load(below_at + step * channels, mask=mask, other=0).to(tl.int32)
        begins = tl.load(flag_at + step * width, mask=step < left, other=0) & 1
        follows = tl.load(flag_at + (step + 1) * width, mask=step + 1 < left, other=1) & 1
        read = read + ((code, said, under, begins, follows),)
    return read


@triton.jit(do_not_specialize=["tap", "narrow_shift"])
def decode(
    codes, block, starts, lengths, near, centroid, mixed, mixed_shift, below, rec, narrow,
    tap, depth, width, channels, narrow_shift,
    BELOW: tl.constexpr, EVEN: tl.constexpr, WIDTH: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """The reconstructions of a tap from its codes, and what is handed on of them.

    Args:
        codes: int16 `(frames, depth, channels)`.
        block: uint8 `(frames, width)`, whose flags say where rows begin: one of `lengths` may hold several.
        mixed: int32 `(frames, channels)`. The rest is as for `encode`.
    """
    row = tl.program_id(0)
    channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = channel >= 0 if EVEN else channel < channels
    own = tl.load(near + channel, mask=inside, other=0)
    here_weight = tl.load(near + channels + channel, mask=inside, other=0)
    before_weight = tl.load(near + 2 * channels + channel, mask=inside, other=0)
    shrink = tl.load(centroid + channel, mask=inside, other=0)
    shift = tl.load(mixed_shift + channel, mask=inside, other=0)
    start = tl.load(starts + row)
    left = tl.load(lengths + row).to(tl.int32)
    stride = depth * channels
    code_at = codes + (start * depth + tap) * channels + channel
    mixed_at = mixed + start * channels + channel
    below_at = below + start * channels + channel
    flag_at = block + start * width
    rec_at = rec + start * channels + channel
    narrow_at = narrow + start * 2 * channels + channel
    zero = tl.zeros((WIDTH,), dtype=tl.int32)
    now = zero
    before = zero
    _none_before(narrow_at + channels, inside & (left > 0), WIDTH)
    read = _ahead_of_decoding(
        code_at, mixed_at, below_at, flag_at, left, stride, channels, width, zero, inside, BELOW, STEPS
    )
    while left > 0:
        code_at += STEPS * stride
        mixed_at += STEPS * channels
        below_at += STEPS * channels
        flag_at += STEPS * width
        following = _ahead_of_decoding(
            code_at, mixed_at, below_at, flag_at, left - STEPS, stride, channels, width, zero, inside, BELOW, STEPS
        )
        for step in tl.static_range(STEPS):
            code, said, under, begins, follows = read[step]
            mask = inside & (step < left)
            now = tl.where(begins == 1, 0, now)
            added = _shifted(said, shift)
            if BELOW:
                before = tl.where(begins == 1, 0, before)
                added += (here_weight * under + before_weight * before + BELOW_HALF) >> BELOW_BITS
                before = under
            sign = (code > 0).to(tl.int32) - (code < 0).to(tl.int32)
            now = ((own * now + WEIGHT_HALF) >> WEIGHT_BITS) + added + (code << UNIT_BITS) - sign * shrink
            now = tl.minimum(tl.maximum(now, -RANGE), RANGE)
            at = narrow_at + step * 2 * channels
            _hand_on(now, rec_at + step * channels, at, mask, follows == 0, narrow_shift, channels)
            # Nor has one that begins within.
            _none_before(at + 3 * channels, mask & (follows == 1) & (step + 1 < left), WIDTH)
        read = following
        rec_at += STEPS * channels
        narrow_at += STEPS * 2 * channels
        left -= STEPS


@triton.jit
def narrow_sums(sums, shift, inputs, count, rank, width, BLOCK: tl.constexpr):
    """The summary of a tap into the first `rank` columns of its inputs, int8 `(frames, width)`."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    column = at % rank
    value = _shifted(tl.load(sums + at, mask=inside, other=0), tl.load(shift + column, mask=inside, other=0))
    tl.store(inputs + at // rank * width + column, as_input(value), mask=inside)


@triton.jit
def _estimate(
    rec, smoother, scale, mean, tap, taps, frames, channels, frame, channel, inside, begins, ends
):  # fmt: skip
    """float32 `(frames, channels)` from reconstructions and those around them."""
    plane = frames.to(tl.int64) * channels
    at = rec + tap * plane + frame[:, None] * channels + channel[None, :]
    one = channel < channels
    here = tl.load(at, mask=inside, other=0).to(tl.int32)
    before = tl.load(at - channels, mask=inside & (begins == 0)[:, None], other=0).to(tl.int32)
    after = tl.load(at + channels, mask=inside & (ends == 0)[:, None], other=0).to(tl.int32)
    below = tl.load(at - plane, mask=inside & (tap > 0), other=0).to(tl.int32)
    above = tl.load(at + plane, mask=inside & (tap + 1 < taps), other=0).to(tl.int32)
    weights = smoother + tap * 5 * channels + channel
    total = tl.load(weights, mask=one, other=0)[None, :] * here
    total += tl.load(weights + channels, mask=one, other=0)[None, :] * before
    total += tl.load(weights + 2 * channels, mask=one, other=0)[None, :] * after
    total += tl.load(weights + 3 * channels, mask=one, other=0)[None, :] * below
    total += tl.load(weights + 4 * channels, mask=one, other=0)[None, :] * above
    smoothed = ((total + SMOOTH_HALF) >> SMOOTH_SHIFT).to(tl.float32)
    step = tl.load(scale + tap * channels + channel, mask=one, other=0.0)
    return smoothed * step[None, :] + tl.load(mean + tap * channels + channel, mask=one, other=0.0)[None, :]


@triton.jit
def judge(
    values, at, starts, lengths, rec, codes, smoother, scale, mean, bound, deviation,
    missed, needed, largest, kept, squares, frames, taps, channels, limit,
    SQUARES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """How far from the truth decoding will end, and what codes need; a program has some frames of a row's tap.

    Args:
        missed: uint8 `(frames, taps, channels)`, 1 where a value is farther than `bound` from the truth.
        needed, largest, kept: int32 `(frames, taps)`: quarters of a byte of the tail, the largest code, and how many
            values are missed.
        squares: float64 `(frames, taps)`, sums of squared errors of the others in deviations.
    """
    row, tap = tl.program_id(0), tl.program_id(2)
    start = tl.load(starts + row)
    length = tl.load(lengths + row)
    place = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = place < length
    frame = start + place
    value_at = values + tl.load(at + row) + place[:, None] * taps * channels + tap * channels
    cost = tl.zeros((ROWS,), tl.int32)
    most = tl.zeros((ROWS,), tl.int32)
    count = tl.zeros((ROWS,), tl.int32)
    total = tl.zeros((ROWS,), tl.float64)
    for low in range(0, channels, WIDTH):
        channel = low + tl.arange(0, WIDTH)
        one = channel < channels
        inside = there[:, None] & one[None, :]
        estimate = _estimate(
            rec, smoother, scale, mean, tap, taps, frames, channels, frame, channel, inside,
            place == 0, place + 1 == length,
        )  # fmt: skip
        error = tl.abs(tl.load(value_at + channel[None, :], mask=inside, other=0.0) - estimate)
        close = error <= tl.load(bound + tap * channels + channel, mask=one, other=0.0)[None, :]
        miss = inside & (close == 0)
        out = (frame[:, None] * taps + tap) * channels + channel[None, :]
        tl.store(missed + out, miss.to(tl.uint8), mask=inside)
        count += tl.sum(miss.to(tl.int32), axis=1)
        size = tl.abs(tl.load(codes + out, mask=inside, other=0).to(tl.int32))
        cost += tl.sum((size >= limit).to(tl.int32) + 8 * (size >= limit + 3).to(tl.int32), axis=1)
        most = tl.maximum(most, tl.max(size, axis=1))
        if SQUARES:
            unit = tl.load(deviation + tap * channels + channel, mask=one, other=1.0)[None, :]
            relative = tl.where(inside & close, tl.div_rn(error, tl.broadcast_to(unit, error.shape)), 0.0)
            total += tl.sum((relative * relative).to(tl.float64), axis=1)
    out = frame * taps + tap
    tl.store(needed + out, cost, mask=there)
    tl.store(largest + out, most, mask=there)
    tl.store(kept + out, count, mask=there)
    if SQUARES:
        tl.store(squares + out, total, mask=there)


@triton.jit
def smooth(
    rec, block, starts, lengths, at, wanted, smoother, scale, mean, out, frames, depth, chosen, channels, width,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Estimates of the `chosen` taps that are `wanted` into float32 `(length, chosen, channels)` a row of `out`."""
    row, number = tl.program_id(0), tl.program_id(2)
    start = tl.load(starts + row)
    length = tl.load(lengths + row)
    tap = tl.load(wanted + number)
    place = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    there = place < length
    frame = start + place
    begins = tl.load(block + frame * width, mask=there, other=0) & 1
    ends = tl.load(block + (frame + 1) * width, mask=place + 1 < length, other=1) & 1
    out_at = out + tl.load(at + row) + place[:, None] * chosen * channels + number * channels
    for low in range(0, channels, WIDTH):
        channel = low + tl.arange(0, WIDTH)
        inside = there[:, None] & (channel < channels)[None, :]
        estimate = _estimate(
            rec, smoother, scale, mean, tap, depth, frames, channels, frame, channel, inside, begins, ends
        )
        tl.store(out_at + channel[None, :], estimate, mask=inside)
