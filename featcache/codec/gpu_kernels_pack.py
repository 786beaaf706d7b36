"""Codes to bytes and back on CUDA, in Triton, as `featcache.codec.kernels_pack` does it. A program has a frame."""

from __future__ import annotations

import triton
import triton.language as tl

from featcache.codec.gpu_kernels import as_input


@triton.jit
def unpack(
    block, table, counts, order, code_shift, codes, inputs,
    width, body, frames, depth, channels, rank, limit,
    DIGITS: tl.constexpr, BYTES: tl.constexpr, HEADER: tl.constexpr,
):  # fmt: skip
    """The codes of a frame of `featcache.codec.packing` to their places, and as they are handed to products.

    Args:
        block: uint8 `(frames, width)`. table: int8 `(256, DIGITS)`. counts: int32 `(256,)`, codes at the limit.
        order: int32 `(body * DIGITS,)`, where each code goes among those of a frame.
        codes: int16 `(frames, depth, channels)`, of the lowest taps.
        inputs: int8 `(depth, frames, rank + channels)`.
    """
    frame = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, BYTES)
    inside = number < body
    begin = block + frame * width + HEADER
    tail = begin + body
    rest = width - HEADER - body
    byte = tl.load(begin + number, mask=inside, other=0).to(tl.int32)
    count = tl.where(inside, tl.load(counts + byte), 0)
    rank_of = tl.cumsum(count, axis=0) - count
    reached = tl.sum(count, axis=0)
    read = ()
    farther = tl.zeros((BYTES,), tl.int32)
    for digit in tl.static_range(DIGITS):
        code = tl.load(table + byte * DIGITS + digit).to(tl.int32)
        extreme = inside & (tl.abs(code) == limit)
        field = tl.load(tail + (rank_of >> 2), mask=extreme & ((rank_of >> 2) < rest), other=0).to(tl.int32)
        size = (field >> (2 * (rank_of & 3))) & 3
        rank_of += extreme.to(tl.int32)
        farther += (size == 3).to(tl.int32)
        read = read + ((code, size),)
    large = (reached + 3) // 4 + 2 * (tl.cumsum(farther, axis=0) - farther)
    for digit in tl.static_range(DIGITS):
        code, size = read[digit]
        more = (size == 3) & (large + 1 < rest)
        size += tl.load(tail + large, mask=more, other=0).to(tl.int32)
        size += tl.load(tail + large + 1, mask=more, other=0).to(tl.int32) << 8
        large += 2 * more.to(tl.int32)
        code += tl.where(code > 0, size, -size)
        place = tl.load(order + number * DIGITS + digit, mask=inside, other=0)
        wanted = inside & (place < depth * channels)
        tap = place // channels
        tl.store(codes + frame * depth * channels + place, code.to(tl.int16), mask=wanted)
        shift = tl.load(code_shift + tap, mask=wanted, other=0)
        at = (tap * frames.to(tl.int64) + frame) * (rank + channels) + rank + place % channels
        tl.store(inputs + at, as_input(code << shift), mask=wanted)


@triton.jit
def pack(
    codes, order, out, fields, values, width, body, words, limit,
    RADIX: tl.constexpr, DIGITS: tl.constexpr, BYTES: tl.constexpr, HEADER: tl.constexpr,
):  # fmt: skip
    """The codes of a frame as `featcache.codec.packing` describes them, but for what `fields` holds of its tail.

    Args:
        codes: int16 `(frames, values)`. order: int32 `(body * DIGITS,)`, `values` and more for none.
        out: uint8 `(frames, width)`, zeros.
        fields: int32 `(frames, words)`, zeros: the tail's first part, two bits for each code at the limit.
    """
    frame = tl.program_id(0).to(tl.int64)
    number = tl.arange(0, BYTES)
    inside = number < body
    reached = tl.zeros((BYTES,), tl.int32)
    farther = tl.zeros((BYTES,), tl.int32)
    field = tl.zeros((BYTES,), tl.int32)
    symbols = ()
    sizes = ()
    for digit in tl.static_range(DIGITS):
        place = tl.load(order + number * DIGITS + digit, mask=inside, other=values)
        code = tl.load(codes + frame * values + place, mask=place < values, other=0).to(tl.int32)
        size = tl.abs(code)
        beyond = tl.maximum(size - limit, 0)
        field |= tl.minimum(beyond, 3) << (2 * reached)
        reached += (size >= limit).to(tl.int32)
        farther += (beyond >= 3).to(tl.int32)
        symbols = symbols + (2 * tl.minimum(size, limit) - (code > 0).to(tl.int32),)
        sizes = sizes + (beyond,)
    byte = tl.zeros((BYTES,), tl.int32)
    for digit in tl.static_range(DIGITS):
        byte = byte * RADIX + symbols[DIGITS - 1 - digit]
    begin = out + frame * width + HEADER
    tl.store(begin + number, byte.to(tl.uint8), mask=inside)
    # Those of a byte are at most ten bits, in one word or two.
    rank = tl.cumsum(reached, axis=0) - reached
    bits = field.to(tl.int64) << (2 * (rank & 15))
    at = fields + frame * words + (rank >> 4)
    first = (bits & 0xFFFFFFFF).to(tl.uint32).to(tl.int32, bitcast=True)
    second = (bits >> 32).to(tl.int32)
    tl.atomic_or(at, first, mask=(first != 0) & ((rank >> 4) < words))
    tl.atomic_or(at + 1, second, mask=(second != 0) & ((rank >> 4) + 1 < words))
    large = (tl.sum(reached, axis=0) + 3) // 4 + 2 * (tl.cumsum(farther, axis=0) - farther)
    for digit in tl.static_range(DIGITS):
        beyond = sizes[digit]
        more = (beyond >= 3) & (large + 1 < width - HEADER - body)
        tl.store(begin + body + large, ((beyond - 3) & 255).to(tl.uint8), mask=more)
        tl.store(begin + body + large + 1, ((beyond - 3) >> 8).to(tl.uint8), mask=more)
        large += 2 * more.to(tl.int32)
