"""Which rows of a shard, or of a group of shards, go through the model together.

Padding costs forward time, and so does every pass. With the rows in order of length, the cut into batches that
minimises `padded samples + price * passes` is found exactly by dynamic programming, in integers, so that all
machines find the same one. The price begins high (few, full passes) and falls until padding is rare enough.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np

from featcache.geometry import SAMPLE_RATE

# Of the samples of their passes, at most this share is padding.
PADDING_LIMIT = 0.05
# What a pass costs, in samples; at the last one nothing is padded.
PRICES = tuple(int(SAMPLE_RATE * seconds) for seconds in (8, 6, 4, 3, 2, 1.5, 1, 0.5, 0.25, 0))
# To launch one takes a GPU's host about 30 ms, in which the GPU does 180 s of audio (wav2vec 2.0 Base at 6,000 x real
# time).
LAUNCHED_PRICES = (*(SAMPLE_RATE * seconds for seconds in (128, 64, 32, 16)), *PRICES)


def batch_ends(sizes: np.ndarray, limit: int, can_pad: bool, prices: Sequence[int] = PRICES) -> np.ndarray:
    """Where batches end.

    Args:
        sizes: `(rows,)` int64 samples of each row, in falling order.
        limit: most samples of a batch of several rows, padding included.
        can_pad: otherwise the rows of a batch are of one length.
        prices: of a pass, in samples, in falling order down to 0.

    Returns:
        `(batches,)` int64: one beyond the last row of each.
    """
    sizes = np.ascontiguousarray(sizes, np.int64)
    if not can_pad or not len(sizes):
        return _cheapest(sizes, limit, prices[0], False)
    real = int(sizes.sum())
    for price in prices:
        ends = _cheapest(sizes, limit, price, True)
        firsts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        padded = int((sizes[firsts] * (ends - firsts)).sum())
        if padded - real <= PADDING_LIMIT * padded:
            break
    return ends


@numba.njit(nogil=True, cache=True)
def _cheapest(sizes: np.ndarray, limit: int, price: int, can_pad: bool) -> np.ndarray:
    rows = len(sizes)
    cost = np.zeros(rows + 1, np.int64)
    start = np.zeros(rows + 1, np.int64)
    for end in range(1, rows + 1):
        best = np.int64(1) << 62
        for first in range(end - 1, -1, -1):
            alone = first == end - 1
            if not alone and ((end - first) * sizes[first] > limit or (not can_pad and sizes[first] != sizes[end - 1])):
                break
            # Of cuts that cost the same, the one with the longer last batch.
            found = cost[first] + (end - first) * sizes[first] + price
            if found <= best:
                best, start[end] = found, first
        cost[end] = best
    count, end = 0, rows
    while end:
        count, end = count + 1, start[end]
    ends = np.empty(count, np.int64)
    end = rows
    while end:
        count -= 1
        ends[count] = end
        end = start[end]
    return ends
