"""Kernels of Triton are believed on a device once they gave there, for made-up rows, what torch alone gives.

Triton compiles where it runs: it may lack a C compiler there, or a later version may make something else of a kernel. A
cache must not depend on that. What fails its trial is done by torch, with the same bytes and more slowly.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch

from featcache.codec import packing
from featcache.memory import ran_out

# More than what the kernels read ahead, and not a multiple of it; together more than the 16 frames below which products
# do not go to tensor cores.
LENGTHS = (15, 2)
# Values in deviations that are no row's usual ones: kept exactly, in the tail of a frame, or as a large code.
STRAYS = (1e6, -40.0, 12.0, -3.0)


def agrees(work: str, check: Callable[[], bool]) -> bool:
    """Whether kernels passed their check; a warning says why not.

    Args:
        work: what they are for, as in "encoding".
        check: whether what they gave is right; may raise whatever Triton does.

    Raises:
        Exception: memory ran out.
    """
    try:
        if check():
            return True
        reason = "what they give is not right"
    except Exception as error:
        if ran_out(error):
            raise
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    warnings.warn(
        f"the kernels for {work} on a GPU cannot be used here ({reason}): torch does it, with the same bytes but more "
        "slowly",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


def rows(mean: torch.Tensor, deviation: torch.Tensor) -> list[torch.Tensor]:
    """Rows float32 `(frames, taps, channels)` on the device of the calibration, with strays in a frame each."""
    made = torch.randn((sum(LENGTHS), *mean.shape), generator=torch.Generator().manual_seed(1))
    for frame, stray in enumerate(STRAYS, start=3):
        made[frame, -1, -1 - frame % mean.shape[1]] = stray
    made[9, 0, 0] = torch.nan
    return list((made.to(mean.device) * deviation + mean).split(LENGTHS))


def blocks(order: np.ndarray, taps: int, radix: int) -> np.ndarray:
    """Frames of small codes as they are stored, uint8 `(frames, bytes)`; the first of each row is marked."""
    rng = np.random.default_rng(1)
    limit = packing.limit_of(radix)
    most = min(limit + 4, 130)
    codes = rng.integers(-most, most + 1, (taps, sum(LENGTHS), len(order) // taps)).astype(np.int16)
    codes[rng.random(codes.shape) < 0.7] = 0
    tail = packing.tail_bytes(len(order), radix, float(packing.tail_quarters(codes, radix).max()))
    block = packing.assemble(codes, packing.padded_order(order, radix), radix, tail)
    block[[0, LENGTHS[0]], 0, 0] |= packing.FIRST
    return block
