"""Matrix products in float32 on a CPU by oneDNN, where torch by itself calls MKL.

MKL runs its AVX2 kernels on a processor that is not Intel's. On an AMD EPYC with AVX-512 one core makes 100 GFLOPS
by it and 230 by oneDNN, which torch holds too but asks for products of less precision alone
(docs/decisions/0028-products-by-onednn.md). Both are sums of float32 products in another order.

Other devices and types, autocast, and programs that are compiled or exported are torch's own.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

RULE = "oneDNN"
"""What the identity of features says that were computed so."""

# oneDNN and torch each keep what was made for 1,024 shapes: half a gigabyte, and between them holes of the heap that
# grow with every new length of a recording. Both look once, when the first product is made. A step of training, and
# rows of one length, have fewer shapes than this.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")

_ENABLED = True
# A smaller product is over before oneDNN's kernel is found.
_FEWEST_ROWS = 16
# For each new number of rows oneDNN writes kernels, in about the time that they take. Heads are trained on batches of
# ever new sizes: the rows beyond a multiple of it are torch's own product.
_ROUND_ROWS = 16
# Queries of one product: what they give for a thousand keys stays in a core's cache.
_QUERIES = 256
# Below so many keys torch's own attention is as fast.
_FEWEST_KEYS = 500


@contextmanager
def left_to_torch() -> Iterator[None]:
    """In here products of all threads are torch's own, to measure what that takes."""
    global _ENABLED
    before, _ENABLED = _ENABLED, False
    try:
        yield
    finally:
        _ENABLED = before


def used_on(device: torch.device) -> bool:
    """Whether products on a device go to oneDNN."""
    return device.type == "cpu" and _ENABLED and _available()


@cache
def _available() -> bool:
    return (
        platform.machine().lower() in ("x86_64", "amd64")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`: (..., inputs), (outputs, inputs) and (outputs,) -> (..., outputs)."""
    rows = math.prod(x.shape[:-1])
    if weight.dim() != 2 or not _ours(rows, x, weight, bias):
        return torch_linear(x, weight, bias)
    made = cast(Tensor, _Linear.apply(x.reshape(rows, x.shape[-1]), weight, bias))
    return made.view(*x.shape[:-1], len(weight))


def stacked(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As many linear layers as `count`, each on its own rows.

    (count, rows, inputs), (count, inputs, outputs) and (count, 1, outputs) -> (count, rows, outputs). Matrices of `x`
    that do not lie in one piece are copied.
    """
    if not _ours(_whole(x.shape[1]), x, weight, bias):
        return _by_torch(x, weight, bias)
    if not x[0].is_contiguous():  # oneDNN would copy it in each product
        x = x.contiguous()
    return cast(Tensor, _Stacked.apply(x, weight, bias))


def by_onednn(device: torch.device) -> AbstractContextManager[None]:
    """In here this thread's linear layers and attention on a CPU go to oneDNN, whosever modules they are in."""
    return cast(AbstractContextManager[None], _Redirected()) if used_on(device) else nullcontext()


class _Redirected(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch_linear:
            return linear(*args, **kwargs)
        if func is scaled_dot_product_attention and _plain_attention(args, kwargs):
            query, key, value = args
            return _attention(query, key, value, kwargs.get("scale"))
        return func(*args, **kwargs)


def _ours(rows: int, *tensors: Tensor | None) -> bool:
    """Whether oneDNN takes a product of these, of so many rows."""
    return (
        rows >= _FEWEST_ROWS
        and _ENABLED
        and _available()
        and all(t is None or t.numel() for t in tensors)  # of nothing it makes no product
        and all(t is None or (t.device.type == "cpu" and t.dtype == torch.float32) for t in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.compiler.is_exporting()
    )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b: (rows, inputs), (outputs, inputs), (outputs,) -> (rows, outputs)."""
    # Of another layout than these two oneDNN takes its slowest kernel, a thousand times slower.
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()
    # Of a bias it takes as many numbers as there are outputs from where the first one lies, whatever its stride.
    if bias is not None:
        bias = bias.contiguous()
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], ""))


def _stacked(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    whole = _whole(x.shape[1])
    made = x.new_empty(*x.shape[:2], weight.shape[2])
    for i in range(len(x)):
        made[i, :whole] = _product(x[i, :whole], weight[i].t(), None if bias is None else bias[i, 0])
    if whole < x.shape[1]:
        made[:, whole:] = _by_torch(x[:, whole:], weight, bias)
    return made


def _stacked_weights(x: Tensor, given: Tensor) -> Tensor:
    """The gradient of the weights: (count, rows, inputs), (count, rows, outputs) -> (count, inputs, outputs)."""
    whole = _whole(x.shape[1])
    made = torch.stack([_product(given[i, :whole].t(), x[i, :whole].t()) for i in range(len(x))])
    if whole < x.shape[1]:
        made.baddbmm_(given[:, whole:].transpose(1, 2), x[:, whole:])
    return made.transpose(1, 2)


def _by_torch(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias, x, weight)


def _whole(rows: int) -> int:
    """How many of a stack's rows oneDNN takes."""
    return rows - rows % _ROUND_ROWS


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Any, ...]:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        of_x = _product(given, weight.t()) if wanted[0] else None
        of_weight = _product(given.t(), x.t()) if wanted[1] else None
        return of_x, of_weight, given.sum(0) if wanted[2] else None


class _Stacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _stacked(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Any, ...]:
        (x, weight), wanted = ctx.saved_tensors, ctx.needs_input_grad
        of_x = _stacked(given, weight.transpose(1, 2), None) if wanted[0] else None
        of_weight = _stacked_weights(x, given) if wanted[1] else None
        return of_x, of_weight, given.sum(1, keepdim=True) if wanted[2] else None


def _plain_attention(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is attention of all to all, without gradients."""
    if len(args) != 3 or any(kwargs.get(name) for name in ("dropout_p", "is_causal", "enable_gqa")):
        return False
    query, key, value = args
    return (
        kwargs.get("attn_mask") is None
        and query.dim() == 4
        and query.shape[:2] + query.shape[3:] == key.shape[:2] + key.shape[3:]
        and key.shape == value.shape
        and key.shape[2] >= _FEWEST_KEYS
        and _ours(query.shape[2], *args)
        and not (torch.is_grad_enabled() and any(t.requires_grad for t in args))
    )


def _attention(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """softmax(q k^T * scale) v of (batch, heads, frames, channels) each."""
    scaled = query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    made = torch.empty_like(query)
    for row in range(len(query)):
        for head in range(query.shape[1]):
            keys, values = key[row, head].contiguous(), value[row, head].contiguous().t()
            for start in range(0, query.shape[2], _QUERIES):
                some = slice(start, start + _QUERIES)
                shares = _product(scaled[row, head, some], keys).softmax(-1)
                made[row, head, some] = _product(shares, values)
    return made
