"""Rows of unequal length as one batch of a model's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from featcache.codec.host import to_device


@dataclass(frozen=True)
class Padded:
    """Rows in one tensor on the host, zeros after each.

    Attributes:
        rows: float32 `(batch, longest, ...)`, in pinned memory for CUDA.
        lengths: of each row.
    """

    rows: Tensor
    lengths: list[int]

    def to(self, device: torch.device) -> Tensor:
        """The rows on a device; CUDA is not waited for."""
        return self.rows.to(device, non_blocking=True)

    @property
    def equal(self) -> bool:
        """Whether there is nothing to mask."""
        return len(set(self.lengths)) == 1


def pad(rows: Sequence[Tensor], device: torch.device) -> Padded:
    """Rows `(samples,)` or `(frames, bins)`, float32, as they go to a device."""
    lengths = [len(row) for row in rows]
    if device.type != "cuda":
        one = rows[0].unsqueeze(0) if len(rows) == 1 else torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        return Padded(one, lengths)
    # Padded in pinned memory itself: one copy less. Torch's allocator keeps it until the device has read it.
    batch = torch.empty((len(rows), max(lengths), *rows[0].shape[1:]), pin_memory=True)
    for place, row in zip(batch, rows, strict=True):
        place[: len(row)] = row
        place[len(row) :] = 0
    return Padded(batch, lengths)


def standardise(wave: Tensor, epsilon: float) -> Tensor:
    """One waveform `(samples,)` at mean 0 and variance 1: `(x - mean) / sqrt(variance + epsilon)`."""
    return torch.nn.functional.layer_norm(wave, wave.shape, eps=epsilon)


def frame_mask(frames: Sequence[int], longest: int, device: torch.device) -> Tensor:
    """Bool `(batch, longest)`: true on each row's own frames."""
    return torch.arange(longest, device=device) < to_device(frames, device).unsqueeze(1)
