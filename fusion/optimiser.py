"""AdamW and its learning rate, which is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from fusion.modules import parameter_groups
from fusion.recipe import TrainRecipe


def build(module: nn.Module, recipe: TrainRecipe, scales: Mapping[nn.Module, float] | None = None) -> torch.optim.AdamW:
    """AdamW (Loshchilov and Hutter, ICLR 2019); biases, norms and gates do not decay.

    Args:
        scales: parts of the module that learn at this share of the recipe's rate.
    """
    groups, taken = [], set[nn.Parameter]()
    for part, scale in {**(scales or {}), module: 1.0}.items():
        for group in parameter_groups(part, recipe.weight_decay):
            params = [parameter for parameter in group["params"] if parameter not in taken]
            taken.update(params)
            if params:
                groups.append(group | {"params": params, "scale": scale})
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)


def rate(recipe: TrainRecipe, step: int) -> float:
    """The learning rate of a step, counted from 1: linear warmup, then the decay of the recipe."""
    if step <= recipe.warmup:
        return recipe.lr * step / recipe.warmup
    done = min((step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1), 1.0)
    if recipe.decay == "none":
        return recipe.lr
    left = 1 - done if recipe.decay == "linear" else (1 + math.cos(math.pi * done)) / 2
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * left)


def set_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = value * group["scale"]
