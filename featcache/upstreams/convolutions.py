"""The first and the position convolution of wav2vec 2.0 and its kin as matrix products.

cuDNN runs both without tensor cores: one has a single input channel, the other a kernel of 128 over 16 groups. On
an H100, in bfloat16, for 32 rows of 12 s in a Base model, they take 3.0 and 20.8 ms by the library, and 1.0 and
1.9 ms by these products, no further from float32 (docs/decisions/0024-convolutions-as-products.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad as pad_last

# What the identity says of models that are run so, under the key `convolutions`.
RULE = "as matrix products"


def as_products(first: Any, position: Any) -> bool:
    """Replace the forward of these two convolutions where it is of a known kind; false where neither is.

    Modules, parameters and their names stay. Where gradients are on, the module's own forward runs.
    """
    one_channel = _plain(first) and first.in_channels == 1 and first.padding == (0,)
    if one_channel:
        first.forward = _Replaced(first, first_matrix, first_product)
    in_groups = _plain(position) and position.groups > 1 and position.stride == (1,)
    if in_groups:
        position.forward = _Replaced(position, position_matrices, position_product)
    return one_channel or in_groups


def _plain(conv: Any) -> bool:
    return (
        isinstance(conv, nn.Conv1d)
        and conv.dilation == (1,)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


class _Replaced:
    """The forward of a convolution as a product with a matrix that is made of its weights once."""

    def __init__(self, conv: nn.Conv1d, prepare: Callable[[nn.Conv1d], Tensor], product: Callable[..., Tensor]) -> None:
        self.conv, self.prepare, self.product = conv, prepare, product
        self.prepared: tuple[tuple[Any, ...], Tensor] | None = None

    def __call__(self, input: Tensor) -> Tensor:
        conv, kind = self.conv, input.device.type
        parameters = list(conv.parameters())
        changing = any(p.requires_grad or p.is_inference() for p in parameters)  # the latter have no version
        if torch.is_grad_enabled() or changing or input.dim() != 3:
            return type(conv).forward(conv, input)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        # weights that were trained and frozen again have another version
        made_of = (dtype, *((p.data_ptr(), p._version) for p in parameters))
        prepared = self.prepared
        if prepared is None or prepared[0] != made_of:
            self.prepared = prepared = (made_of, self.prepare(conv).to(dtype))
        return self.product(conv, input.to(dtype), prepared[1])


def first_matrix(conv: nn.Conv1d) -> Tensor:
    """(out, columns): the kernel, the bias, and zeros up to a multiple of 8, as tensor cores want it."""
    weight = conv.weight[:, 0]
    bias = weight.new_zeros(len(weight)) if conv.bias is None else conv.bias
    return pad_last(torch.cat([weight, bias.unsqueeze(1)], 1), (0, -(weight.shape[1] + 1) % 8))


def first_product(conv: nn.Conv1d, wave_b1s: Tensor, matrix: Tensor) -> Tensor:
    """(batch, out, frames) of one channel: the matrix times (columns, frames), a row at a time."""
    (kernel,), (stride,) = conv.kernel_size, conv.stride
    # the ones meet the bias and zeros; 3.2 times the wave, the only copy
    columns_bfk = pad_last(wave_b1s[:, 0].unfold(-1, kernel, stride), (0, matrix.shape[1] - kernel), value=1.0)
    return torch.bmm(matrix.expand(len(wave_b1s), -1, -1), columns_bfk.transpose(1, 2))


def position_matrices(conv: nn.Conv1d) -> Tensor:
    """(groups, kernel * in, out) of a group: a column is in the order in which a window lies in memory."""
    out, inside, kernel = conv.weight.shape
    weight = conv.weight.view(conv.groups, out // conv.groups, inside, kernel)
    return weight.permute(0, 3, 2, 1).reshape(conv.groups, kernel * inside, -1)


def position_product(conv: nn.Conv1d, x_bct: Tensor, matrices: Tensor) -> Tensor:
    """(batch, out, frames) of (batch, channels, frames), without a copy of the windows.

    In a group's padded frames, those windows that begin `step >= kernel` frames apart do not overlap: they are the
    rows of a matrix that is a view, as the matrix library wants them. The matrices that begin a frame apart, up to
    `step` of them, are a batch, and one batched product makes all frames of a group.
    """
    kernel, padding, groups = conv.kernel_size[0], int(conv.padding[0]), conv.groups
    batch, channels, frames = x_bct.shape
    width, length = channels // groups, frames + 2 * padding
    rows = length // kernel  # of a recording, in one matrix
    step = -(-length // rows)
    phases = min(step, length - kernel + 1)  # fewer where a recording is shorter than two windows
    # recordings one after another, each with at least its own padding; the last windows reach beyond the last one
    padded = x_bct.new_zeros(groups, batch * rows * step + kernel, width)
    inner = padded[:, :-kernel].view(groups, batch, rows * step, width)
    inner[:, :, padding : padding + frames] = x_bct.view(batch, groups, width, frames).permute(1, 0, 3, 2)
    made = x_bct.new_empty(groups, phases, batch * rows, matrices.shape[2])
    for x, matrix, out in zip(padded, matrices, made, strict=True):
        windows = x.as_strided((phases, batch * rows, kernel * width), (width, step * width, 1))
        torch.bmm(windows, matrix.expand(phases, -1, -1), out=out)
    # (batch, rows, phases, groups, out): frames in order, channels in order
    y_btc = made.view(groups, phases, batch, rows, -1).permute(2, 3, 1, 0, 4).reshape(batch, rows * phases, -1)
    y_btc = y_btc[:, : length - kernel + 1]
    return (y_btc if conv.bias is None else y_btc + conv.bias.to(y_btc.dtype)).transpose(1, 2)
