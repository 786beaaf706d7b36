"""A decoder for whole utterances: attention over time, then statistics of what is attended to."""

from __future__ import annotations

import torch
from torch import nn

from fusion.modules.decoders import Decoder, Lengths, padding
from fusion.modules.dropout import Dropout

# Added to the variance before its root, whose gradient is infinite at zero.
_FLOOR = 1e-5


class AttentivePooling(Decoder):
    """Attentive statistics pooling (Okabe et al., Interspeech 2018, arXiv 1803.10963) and a linear layer.

    With frames h_t (a ReLU layer over the fused frames), alpha = softmax over time of v tanh(W h_t + b), and
    the pooled vector holds the mean and the deviation of h under alpha. Gives one frame of logits an
    utterance.

    Args:
        hidden: width of the frames h_t.  attention: width of the attention's hidden layer.
        stack, dropout: as for every decoder.
    """

    per_frame = False

    def __init__(
        self, width: int, outputs: int, hidden: int = 128, attention: int = 64, stack: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__(width, outputs, stack, dropout)
        self.entry = nn.Linear(self.inputs, hidden)
        self.between = Dropout(dropout)
        self.attention = nn.Linear(hidden, attention)
        # A bias here would be the same for all frames, which the softmax does not see.
        self.score = nn.Linear(attention, 1, bias=False)
        self._finish(2 * hidden)

    def output_lengths(self, lengths: Lengths) -> Lengths:
        """1, and 0 for an utterance without frames."""
        return lengths.clamp(max=1) if isinstance(lengths, torch.Tensor) else min(lengths, 1)

    def body(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(batch, frames', width * stack) -> (batch, 1, 2 * hidden)."""
        frames = self.between(self.entry(x).relu())
        scores = self.score(self.attention(frames).tanh()).float()
        behind = padding(lengths, x.shape[1], x.device).unsqueeze(-1)
        weights = scores.masked_fill(behind, -torch.inf).softmax(1)
        mean = (weights * frames).sum(1, keepdim=True)
        variance = (weights * (frames - mean).square()).sum(1, keepdim=True)
        return torch.cat([mean, (variance + _FLOOR).sqrt()], -1)
