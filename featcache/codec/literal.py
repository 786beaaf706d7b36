"""zstd for codes in which there is little to match: standard frames, from an encoder that weighs what literals cost.

zstd's fast levels take every match that they find, and in packed codes those cost more than the literals that they
replace; its slow levels weigh the two, and look for matches at length. Weighing without looking far is smaller than
level 16 and several times as fast. Any zstd reads the frames.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import zstandard

# The smallest tables: what is worth matching (runs of zeros) is near.
LOOK = {"min_match": 6, "hash_log": 6, "chain_log": 6, "search_log": 1, "target_length": 64, "window_log": 17}


@cache
def _parameters() -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters(
        strategy=zstandard.STRATEGY_BTOPT, write_checksum=True, write_content_size=True, **LOOK
    )


def compress(data: Any) -> bytes:
    """One zstd frame with its checksum, of anything that is bytes."""
    return zstandard.ZstdCompressor(compression_params=_parameters()).compress(data)
