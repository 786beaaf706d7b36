"""What HFF is compared with: one tap, a weighted sum of taps, all taps side by side, a convolution over the
taps, and a ladder up the taps.

All have HFF's interface: (batch, frames, taps, channels) -> (batch, frames, width), and work frame by frame.
"""

from __future__ import annotations

import torch
from torch import nn

from featcache.errors import UsageError
from fusion.modules.blocks import by_blocks
from fusion.modules.dropout import Dropout
from fusion.modules.projection import (
    Folded,
    StackedLinear,
    TapProjection,
    check_norm,
    norm_layer,
    normalise,
    stored_moments,
)
from fusion.modules.projection import (
    activation as activation_of,
)


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
        folded = self.projection.folded()
        return by_blocks(lambda rows: self.projection(rows, folded)[0], features[:, :, self.tap : self.tap + 1])


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
        folded = self.projection.folded()
        return by_blocks(lambda rows: self.projection(rows, folded).sum(0), features)


class HConv(nn.Module):
    """Hierarchical convolution over the tap axis: its depth is the logarithm of the number of taps.

    After Shih and Harwath, "Interface Design for Self-Supervised Speech Models", Interspeech 2024, arXiv
    2406.12209; widths and kernel are ours. One projection serves all taps, then strided convolutions along
    the taps follow each other, with an activation between two, until one position is left. Unlike the nodes of
    HFF, a level has one set of weights, whatever the tap.

    Args:
        kernel: taps that one output sees, at least `stride`.  stride: at least 2.
        norm: of the output: "layer", "rms" or "none".
        tap_norm: of every tap over its channels before the projection, likewise.
        activation: "gelu", "relu", "silu" or "tanh".  dropout: after every activation.

    Raises:
        UsageError: a stride below 2, a kernel below the stride, or an unknown norm or activation.
    """

    def __init__(
        self,
        taps: int,
        channels: int,
        width: int = 128,
        kernel: int = 3,
        stride: int = 2,
        activation: str = "gelu",
        norm: str = "layer",
        dropout: float = 0.1,
        tap_norm: str = "none",
    ) -> None:
        super().__init__()
        if stride < 2 or kernel < stride:
            raise UsageError(
                f"kernel = {kernel} and stride = {stride} do not join all taps into one; use a stride of 2 or more, "
                "and a kernel of the stride or more"
            )
        self.width, self.kernel, self.stride = width, kernel, stride
        self.act = activation_of(activation)
        self.dropout = Dropout(dropout)
        self.projection = TapProjection(1, channels, width, tap_norm)
        depth, positions = 0, taps
        while positions > 1:
            depth, positions = depth + 1, -(-positions // stride)
        self.levels = nn.ModuleList(nn.Linear(kernel * width, width) for _ in range(depth))
        self.norm = norm_layer(norm, width)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, taps, channels) -> (batch, frames, width)."""
        folded = self.projection.folded()
        return by_blocks(lambda rows: self._fuse(rows, folded), features)

    def _fuse(self, rows: torch.Tensor, folded: Folded) -> torch.Tensor:
        """(rows, taps, channels) -> (rows, width)."""
        count, taps, channels = rows.shape
        projected = self.projection(rows.reshape(count * taps, 1, channels), folded)
        x = projected.view(count, taps, self.width).transpose(0, 1)  # (positions, rows, width)
        for i, level in enumerate(self.levels):
            x = self.dropout(self.act(x)) if i else x
            positions = -(-len(x) // self.stride)
            missing = (positions - 1) * self.stride + self.kernel - len(x)
            x = nn.functional.pad(x, (0, 0, 0, 0, missing // 2, missing - missing // 2))
            stop = (positions - 1) * self.stride + 1
            x = level(torch.cat([x[at : at + stop : self.stride] for at in range(self.kernel)], -1))
        fused: torch.Tensor = self.norm(x[0])
        return fused


class Ladder(nn.Module):
    """A ladder side network: a small path of its own climbs the taps, and takes in one at each rung.

    After Sung, Cho and Bansal, "LST: Ladder Side-Tuning", NeurIPS 2022, arXiv 2206.06522, with a frame-wise MLP
    as the side block. With projected taps x_i

        m_i = g_i x_i + (1 - g_i) s_{i-1},   s_i = m_i + W2 dropout(act(W1 norm(m_i) + b1)) + b2,   s_0 = x_0

    and g_i the sigmoid of a learnt number. This is what an adapter's path becomes where the upstream is frozen
    and cached. All projections start equal and what the MLPs add starts at zero, as in HFF
    (docs/decisions/0005-start-of-the-tree.md).

    Args:
        hidden: width of the MLP in a rung.
        norm: in every rung, and of the output: "layer", "rms" or "none".
        tap_norm: of every tap over its channels before its projection, likewise.
        gate_start: what the sigmoid is taken of at the start; 4 gives each rung's tap 0.98 of the sum, so that
            the ladder begins as little more than the last tap.
        activation: "gelu", "relu", "silu" or "tanh".  dropout: after every activation.
    """

    def __init__(
        self,
        taps: int,
        channels: int,
        width: int = 128,
        hidden: int = 128,
        activation: str = "gelu",
        norm: str = "layer",
        dropout: float = 0.1,
        gate_start: float = 4.0,
        tap_norm: str = "none",
    ) -> None:
        super().__init__()
        self.width = width
        self.act = activation_of(activation)
        self.dropout = Dropout(dropout)
        self.projection = TapProjection(taps, channels, width, tap_norm)
        self.mixture = nn.Parameter(torch.full((taps - 1,), gate_start))
        self.up = StackedLinear(taps - 1, width, hidden, norm)
        self.down = StackedLinear(taps - 1, hidden, width, "none")
        self.norm = norm_layer(norm, width)
        self.projection.start_equal()
        self.down.start_at_zero()

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, taps, channels) -> (batch, frames, width)."""
        folded = (self.projection.folded(), self.up.folded(), self.down.folded())
        return by_blocks(lambda rows: self._climb(rows, *folded), features)

    def _climb(self, rows: torch.Tensor, projection: Folded, up: Folded, down: Folded) -> torch.Tensor:
        """(rows, taps, channels) -> (rows, width); the rungs depend on each other, the projections do not."""
        first, *others = self.projection(rows, projection)
        gates = self.mixture.sigmoid()
        state = first
        for i, tap in enumerate(others):
            mixed = torch.lerp(state, tap, gates[i])
            hidden = torch.addmm(up[1][i], normalise(mixed, self.up.norm), up[0][i])
            state = mixed + torch.addmm(down[1][i], self.dropout(self.act(hidden)), down[0][i])
        fused: torch.Tensor = self.norm(state)
        return fused
