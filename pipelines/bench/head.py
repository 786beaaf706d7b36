"""HFF forward and backward: the library's batched products against the loop over taps and nodes that it replaces.

Both are given the same weights and features, compute in the same type, without compilation, and in turns.
`floor_share` says how near the library is to its arithmetic: the time of its matrix products alone, as plain
products of the same sizes, over its own time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from rich.console import Console
from torch import Tensor

from featcache import products
from fusion.head import Head
from fusion.modules import build_decoder
from fusion.modules.hff import HFF, NodeStack
from fusion.modules.projection import StackedLinear, normalise
from pipelines.bench.machine import stamp

messages = Console(stderr=True)


def measure(frames: int, taps: int, channels: int, width: int, turns: int, device: str, dtype: str) -> dict[str, Any]:
    """`speedup` (median over turns), `max_abs_diff` (of output and gradients, each by its largest value)."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    model = HFF(taps, channels, width, dropout=0.0).to(device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # nothing is zero, so that every gradient counts
    whole = Head(model, build_decoder("linear", width, 1), taps, channels).to(device)
    features, _ = whole.prepare(torch.randn(1, frames, taps, channels, device=device), torch.tensor([frames]))
    wanted = torch.randn(1, frames, width, device=device)

    def run(forward: Callable[[Tensor], Tensor]) -> tuple[Tensor, list[Tensor]]:
        model.zero_grad(set_to_none=True)
        with torch.autocast(torch.device(device).type, dtype=kind, enabled=kind != torch.float32):
            output = forward(features)
        (output.float() * wanted).sum().backward()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        return output.detach(), [cast(Tensor, p.grad).clone() for p in model.parameters()]

    ways: dict[str, Callable[[], object]] = {
        "library": lambda: run(model),
        "loop": lambda: run(lambda x: per_tap_loop(model, x)),
        "products": lambda: _products(model, frames, kind, device),
    }
    (output, gradients), (expected, others) = run(model), run(lambda x: per_tap_loop(model, x))
    difference = max(_difference(a, b) for a, b in zip([output, *gradients], [expected, *others], strict=True))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, work in ways.items():
            began = _clock(device)
            work()
            seconds[name].append(_clock(device) - began)
    ratios = [loop / ours for loop, ours in zip(seconds["loop"], seconds["library"], strict=True)]
    shares = [floor / ours for floor, ours in zip(seconds["products"], seconds["library"], strict=True)]
    return {
        "speedup": round(statistics.median(ratios), 3),
        "max_abs_diff": float(f"{difference:.3g}"),
        "floor_share": round(statistics.median(shares), 3),
        "frames_s": round(frames / statistics.median(seconds["library"])),
        "frames": frames, "taps": taps, "channels": channels, "width": width, "dtype": dtype, "device": device,
        "threads": torch.get_num_threads(),
        **stamp(),
    }  # fmt: skip


def _clock(device: str) -> float:
    """CPU time of this process, which other work does not stretch; the clock where the work is elsewhere."""
    return time.process_time() if device == "cpu" else time.perf_counter()


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp_min(1e-30))


def per_tap_loop(model: HFF, features: Tensor) -> Tensor:
    """What `model` computes, tap by tap and node by node: (batch, frames, taps, channels) -> (batch, frames, width)."""
    leaves = model.leaves
    nodes = [_linear(leaves, tap, features[:, :, tap]) for tap in range(features.shape[2])]
    for level in model.levels:
        above, start = [], 0
        for stack in cast(Iterable[NodeStack], level):
            for count in range(stack.count):
                group = nodes[start : start + stack.size]
                start += stack.size
                hidden = stack.act(_linear(stack.hidden, count, torch.cat(group, dim=-1)))
                gate = stack.gate[count].softmax(0)
                mean = torch.stack([weight * node for weight, node in zip(gate, group, strict=True)]).sum(0)
                above.append(mean + stack.branch_scale * _linear(stack.out, count, hidden))
        nodes = above
    fused: Tensor = model.norm(nodes[0])
    return fused


def _linear(layer: StackedLinear, number: int, x: Tensor) -> Tensor:
    """Norm with its scale and shift, then the linear layer: one of the stack."""
    if layer.norm != "none":
        x = normalise(x, layer.norm) * layer.norm_weight[number] + layer.norm_bias[number]
    return torch.nn.functional.linear(x, layer.weight[number].t(), layer.bias[number])


def _products(model: HFF, frames: int, kind: torch.dtype, device: str) -> None:
    """The matrix products of a forward and a backward pass, on operands that are there already."""
    for layer in model.modules():
        if not isinstance(layer, StackedLinear):
            continue
        count, inputs, outputs = layer.weight.shape
        x, y = _operands(count, frames, inputs, outputs, kind, device)
        weight = layer.weight.detach().to(kind)
        for i in range(count):
            products.linear(x[i], weight[i].t())
            products.linear(y[i].t(), x[i].t())
            if layer is not model.leaves:  # features need no gradient
                products.linear(y[i], weight[i])
    if device.startswith("cuda"):
        torch.cuda.synchronize()


_OPERANDS: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}


def _operands(
    count: int, frames: int, inputs: int, outputs: int, kind: torch.dtype, device: str
) -> tuple[Tensor, Tensor]:
    key = (count, frames, inputs, outputs, kind, device)
    if key not in _OPERANDS:
        _OPERANDS[key] = (
            torch.randn(count, frames, inputs, device=device).to(kind),
            torch.randn(count, frames, outputs, device=device).to(kind),
        )
    return _OPERANDS[key]


def print_table(result: dict[str, Any]) -> None:
    """The result for people, on standard output."""
    for name, value in result.items():
        print(f"{name:14} {value}")
