"""The recursion over frames of profile `residual` with torch: every row and channel by itself, frame after frame."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from featcache.codec.arithmetic import RANGE, WEIGHT_BITS


def scan(added: torch.Tensor, own: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """`now = ((own * before + half) >> WEIGHT_BITS) + added`, kept within the range, from zero at each row's start.

    Args:
        added: int32 `(frames, channels)`, rows laid end to end.
        own: int32 `(channels,)`.
        starts, lengths: int64 `(rows,)`.
    """
    out = torch.empty_like(added)
    now = added.new_zeros((len(starts), added.shape[1]))
    for alive, at in each_frame(starts, lengths):
        now = (((own * now[:alive] + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS) + added[at]).clamp_(-RANGE, RANGE)
        out[at] = now
    return out


def each_frame(starts: torch.Tensor, lengths: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
    """For one frame of all rows after the other: how many rows have it, the longest first, and where it is in them."""
    order = torch.argsort(lengths, descending=True)
    starts, lengths = starts[order], lengths[order]
    for t in range(int(lengths[0]) if len(lengths) else 0):
        alive = int((lengths > t).sum())
        yield alive, starts[:alive] + t
