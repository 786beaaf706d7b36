"""Counting parameters, and which of them weight decay may touch."""

from __future__ import annotations

from typing import Any

from torch import nn

_NO_DECAY = ("bias", "norm_", "gate", "mixture")
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.BatchNorm1d)


def count_parameters(module: nn.Module, *, trainable_only: bool = True) -> int:
    """The number of parameters of a module (each shared tensor once)."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two optimiser groups: matrices with `weight_decay`; biases, norms and gates without.

    The usual rule "no decay for vectors" would miss the stacked biases and norms of `HFF`, which have
    one row a tap or node, so the rule here goes by name and by the kind of module.
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    seen: set[int] = set()
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            is_free = isinstance(part, _NORMS) or any(word in name for word in _NO_DECAY)
            (free if is_free else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
