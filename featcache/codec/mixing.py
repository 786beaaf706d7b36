"""Products of small integers, exact on every device, for predictions across channels.

Operands are int8 from -127 to 127. A sum of up to 1,040 of their products stays below 2^24, which float32
counts exactly in any order, so that every matrix product of blocks of so many gives the same integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from itertools import pairwise

import numpy as np
import torch

BLOCK = 1040


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """int32 `(m, n)` of int8 `(m, k)` and `(k, n)`."""
    if left.device.type == "cpu" and _int_mm_is_exact():
        out: torch.Tensor = torch._int_mm(left, right)
        return out
    return _by_blocks(left, right)


def channel_groups(
    calibration: Mapping[str, np.ndarray], device: str | torch.device = "cpu"
) -> list[list[tuple[int, int, torch.Tensor]]]:
    """By tap, the groups of channels in their order: where it begins and ends, and the matrix of those before it.

    The matrix is int8 `(channels of the groups before, channels of this one)`.
    """
    edges = list(pairwise(calibration["groups"].tolist()))
    return [
        [(low, high, torch.from_numpy(np.ascontiguousarray(matrix[:low, low:high])).to(device)) for low, high in edges]
        for matrix in calibration["beside"]
    ]


def _by_blocks(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    total = torch.zeros((len(left), right.shape[1]), dtype=torch.int32, device=left.device)
    for at in range(0, len(right), BLOCK):
        part = left[:, at : at + BLOCK].float() @ right[at : at + BLOCK].float()
        total += part.int()
    return total


@cache
def _int_mm_is_exact() -> bool:
    """Instructions for int8 of some processors saturate sums of two products: then float32 does the work."""
    left = torch.full((17, 256), 127, dtype=torch.int8)
    left[1::2] = -127
    right = torch.full((256, 32), 127, dtype=torch.int8)
    right[:, 1::2] = -127
    try:
        return torch.equal(torch._int_mm(left, right), _by_blocks(left, right))
    except (RuntimeError, AttributeError):
        return False
