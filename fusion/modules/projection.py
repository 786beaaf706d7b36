"""The norm and the linear layer of every tap, for all taps in one batched product."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from featcache import products
from featcache.errors import UsageError

EPS = 1e-5
NORMS = ("layer", "rms", "none")
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
Folded = tuple[torch.Tensor, torch.Tensor]
# Above this ratio of mean^2 to variance, the variance as E[x^2] - mean^2 loses more than three digits of fp32.
_SHIFT_LIMIT = 1e3


def check_norm(norm: str) -> None:
    if norm not in NORMS:
        raise UsageError(f"norm = {norm!r} is not known; use one of {', '.join(NORMS)}")


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    if name not in ACTIVATIONS:
        raise UsageError(f"activation = {name!r} is not known; use one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def normalise(x: torch.Tensor, norm: str) -> torch.Tensor:
    """The norm over the last dimension, without scale and shift."""
    if norm == "layer":
        return F.layer_norm(x, (x.shape[-1],), eps=EPS)
    return F.rms_norm(x, (x.shape[-1],), eps=EPS) if norm == "rms" else x


def norm_layer(norm: str, width: int) -> nn.Module:
    """The norm as a module with scale and shift of its own; nothing for "none"."""
    check_norm(norm)
    if norm == "none":
        return nn.Identity()
    return nn.LayerNorm(width, eps=EPS) if norm == "layer" else nn.RMSNorm(width, eps=EPS)


def fast_moments(x: torch.Tensor, norm: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Mean and 1 / deviation over the last dimension in two vectorised passes, or None.

    torch's CPU `layer_norm` writes the normalised copy of its whole input, which costs more than the
    matrix product after it. These statistics allow the norm to be applied after the product. None where
    fp32 would not do: a mean far larger than the deviation, or squares that overflow.
    For `norm="rms"` the mean is zero by definition.
    """
    square = torch.linalg.vector_norm(x, dim=-1).square() / x.shape[-1]
    mean = x.mean(-1) if norm == "layer" else torch.zeros_like(square)
    shift = mean.square()
    variance = (square - shift).clamp_(min=0.0)
    if not bool(torch.isfinite(square).all() & (shift <= _SHIFT_LIMIT * (variance + EPS)).all()):
        return None
    return mean, (variance + EPS).rsqrt_()


def stored_moments(x: torch.Tensor, norm: str) -> tuple[torch.Tensor, torch.Tensor] | None:
    """`fast_moments` where they help and are allowed: fp32 features on a CPU that need no gradient."""
    if norm == "none" or x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad:
        return None
    if torch.compiler.is_exporting():  # which way is chosen by the values, and a program has only one
        return None
    return fast_moments(x, norm)


def linear_init(weight: torch.Tensor, bias: torch.Tensor, fan_in: int) -> None:
    """What `nn.Linear` does: both uniform in +-1 / sqrt(fan_in)."""
    bound = 1.0 / math.sqrt(fan_in)
    nn.init.uniform_(weight, -bound, bound)
    nn.init.uniform_(bias, -bound, bound)


class StackedLinear(nn.Module):
    """`count` independent (norm, linear) pairs over inputs of `inputs` values each.

    Args:
        norm: "layer", "rms" (both with a scale and a shift per input) or "none".
        fan_in: what the initial range is computed from, `inputs` unless given.

    The scale and shift of the norm are folded into the weights, (count, inputs, outputs), which are tiny
    beside the activations.
    """

    def __init__(self, count: int, inputs: int, outputs: int, norm: str = "layer", fan_in: int | None = None):
        super().__init__()
        check_norm(norm)
        self.norm = norm
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(count, outputs))
        linear_init(self.weight, self.bias, fan_in or inputs)
        if norm != "none":
            self.norm_weight = nn.Parameter(torch.ones(count, inputs))
            self.norm_bias = nn.Parameter(torch.zeros(count, inputs))

    def folded(self) -> Folded:
        """Weight (count, inputs, outputs) and bias (count, 1, outputs), with the norm's scale and shift inside."""
        bias = self.bias.unsqueeze(1)
        if self.norm == "none":
            return self.weight, bias
        shifted = torch.baddbmm(bias, self.norm_bias.unsqueeze(1), self.weight)
        return self.norm_weight.unsqueeze(-1) * self.weight, shifted

    def forward(self, x: torch.Tensor, folded: Folded | None = None) -> torch.Tensor:
        """(count, rows, inputs) -> (count, rows, outputs); `folded` where many blocks of rows share it."""
        weight, bias = folded or self.folded()
        return products.stacked(normalise(x, self.norm), weight, bias)

    def start_at_zero(self) -> None:
        """Zero weights and biases: what is added by this layer begins at nothing."""
        with torch.no_grad():
            self.weight.zero_()
            self.bias.zero_()


class TapProjection(StackedLinear):
    """Norm and linear layer of each tap: (rows, taps, channels) -> (taps, rows, width).

    The taps are read where they lie. Only oneDNN makes a copy where they are not in one piece each, as `Head.prepare`
    lays them out.
    """

    def __init__(self, taps: int, channels: int, width: int, norm: str = "layer", fan_in: int | None = None):
        super().__init__(taps, channels, width, norm, fan_in)

    def start_equal(self) -> None:
        """One and the same projection for all taps at first, as they share a residual stream's coordinates."""
        with torch.no_grad():
            self.weight.copy_(self.weight[:1].expand_as(self.weight))
            self.bias.copy_(self.bias[:1].expand_as(self.bias))

    def folded(self) -> Folded:
        """As `StackedLinear.folded`, and for a layer norm with weights centred over the channels.

        (x - mean) W = x (W - column means of W): centred weights centre the input.
        """
        weight, bias = super().folded()
        return (weight - weight.mean(1, keepdim=True) if self.norm == "layer" else weight), bias

    def forward(self, rows: torch.Tensor, folded: Folded | None = None) -> torch.Tensor:
        weight, bias = folded or self.folded()
        moments = stored_moments(rows, self.norm)
        if moments is None:
            return products.stacked(normalise(rows, self.norm).transpose(0, 1), weight, bias)
        return torch.addcmul(bias, products.stacked(rows.transpose(0, 1), weight), moments[1].t().unsqueeze(-1))
