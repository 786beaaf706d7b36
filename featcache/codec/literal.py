"""zstd for codes in which there is little to match: standard frames, from an encoder that weighs what literals cost.

zstd's fast levels take every match that they find, and in packed codes those cost more than the literals that they
replace; its slow levels weigh the two, and look for matches at length. Weighing without looking far is smaller than
level 16 and several times as fast. Hardly matching at all is faster still, and a few percent larger. Any zstd
reads the frames.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import zstandard

# The smallest tables: what is worth matching (runs of zeros) is near.
TABLES = {"hash_log": 6, "chain_log": 6, "search_log": 1, "window_log": 17}
PACKS = {
    "small": {"strategy": zstandard.STRATEGY_BTOPT, "min_match": 6, "target_length": 64, **TABLES},
    "fast": {"strategy": zstandard.STRATEGY_FAST, "min_match": 7, "target_length": 0, **TABLES},
}


@cache
def _parameters(pack: str) -> zstandard.ZstdCompressionParameters:
    return zstandard.ZstdCompressionParameters(write_checksum=True, write_content_size=True, **PACKS[pack])


def compress(data: Any, pack: str = "small") -> bytes:
    """One zstd frame with its checksum, of anything that is bytes, with one of `PACKS`."""
    return zstandard.ZstdCompressor(compression_params=_parameters(pack)).compress(data)
