"""zstd for packed codes, in which there is nothing to match: standard frames that are little else than literals.

zstd codes literals with one table for each of its blocks. Bytes of about the same entropy stand side by side in a
frame, so a chunk is stored piece by piece: the first `PIECE` bytes of all its frames, then the next. A piece of a
chunk is a block of zstd's then, and has a table of its own. That is smaller than what zstd's slow levels make of
whole frames, in a twentieth of their time (docs/decisions/0017-a-table-for-a-piece.md). Any zstd reads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import zstandard

PIECE = 128
# Pieces are made of these: other implementations of Zarr put a chunk's axes in order one element at a time.
WORD = "<i8"
WORDS = PIECE // np.dtype(WORD).itemsize
# The axes of a chunk `(frame, piece, word)` in the order in which they are stored.
ORDER = (1, 0, 2)

_PARAMETERS = zstandard.ZstdCompressionParameters(
    write_checksum=True,
    write_content_size=True,
    # A block is no longer than the window: 64 frames of a piece.
    window_log=13,
    # Hardly any match is worth more than its literals, but for runs of zeros, and those are near.
    strategy=zstandard.STRATEGY_FAST,
    min_match=7,
    target_length=0,
    hash_log=6,
    chain_log=6,
    search_log=1,
)


def compress_each(chunks: Iterable[np.ndarray]) -> list[np.ndarray]:
    """A zstd frame with its checksum, uint8 `(bytes,)`, for each of some chunks, which are contiguous.

    The interpreter's lock is given away once for all of them, so that threads that do this are in nobody's way.
    """
    parts: list[bytes | bytearray | memoryview[int]] = [chunk.data.cast("B") for chunk in chunks]
    found: Any = zstandard.ZstdCompressor(compression_params=_PARAMETERS).multi_compress_to_buffer(parts, threads=1)
    return [np.frombuffer(found[number], np.uint8) for number in range(len(found))]
