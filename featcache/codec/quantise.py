"""The recursion over frames that encodes profile `residual`, with torch: predict, quantise, reconstruct.

It is the inverse of `featcache.codec.scan`: every row and channel by itself, frame after frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from featcache.codec.arithmetic import LARGEST, RANGE, UNIT_BITS, WEIGHT_BITS
from featcache.codec.scan import each_frame


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
