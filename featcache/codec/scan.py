"""The recursion over frames of profile `residual` with torch: every row and channel by itself, frame after frame."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from featcache.codec.arithmetic import RANGE, WEIGHT_BITS

BLOCK = 128


def scan(added: torch.Tensor, own: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """`now = ((own * before + half) >> WEIGHT_BITS) + added`, kept within the range, from zero at each row's start.

    Args:
        added: int32 `(frames, channels)`, rows laid end to end.
        own: int32 `(channels,)`.
        starts, lengths: int64 `(rows,)`.
    """
    if added.device.type == "cuda" and (kernel := triton_kernel()) is not None:
        return launch(kernel, added, own, starts, lengths)
    return by_frames(added, own, starts, lengths)


def by_frames(added: torch.Tensor, own: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """With plain torch: all rows at once, one frame after the other."""
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


def launch(
    kernel: Any, added: torch.Tensor, own: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """With the kernel: one program for a row and `BLOCK` channels."""
    added = added.contiguous()
    out = torch.empty_like(added)
    channels = added.shape[1]
    if len(starts):
        grid = (len(starts), -(-channels // BLOCK))
        kernel[grid](added, out, own.contiguous(), starts, lengths, channels, WEIGHT_BITS, RANGE, BLOCK)
    return out


@cache
def triton_kernel() -> Any:
    """The kernel, or None where Triton is not installed."""
    try:
        import triton
        import triton.language as tl
    except ImportError:
        return None

    # Triton evaluates annotations, and knows none but its own.
    @triton.jit
    def kernel(  # type: ignore[no-untyped-def]
        added,
        out,
        own,
        starts,
        lengths,
        channels,
        BITS: tl.constexpr,
        LARGEST: tl.constexpr,
        WIDTH: tl.constexpr,
    ) -> None:
        row = tl.program_id(0)
        channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        inside = channel < channels
        weight = tl.load(own + channel, mask=inside, other=0)
        at = tl.load(starts + row) * channels + channel
        now = tl.zeros((WIDTH,), dtype=tl.int32)
        for _ in range(tl.load(lengths + row)):
            now = ((weight * now + (1 << (BITS - 1))) >> BITS) + tl.load(added + at, mask=inside, other=0)
            now = tl.minimum(tl.maximum(now, -LARGEST), LARGEST)
            tl.store(out + at, now, mask=inside)
            at += channels

    return kernel
