"""Codes of a frame in bytes: several small codes a byte, and what those at the limit lack behind them.

A frame of `values` codes is `flags (1) | packed codes | tail`, stored as pieces of `PIECE` bytes, in words
of eight (little-endian):

    flags         1 where a row begins, 2 where the plane `exact` holds values of this frame
    packed        code k becomes 2k - 1 for k > 0 and -2k otherwise, so that 0 is 0; `digits` of them are one
                  byte in the number system of base `radix`, the first one least significant. Codes beyond the
                  limit are packed as the limit
    tail          for each code at the limit, in their order, how many steps it lies beyond it: two bits, four of
                  them a byte, the first one least significant; then, for each that is 3, uint16 of what lies
                  beyond those 3. The rest is zero, up to a whole piece

Radix 3 holds five codes of -1 .. 1, radix 5 three of -2 .. 2, radix 15 two of -7 .. 7, radix 255 one of
-127 .. 127. Byte-aligned groups keep zstd's literal coder close to the entropy at every rate.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from featcache.codec.literal import PIECE, WORD, WORDS

DIGITS = {3: 5, 5: 3, 15: 2, 255: 1}
HEADER = 1
FIRST, EXACT = 1, 2


def limit_of(radix: int) -> int:
    """The largest code that a radix holds."""
    return (radix - 1) // 2


def packed_bytes(values: int, radix: int) -> int:
    return -(-values // DIGITS[radix])


def budget_of(tail: int) -> int:
    """What a tail of so many bytes holds in quarters of a byte, whatever the last byte is filled with."""
    return max(4 * tail - 3, 0)


def tail_bytes(values: int, radix: int, quarters: float) -> int:
    """The bytes of a tail that holds so many quarters of a byte, and fills a frame up to whole pieces."""
    before = HEADER + packed_bytes(values, radix)
    return -(-(before + int(quarters // 4) + 1) // PIECE) * PIECE - before


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


@cache
def at_limit(radix: int) -> tuple[np.ndarray, np.ndarray]:
    """For every byte: how many of its codes are at the limit, uint8 `(256,)`, and which, uint8 `(256, digits)`."""
    codes = np.abs(table(radix).astype(np.int16)) == limit_of(radix)
    places = np.zeros(codes.shape, np.uint8)
    for byte, marks in enumerate(codes):
        found = np.flatnonzero(marks)
        places[byte, : len(found)] = found
    return codes.sum(axis=1).astype(np.uint8), places


def padded_order(order: np.ndarray, radix: int) -> np.ndarray:
    """The order filled up to whole bytes, with places beyond all values."""
    spare = packed_bytes(len(order), radix) * DIGITS[radix] - len(order)
    return np.concatenate([order, np.full(spare, len(order))]).astype(np.uint32)


def assemble(codes: np.ndarray, order: np.ndarray, radix: int, tail: int) -> np.ndarray:
    """int64 `(frames, piece, word)`: whole frames, flags still zero.

    Args:
        codes: int8 or int16 `(taps, frames, channels)`; what they need of the tail fits into `tail` bytes.
        order: the position of each packed code, padded to whole bytes.
        tail: as `tail_bytes` gives it.
    """
    from featcache.codec import kernels_pack

    taps, frames, channels = codes.shape
    body = packed_bytes(taps * channels, radix)
    out = np.zeros((frames, HEADER + body + tail), np.uint8)
    kernels_pack.assemble(codes, *at_limit(radix), order, radix, HEADER, body, out)
    return as_words(out)


def as_words(frames: np.ndarray) -> np.ndarray:
    """int64 `(frames, piece, word)`, the same bytes as uint8 `(frames, bytes)`."""
    return frames.view(WORD).reshape(len(frames), frames.shape[1] // PIECE, WORDS)


def tail_quarters(codes: np.ndarray, radix: int) -> np.ndarray:
    """What each frame of codes `(taps, frames, channels)` needs of a tail, in quarters of a byte, int64 `(frames,)`."""
    size = np.abs(codes) - limit_of(radix)
    quarters: np.ndarray = (size >= 0).sum(axis=(0, 2)) + 8 * (size >= 3).sum(axis=(0, 2))
    return quarters
