"""Codes of a frame in bytes: several small codes a byte, a header before them and escapes after them.

A frame of `values` codes is `header (2) | packed codes | escapes (6 each)`:

    byte 0        flags: 1 where a row begins, 2 where the plane `exact` holds values of this frame
    byte 1        number of escapes
    packed        code k becomes 2k - 1 for k > 0 and -2k otherwise, so that 0 is 0; `digits` of them are one
                  byte in the number system of base `radix`, the first one least significant
    escapes       uint32 position `tap * channels + channel`, int16 code that stands in place of the packed one;
                  unused ones are zero

Radix 3 holds five codes of -1 .. 1, radix 5 three of -2 .. 2, radix 15 two of -7 .. 7, radix 255 one of
-127 .. 127. Byte-aligned groups keep zstd's literal coder close to the entropy at every rate.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from featcache.errors import CorruptCacheError

DIGITS = {3: 5, 5: 3, 15: 2, 255: 1}
HEADER = 2
ESCAPE = 6
MAX_ESCAPES = 252


def limit_of(radix: int) -> int:
    """The largest code that a radix holds."""
    return (radix - 1) // 2


def packed_bytes(values: int, radix: int) -> int:
    return -(-values // DIGITS[radix])


@cache
def table(radix: int) -> np.ndarray:
    """int8 `(256, digits)`: the codes of every byte. Bytes that no group of codes makes are zeros."""
    digits = DIGITS[radix]
    groups = np.arange(256)
    out = np.zeros((256, digits), np.int8)
    for place in range(digits):
        symbol = groups // radix**place % radix
        out[:, place] = np.where(symbol % 2 == 1, (symbol + 1) // 2, -(symbol // 2))
    out[groups >= radix**digits] = 0
    return out


def padded_order(order: np.ndarray, radix: int) -> np.ndarray:
    """The order filled up to whole bytes, with places beyond all values."""
    spare = packed_bytes(len(order), radix) * DIGITS[radix] - len(order)
    return np.concatenate([order, np.full(spare, len(order))]).astype(np.uint32)


def assemble(codes: np.ndarray, order: np.ndarray, radix: int, escapes: int) -> np.ndarray:
    """uint8 `(frames, bytes)`: whole frames, flags still zero.

    Args:
        codes: int16 `(frames, taps * channels)`; at most `escapes` a frame beyond the radix's limit.
        order: the position of each packed code.
    """
    from featcache.codec import kernels_pack

    frames, values = codes.shape
    body = packed_bytes(values, radix)
    out = np.zeros((frames, HEADER + body + ESCAPE * escapes), np.uint8)
    kernels_pack.assemble(codes, padded_order(order, radix), radix, DIGITS[radix], HEADER, body, out)
    return out


def escaped(block: np.ndarray, values: int, radix: int) -> np.ndarray:
    """int32 `(escapes, 3)`: frame, position and code of every escape in these frames, in order.

    Raises:
        CorruptCacheError: a frame says what no encoder writes.
    """
    start = HEADER + packed_bytes(values, radix)
    entries = (block.shape[1] - start) // ESCAPE
    tail = block[:, start:].reshape(len(block), entries, ESCAPE)
    counts = block[:, 1]
    if counts.max(initial=0) > entries:
        raise CorruptCacheError(f"a frame has {counts.max()} escapes where {entries} fit: run `featcache verify CACHE`")
    frame = np.repeat(np.arange(len(block)), counts)
    entry = np.arange(len(frame)) - np.repeat(np.cumsum(counts, dtype=np.int64) - counts, counts)
    raw = np.ascontiguousarray(tail[frame, entry])
    position = np.ascontiguousarray(raw[:, :4]).view("<u4")[:, 0]
    code = np.ascontiguousarray(raw[:, 4:]).view("<i2")[:, 0]
    if position.max(initial=0) >= values:
        raise CorruptCacheError(f"a frame has a code at {position.max()} of {values}: run `featcache verify CACHE`")
    return np.stack([frame, position, code], axis=1).astype(np.int32)
