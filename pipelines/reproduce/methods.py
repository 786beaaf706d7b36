"""Which weights of an upstream are trained: all, some, or new ones that are put in.

Every method takes a frozen `Network` and its settings, and leaves what it trains with `requires_grad`. None of them
changes what the model computes before the first step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from featcache.errors import UsageError
from featcache.upstreams.base import Network

ATTENTION = ("self_attn", "attention")
FEED_FORWARD = ("feed_forward", "ffn2", "fc2")
"""Names of a block's sub-layers in the models that are known; of `fc2`, what leaves it is what leaves the sub-layer."""
QUERY_AND_VALUE = (("q_proj", "v_proj"), ("linear_q", "linear_v"))


def full(network: Network) -> None:
    """Every weight."""
    network.module.requires_grad_(True)


def bitfit(network: Network) -> None:
    """Every bias (Ben Zaken, Goldberg and Ravfogel, ACL 2022, arXiv 2106.10199)."""
    for name, parameter in network.module.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))


def top_layer(network: Network) -> None:
    """The last block, and the closing norm where there is one."""
    network.blocks[-1].requires_grad_(True)
    if network.closing is not None:
        network.closing.requires_grad_(True)


def lora(network: Network, rank: int, alpha: int = 16) -> None:
    """Low-rank updates of the query's and the value's projection in every block (Hu et al., ICLR 2022, arXiv
    2106.09685), by peft.

    Raises:
        UsageError: peft is not installed, or the projections are not found.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UsageError(f"row lora needs peft ({error}): pip install 'speech-featcache[reproduce]'") from error
    inside = {name.rpartition(".")[2] for name, _ in network.blocks.named_modules()}
    names = next((pair for pair in QUERY_AND_VALUE if set(pair) <= inside), None)
    if names is None:
        raise UsageError("row lora: this model's projections of query and value are not found; leave the row out")
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(names), bias="none")
    inject_adapter_in_model(config, network.module)
    for name, parameter in network.module.named_parameters():
        parameter.requires_grad_("lora_" in name)


def adapters(network: Network, width: int) -> None:
    """A bottleneck after both sub-layers of every block, before the residual sum (Houlsby et al., ICML 2019, arXiv
    1902.00751; their layer norms stay frozen here).

    Raises:
        UsageError: the sub-layers are not found.
    """
    for block in network.blocks:
        for place, names in (("attention", ATTENTION), ("feed_forward", FEED_FORWARD)):
            layer: nn.Module | None = next((getattr(block, name) for name in names if hasattr(block, name)), None)
            if layer is None:
                raise UsageError(f"row adapters: a block of this model has none of {', '.join(names)}")
            weight = next(block.parameters())
            adapter = Bottleneck(_width_of(block), width).to(weight.device)
            block.add_module(f"adapter_{place}", adapter)
            layer.register_forward_hook(_adapt(adapter))


class Bottleneck(nn.Module):
    """x + up(gelu(down(x))) over (..., channels). `up` starts at zero, so that it begins as nothing.

    Weights: 2 * channels * width + width + channels.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(channels, width)
        self.up = nn.Linear(width, channels)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.nn.functional.gelu(self.down(x))
        return x + self.up(hidden)


def _adapt(adapter: Bottleneck) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):
            return adapter(output[0]), *output[1:]
        return adapter(output)

    return hook


def _width_of(block: nn.Module) -> int:
    """Channels of the residual stream: what the block's norms are over."""
    norm = next(layer for layer in block.modules() if isinstance(layer, nn.LayerNorm))
    return int(norm.normalized_shape[0])


def unreached(network: nn.Module) -> list[str]:
    """Names of trained weights that the last backward pass has not reached: the model reads around them."""
    return [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]


METHODS: dict[str, Callable[..., None]] = {
    "full": full, "bitfit": bitfit, "top_layer": top_layer, "lora": lora, "adapters": adapters,
}  # fmt: skip
"""By name."""
ADDING = ("lora", "adapters")
"""Those that put new weights in."""
