"""Group norm in padded batches: each row over its own frames.

wav2vec 2.0 Base and its kin have a group norm after their first convolution, one group a channel: its mean and
variance are taken over all frames of a row, and padding would count among them. Here each row is cut to its own
frames first. All later convolutions are without padding of their own, so that a frame of a row sees nothing
of what comes after it, and the encoder masks what lies beyond.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad as pad_last

# What the identity says of models that are run so, under the key `group_norm`.
RULE = "each row over its own frames"

# Samples of each row of the forward under way in this thread; none where no row is padded.
_samples: ContextVar[tuple[int, ...] | None] = ContextVar("samples", default=None)


@contextmanager
def own_lengths(samples: Sequence[int]) -> Iterator[None]:
    """For a forward of waveforms of these lengths, zeros after the shorter ones, in this thread."""
    token = _samples.set(tuple(samples) if min(samples) < max(samples) else None)
    try:
        yield
    finally:
        _samples.reset(token)


class RowGroupNorm(nn.GroupNorm):
    """The group norm of a first convolution, its parameters kept under their names: `(batch, channels, frames)`.

    Within `own_lengths`, rows are normalised one by one, by the kernel that normalises a row that is alone, and
    are zero beyond their own frames. Otherwise it is the group norm that it replaces.
    """

    def __init__(self, norm: nn.GroupNorm, kernel: int, stride: int) -> None:
        super().__init__(norm.num_groups, norm.num_channels, norm.eps, norm.affine)
        self.weight, self.bias = norm.weight, norm.bias
        self.kernel, self.stride = kernel, stride

    def forward(self, input: Tensor) -> Tensor:
        samples, longest = _samples.get(), input.shape[-1]
        if samples is None:
            return super().forward(input)
        frames = [(count - self.kernel) // self.stride + 1 for count in samples]
        if len(frames) != len(input) or max(frames) != longest:
            raise RuntimeError(f"{list(input.shape)} is no batch of rows of {frames} frames")
        rows = (super(RowGroupNorm, self).forward(input[i : i + 1, :, :n]) for i, n in enumerate(frames))
        if torch.is_grad_enabled() and (input.requires_grad or self.weight.requires_grad):
            return torch.cat([pad_last(row, (0, longest - row.shape[-1])) for row in rows])
        # This is the largest activation of the model: written once, not padded and then joined. A write is an
        # operation of its own in a gradient, on all of the batch, therefore not above.
        first = next(rows)
        normed = first.new_zeros(input.shape)
        normed[0, :, : frames[0]] = first[0]
        for i, row in enumerate(rows, 1):
            normed[i, :, : frames[i]] = row[0]
        return normed


def over_own_frames(layer: Any) -> bool:
    """Replace the group norm of a convolution `layer` (`conv`, `layer_norm`); false where it has none."""
    norm = getattr(layer, "layer_norm", None)
    if not isinstance(norm, nn.GroupNorm):
        return False
    layer.layer_norm = RowGroupNorm(norm, layer.conv.kernel_size[0], layer.conv.stride[0])
    return True
