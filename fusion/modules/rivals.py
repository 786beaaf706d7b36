"""What HFF is compared with: one tap, a weighted sum of taps, all taps side by side.

All have HFF's interface: (batch, frames, taps, channels) -> (batch, frames, width), and work frame by frame.
"""

from __future__ import annotations

import torch
from torch import nn

from featcache.errors import UsageError
from fusion.modules.projection import TapProjection, check_norm, normalise, stored_moments


class OneTap(nn.Module):
    """One tap, projected to `width`.

    Args:
        tap: index of the tap, negative from the end.
        norm: of the tap before its projection: "none", "layer" or "rms".

    Raises:
        UsageError: if there is no such tap.
    """

    def __init__(self, taps: int, channels: int, width: int = 128, tap: int = -1, norm: str = "none") -> None:
        super().__init__()
        if not -taps <= tap < taps:
            raise UsageError(f"tap = {tap} is not one of the cache's {taps} taps; use 0 to {taps - 1}")
        self.width = width
        self.tap = tap % taps
        self.projection = TapProjection(1, channels, width, norm)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, taps, channels) -> (batch, frames, width)."""
        fused: torch.Tensor = self.projection(features[:, :, self.tap : self.tap + 1].flatten(0, 1))
        return fused.view(features.shape[0], features.shape[1], self.width)


class LastTap(OneTap):
    """The last tap, projected to `width`."""

    def __init__(self, taps: int, channels: int, width: int = 128, norm: str = "none") -> None:
        super().__init__(taps, channels, width, tap=-1, norm=norm)


class WeightedSum(nn.Module):
    """Softmax-weighted sum of all taps, then a projection to `width`.

    SUPERB (Yang et al., 2021, arXiv 2105.01051); with `norm="layer"` every tap is normalised over its
    channels first, as s3prl's `Featurizer(normalize=True)` does.
    """

    def __init__(self, taps: int, channels: int, width: int = 128, norm: str = "none") -> None:
        super().__init__()
        check_norm(norm)
        self.width = width
        self.norm = norm
        self.mixture = nn.Parameter(torch.zeros(taps))
        self.projection = nn.Linear(channels, width)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, taps, channels) -> (batch, frames, width)."""
        weights = self.mixture.softmax(0)
        moments = stored_moments(features, self.norm)
        if moments is None:
            # One (1, taps) by (taps, channels) product a frame: a vector of weights makes torch copy the taps.
            weights = weights.expand(*features.shape[:2], 1, -1)
            mixed = torch.matmul(weights, normalise(features, self.norm)).squeeze(-2)
        else:
            # sum_l w_l (x_l - m_l) s_l, without a normalised copy of the taps.
            mean, scale = moments
            weights = weights * scale  # (batch, frames, taps)
            mixed = torch.matmul(weights.unsqueeze(-2), features).squeeze(-2) - (weights * mean).sum(-1, keepdim=True)
        fused: torch.Tensor = self.projection(mixed)
        return fused


class Concat(nn.Module):
    """All taps side by side, projected to `width`; optionally each normalised over its channels first."""

    def __init__(self, taps: int, channels: int, width: int = 128, norm: str = "none") -> None:
        super().__init__()
        self.width = width
        # One linear layer over taps * channels inputs is the sum of one linear layer a tap.
        self.projection = TapProjection(taps, channels, width, norm, fan_in=taps * channels)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, taps, channels) -> (batch, frames, width)."""
        fused: torch.Tensor = self.projection(features.flatten(0, 1)).sum(0)
        return fused.view(features.shape[0], features.shape[1], self.width)
