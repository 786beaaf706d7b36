"""What turns fused frames into logits: a linear layer, a BLSTM or a Conformer, after time stacking.

One interface: `forward(x (batch, frames, width), lengths (batch,) or None)` gives logits
(batch, ceil(frames / stack), outputs) and their lengths; a decoder that pools over time (`fusion.modules.pooling`)
gives one frame of them. What lies behind an utterance's length never
changes its logits.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from featcache.errors import UsageError
from fusion.modules.dropout import Dropout

Lengths = TypeVar("Lengths", int, torch.Tensor)


class Decoder(nn.Module):
    """Time stacking, a body over the stacked frames, and a linear layer.

    Args:
        stack: how many consecutive frames are concatenated into one; the last may be part zeros.
        dropout: before the body and before the linear layer.
    """

    per_frame: ClassVar[bool] = True
    """Whether the logits run in time: one frame of them for `stack` frames of the input."""

    def __init__(self, width: int, outputs: int, stack: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        if stack < 1:
            raise UsageError(f"stack = {stack} is not a number of frames; use 1 or more")
        self.stack = stack
        self.inputs = width * stack
        self.dropout = Dropout(dropout)
        self.hidden = self.inputs
        self.outputs = outputs

    def stacked_lengths(self, lengths: Lengths) -> Lengths:
        """Stacked frames for frames of the features: ceil(frames / stack)."""
        return shortened(lengths, self.stack)

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """Frames of the logits for frames of the features."""
        return self.stacked_lengths(lengths)

    def body(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(batch, frames', width * stack) -> (batch, frames', hidden); lengths are at least 1."""
        return x

    def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        batch, frames, width = x.shape
        if lengths is None:
            lengths = torch.full((batch,), frames, dtype=torch.int64, device=x.device)
        x = x.masked_fill(padding(lengths, frames, x.device).unsqueeze(-1), 0.0)
        x = nn.functional.pad(x, (0, 0, 0, -frames % self.stack)).reshape(batch, -1, width * self.stack)
        # An utterance without frames would be an all-masked row (NaN in attention, an error when packed).
        y = self.body(self.dropout(x), self.stacked_lengths(lengths).clamp(min=1))
        logits: torch.Tensor = self.linear(self.dropout(y))
        return logits, self.output_lengths(lengths)

    def _finish(self, hidden: int) -> None:
        self.hidden = hidden
        self.linear = nn.Linear(hidden, self.outputs)


class LinearDecoder(Decoder):
    """One linear layer on the stacked frames: the probe."""

    def __init__(self, width: int, outputs: int, stack: int = 2, dropout: float = 0.1) -> None:
        super().__init__(width, outputs, stack, dropout)
        self._finish(self.inputs)


class BLSTM(Decoder):
    """Bidirectional LSTM whose backward direction starts at each utterance's true end.

    Args:
        hidden: units a direction.  layers: how many.

    Each direction is a layer of its own, the backward one over every utterance reversed within its length,
    so that padding always comes last. A packed sequence would do the same, but on a CPU torch computes
    packed sequences of unequal length step by step, without oneDNN (measured: three to four times slower).
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        hidden: int = 160,
        layers: int = 2,
        stack: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(width, outputs, stack, dropout)
        inputs = [self.inputs] + [2 * hidden] * (layers - 1)
        self.onward = nn.ModuleList(nn.LSTM(n, hidden, batch_first=True) for n in inputs)
        self.reverse = nn.ModuleList(nn.LSTM(n, hidden, batch_first=True) for n in inputs)
        self.between = Dropout(dropout)
        self._finish(2 * hidden)

    def body(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        # Autocast runs cuDNN's LSTM in float16, also where it is to be bfloat16: small gradients are zero there. On a
        # CPU oneDNN's is slower in bfloat16 than in float32.
        with torch.autocast(x.device.type, enabled=False):
            return self._both_ways(x.float(), lengths)

    def _both_ways(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        time = torch.arange(x.shape[1], device=x.device)
        last = lengths.to(x.device).unsqueeze(1) - 1
        mirrored = torch.where(time <= last, last - time, time)  # (batch, frames), its own inverse
        rows = torch.arange(len(x), device=x.device).unsqueeze(1)
        for i, (onward, reverse) in enumerate(zip(self.onward, self.reverse, strict=True)):
            x = self.between(x) if i else x
            x = torch.cat([onward(x)[0], reverse(x[rows, mirrored])[0][rows, mirrored]], -1)
        return x


class ConformerDecoder(Decoder):
    """`torchaudio.models.Conformer` (Gulati et al., 2020, arXiv 2005.08100) with padding taken out of it.

    Two changes make an utterance independent of its batch: padded frames are zero where the depthwise
    convolution reads them (torchaudio masks them in the attention only), and the batch norm after it is
    a layer norm over channels, as batch statistics would include the padding.

    Args:
        hidden: model dimension, a multiple of heads.  kernel: frames of the convolution, odd.
    """

    def __init__(
        self,
        width: int,
        outputs: int,
        hidden: int = 144,
        layers: int = 4,
        heads: int = 4,
        feedforward: int = 288,
        kernel: int = 15,
        stack: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(width, outputs, stack, dropout)
        if hidden % heads or kernel % 2 == 0:
            raise UsageError(
                f"hidden = {hidden} must be a multiple of heads = {heads}, and kernel = {kernel} must be odd"
            )
        from torchaudio.models import Conformer

        self.entry = nn.Linear(self.inputs, hidden)
        self.conformer = Conformer(hidden, heads, feedforward, layers, kernel, dropout)
        for layer in self.conformer.conformer_layers:
            convolution = layer.conv_module.sequential
            convolution[2] = _MaskedConvolution(convolution[2])
            convolution[3] = _ChannelNorm(hidden)
        self._finish(hidden)

    def body(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        mask = padding(lengths, x.shape[1], x.device)
        y = self.entry(x).transpose(0, 1)
        for layer in self.conformer.conformer_layers:
            layer.conv_module.sequential[2].padding = mask
            y = layer(y, mask)
        result: torch.Tensor = y.transpose(0, 1)
        return result


class _MaskedConvolution(nn.Module):
    """A convolution (batch, channels, frames) that sees zeros in padded frames."""

    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.padding: torch.Tensor | None = None  # (batch, frames), set before each forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.padding is not None:
            x = x.masked_fill(self.padding.unsqueeze(1), 0.0)
        y: torch.Tensor = self.convolution(x)
        return y


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (batch, channels, frames)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


def shortened(lengths: Lengths, by: int) -> Lengths:
    """ceil(lengths / by)"""
    return (lengths + by - 1) // by


def padding(lengths: torch.Tensor, frames: int, device: Any = None) -> torch.Tensor:
    """True where a frame lies behind its utterance's end: (batch, frames)."""
    return torch.arange(frames, device=device) >= lengths.to(device).unsqueeze(1)
