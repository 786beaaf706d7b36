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
    if left.device.type == "cpu" and _int_mm_is_exact():
        out: torch.Tensor = torch._int_mm(left, right)
        return out
    return _by_blocks(left, right)


@dataclass(frozen=True)
class Group:
    """Channels `low` to `high` of a tap, which are coded together.

    Attributes:
        first: which of a frame's inputs is the first that says something of them.
        matrix: int8 `(last - first, high - low)`, what inputs from `first` up to those of the channels before say.
    """

    low: int
    high: int
    first: int
    matrix: torch.Tensor

    def product(self, inputs: torch.Tensor) -> torch.Tensor:
        """int32 `(frames, high - low)` of a tap's inputs int8 `(frames, rank + channels)`."""
        if not len(self.matrix):
            return torch.zeros((len(inputs), self.high - self.low), dtype=torch.int32, device=inputs.device)
        return product(inputs[:, self.first : self.first + len(self.matrix)], self.matrix)


def channel_groups(calibration: Mapping[str, np.ndarray], device: str | torch.device = "cpu") -> list[list[Group]]:
    """By tap, its groups in the order in which they are coded. Nothing sums up what is below the first tap."""
    edges = list(pairwise(calibration["groups"].tolist()))
    rank = calibration["summary"].shape[2]
    found = []
    for tap, matrix in enumerate(calibration["mixing"]):
        first = 0 if tap else rank
        parts = [np.ascontiguousarray(matrix[first : rank + low, low:high]) for low, high in edges]
        found.append(
            [
                Group(low, high, first, torch.from_numpy(part).to(device))
                for (low, high), part in zip(edges, parts, strict=True)
            ]
        )
    return found


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
