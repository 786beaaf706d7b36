"""The recursion over frames that encodes profile `residual`, with torch: predict, quantise, reconstruct.

It is the inverse of `featcache.codec.scan`: every row and channel by itself, frame after frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from featcache.codec.arithmetic import LARGEST, RANGE, UNIT_BITS, WEIGHT_BITS
from featcache.codec.scan import BLOCK, each_frame


@dataclass(frozen=True)
class Rules:
    """How channels are coded, int32 each; see `featcache.codec.kernels.encode_channels`."""

    own: torch.Tensor
    rounding: torch.Tensor
    centroid: torch.Tensor

    def of(self, tap: int, group: slice) -> Rules:
        """Those of some channels of a tap, from those of all: `(taps, channels)`."""
        return Rules(self.own[tap, group], self.rounding[tap, group], self.centroid[tap, group])


def quantise(
    target: torch.Tensor,
    added: torch.Tensor,
    rules: Rules,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    codes: torch.Tensor,
    rec: torch.Tensor,
) -> None:
    """Codes and reconstructions of channels of one tap, as if every frame's tail had room, into `codes` and `rec`.

    Args:
        target: int32 `(frames, channels)`, rows laid end to end, `RANGE + 1` for what lies beyond the range.
        added: int32 of that shape, what other channels add to the prediction.
        starts, lengths: int64 `(rows,)`.
        codes, rec: int16 of that shape, also as one tap of `(frames, taps, channels)`.
    """
    if target.device.type == "cuda" and (kernel := triton_kernel()) is not None:
        launch(kernel, target, added, rules, starts, lengths, codes, rec)
    else:
        by_frames(target, added, rules, starts, lengths, codes, rec)


def by_frames(
    target: torch.Tensor,
    added: torch.Tensor,
    rules: Rules,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    codes: torch.Tensor,
    rec: torch.Tensor,
) -> None:
    """With plain torch: all rows at once, one frame after the other."""
    now = added.new_zeros((len(starts), added.shape[1]))
    for alive, at in each_frame(starts, lengths):
        predicted = ((rules.own * now[:alive] + (1 << (WEIGHT_BITS - 1))) >> WEIGHT_BITS) + added[at]
        goal = target[at]
        error = goal - predicted
        size = ((error.abs() + rules.rounding) >> UNIT_BITS).clamp_(max=LARGEST)
        # What lies beyond the range is kept elsewhere, and does not disturb the prediction.
        size.masked_fill_(goal > RANGE, 0)
        code = torch.where(error < 0, -size, size)
        now = (predicted + (code << UNIT_BITS) - torch.sign(code) * rules.centroid).clamp_(-RANGE, RANGE)
        codes[at] = code.short()
        rec[at] = now.short()


def launch(
    kernel: Any,
    target: torch.Tensor,
    added: torch.Tensor,
    rules: Rules,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    codes: torch.Tensor,
    rec: torch.Tensor,
) -> None:
    """With the kernel: one program for a row and `BLOCK` channels."""
    channels = target.shape[1]
    if len(starts):
        grid = (len(starts), -(-channels // BLOCK))
        kernel[grid](
            target.contiguous(), added.contiguous(), rules.own, rules.rounding, rules.centroid, starts, lengths,
            codes, rec, channels, codes.stride(0), rec.stride(0), WEIGHT_BITS, UNIT_BITS, RANGE, LARGEST, BLOCK,
        )  # fmt: skip


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
        target,
        added,
        own,
        rounding,
        centroid,
        starts,
        lengths,
        codes,
        rec,
        channels,
        codes_stride,
        rec_stride,
        BITS: tl.constexpr,
        UNITS: tl.constexpr,
        REACH: tl.constexpr,
        MOST: tl.constexpr,
        WIDTH: tl.constexpr,
    ) -> None:
        row = tl.program_id(0)
        channel = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
        inside = channel < channels
        weight = tl.load(own + channel, mask=inside, other=0)
        extra = tl.load(rounding + channel, mask=inside, other=0)
        shrink = tl.load(centroid + channel, mask=inside, other=0)
        begin = tl.load(starts + row)
        at = begin * channels + channel
        code_at = begin * codes_stride + channel
        rec_at = begin * rec_stride + channel
        now = tl.zeros((WIDTH,), dtype=tl.int32)
        for _ in range(tl.load(lengths + row)):
            goal = tl.load(target + at, mask=inside, other=0)
            predicted = ((weight * now + (1 << (BITS - 1))) >> BITS) + tl.load(added + at, mask=inside, other=0)
            error = goal - predicted
            size = tl.minimum((tl.abs(error) + extra) >> UNITS, MOST)
            # As `by_frames`: what lies beyond the range does not disturb the prediction.
            size = tl.where(goal > REACH, 0, size)
            code = tl.where(error < 0, -size, size)
            moved = tl.where(size > 0, (size << UNITS) - shrink, 0)
            now = predicted + tl.where(error < 0, -moved, moved)
            now = tl.minimum(tl.maximum(now, -REACH), REACH)
            tl.store(codes + code_at, code.to(tl.int16), mask=inside)
            tl.store(rec + rec_at, now.to(tl.int16), mask=inside)
            at += channels
            code_at += codes_stride
            rec_at += rec_stride

    return kernel
