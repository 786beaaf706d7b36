"""Products of small integers, exact on every device, for predictions across channels.

Operands are int8 from -127 to 127. A sum of up to 1,040 of their products stays below 2^24, which float32
counts exactly in any order, so that every matrix product of blocks of so many gives the same integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch

BLOCK = 1040


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """int32 `(m, n)` of int8 `(m, k)` and `(k, n)`."""
    if _int_mm_is_exact() if left.device.type == "cpu" else _fits_tensor_cores(left, right):
        out: torch.Tensor = torch._int_mm(left, right)
        return out
    return _by_blocks(left, right)


def by_columns(matrix: torch.Tensor) -> torch.Tensor:
    """The same `(..., k, n)`, on a GPU with its columns end to end: all that products of int8 take there."""
    if matrix.device.type == "cpu":
        return matrix
    return matrix.transpose(-2, -1).contiguous().transpose(-2, -1)


def _fits_tensor_cores(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether cuBLAS has a product of int8 for these; it counts in int32."""
    aligned = left.stride(1) == 1 and not left.data_ptr() % 16 and not left.stride(0) % 16
    return left.device.type == "cuda" and aligned and len(left) > 16 and not any(n % 16 for n in right.shape)


@dataclass(frozen=True)
class Group:
    """Channels `low` to `high` of a tap, which are coded together.

    Attributes:
        inputs: which of a frame's inputs say something of them: the summary, and the channels before.
        matrix: int8 `(inputs, high - low)`, what they say.
    """

    low: int
    high: int
    inputs: slice
    matrix: torch.Tensor

    @property
    def alone(self) -> bool:
        """Whether nothing says anything of them."""
        return self.inputs.start == self.inputs.stop


def channel_groups(calibration: Mapping[str, np.ndarray], device: str | torch.device = "cpu") -> list[list[Group]]:
    """By tap, its groups in the order in which they are coded. Nothing sums up what is below the first tap."""
    edges = list(pairwise(calibration["groups"].tolist()))
    rank = calibration["summary"].shape[2]

    def group(tap: int, low: int, high: int) -> Group:
        inputs = slice(0 if tap else rank, rank + low)
        matrix = np.ascontiguousarray(calibration["mixing"][tap, inputs, low:high])
        return Group(low, high, inputs, by_columns(torch.from_numpy(matrix).to(device)))

    return [[group(tap, *edge) for edge in edges] for tap in range(len(calibration["mixing"]))]


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
