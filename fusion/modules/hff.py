"""Hierarchical feature fusion: a tree over the taps.

After Huo et al., "Resource-Efficient Transfer Learning From Speech Foundation Model Using Hierarchical
Feature Fusion", ICASSP 2023, arXiv 2211.02712. The paper's widths and grouping are not public here, so
this is an instantiation of HFF.

With x_i the projected taps, a node over the group i..j gives

    gated:  sum_k softmax(gate)_k x_k + branch_scale * (W2 dropout(act(W1 norm(concat x) + b1)) + b2)
    plain:  norm(dropout(act(W1 concat x + b1)))

and levels of nodes follow each other until one node is left. The gated tree also norms its output.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from featcache.errors import UsageError
from fusion.modules.blocks import by_blocks
from fusion.modules.dropout import Dropout
from fusion.modules.projection import Folded, StackedLinear, TapProjection, activation, norm_layer, normalise


class NodeStack(nn.Module):
    """`count` nodes of one level over `size` neighbours each: (count * size, rows, width) -> (count, rows, width)."""

    def __init__(
        self,
        count: int,
        size: int,
        width: int,
        *,
        act: str,
        norm: str,
        residual: bool,
        dropout: float,
        gate_start: float,
        branch_scale: float,
    ) -> None:
        super().__init__()
        self.count, self.size, self.norm, self.residual = count, size, norm, residual
        self.branch_scale = branch_scale
        self.act = activation(act)
        self.dropout = Dropout(dropout)
        self.hidden = StackedLinear(count, size * width, width, norm if residual else "none")
        if residual:
            self.out = StackedLinear(count, width, width, "none")
            self.gate = nn.Parameter(torch.linspace(0, gate_start, size).repeat(count, 1))
        elif norm != "none":
            self.norm_weight = nn.Parameter(torch.ones(count, 1, width))
            self.norm_bias = nn.Parameter(torch.zeros(count, 1, width))

    def forward(self, nodes: torch.Tensor) -> torch.Tensor:
        rows, width = nodes.shape[1:]
        groups = nodes.unflatten(0, (self.count, self.size))  # (count, size, rows, width)
        concatenated = groups.transpose(1, 2).flatten(2)  # (count, rows, size * width)
        hidden = self.dropout(self.act(self.hidden(concatenated)))
        if self.residual:
            # The gated mean as a product of (1, size) with (size, rows * width).
            weights = self.gate.softmax(1).unsqueeze(1)
            mean = torch.bmm(weights, groups.flatten(2)).view(self.count, rows, width)
            return torch.add(mean, self.out(hidden), alpha=self.branch_scale)
        if self.norm == "none":
            return hidden
        return torch.addcmul(self.norm_bias, normalise(hidden, self.norm), self.norm_weight)


class HFF(nn.Module):
    """Hierarchical feature fusion of all taps of a frame.

    Args:
        taps, channels: of the features.
        width: of every node and of the output.
        group: how many neighbouring nodes one node of the next level fuses, at least 2. A level whose
            number of nodes is not a multiple of it ends in one smaller group.
        activation: "gelu", "relu", "silu" or "tanh".
        norm: of the nodes and, in the gated tree, of the output: "layer", "rms" or "none".
        residual: the gated residual path; off is the plain tree.
        dropout: after the activation of every node.
        gate_start: by how much the gate of a group's last node exceeds that of its first at the start. At 4 a
            pair gives 0.98 to the higher one, so that the tree begins as little more than the last tap.
        branch_scale: factor of what a node adds to the gated mean. Adam moves every weight by the learning rate
            a step, however small its gradient: at 1 the branches drown the taps in noise during the first
            hundreds of steps, in which CTC gives little gradient.
        tap_norm: of every tap over its channels before its projection: "layer", "rms" or "none". A head
            standardises each channel of each tap over the corpus already, and did worse with both.

    All nodes of one size in a level are computed together (batched products over stacked weights).

    Raises:
        UsageError: for a group below 2 or an unknown activation or norm.
    """

    def __init__(
        self,
        taps: int,
        channels: int,
        width: int = 128,
        group: int = 2,
        activation: str = "gelu",
        norm: str = "layer",
        residual: bool = True,
        dropout: float = 0.1,
        gate_start: float = 4.0,
        branch_scale: float = 0.1,
        tap_norm: str = "none",
    ) -> None:
        super().__init__()
        if group < 2:
            raise UsageError(f"group = {group} cannot fuse anything; use 2 or more")
        self.width = width
        self.leaves = TapProjection(taps, channels, width, tap_norm)
        node: dict[str, Any] = {
            "act": activation, "norm": norm, "residual": residual, "dropout": dropout,
            "gate_start": gate_start, "branch_scale": branch_scale,
        }  # fmt: skip
        levels: list[list[NodeStack]] = []
        nodes = taps
        while nodes > 1:
            whole, rest = divmod(nodes, group)
            shapes = [(whole, group)] * (whole > 0) + [(1, rest)] * (rest > 0)
            levels.append([NodeStack(count, size, width, **node) for count, size in shapes])
            nodes = whole + (rest > 0)
        self.levels = nn.ModuleList(nn.ModuleList(stacks) for stacks in levels)
        if residual:
            self._start_as_mean()
        self.norm = norm_layer(norm if residual else "none", width)

    def _start_as_mean(self) -> None:
        """Start as a gated mean of taps in one common space, which `gate_start` makes nearly the last tap.

        The taps of a residual stream share their coordinates, so one projection serves all of them at first,
        and what the nodes add begins at zero. From independent projections, whose means blur what the taps
        have in common, CTC leaves its all-blank start several times later
        (docs/decisions/0005-start-of-the-tree.md).
        """
        self.leaves.start_equal()
        for level in self.levels:
            for stack in cast(Iterable[NodeStack], level):
                stack.out.start_at_zero()

    def forward(self, features: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
        """(batch, frames, taps, channels) -> (batch, frames, width).

        Frames are independent of each other, so lengths do not matter.
        """
        folded = self.leaves.folded()
        return by_blocks(lambda rows: self._fuse(rows, folded), features)

    def _fuse(self, rows: torch.Tensor, folded: Folded) -> torch.Tensor:
        """(rows, taps, channels) -> (rows, width)."""
        nodes = self.leaves(rows, folded)
        for level in self.levels:
            outputs, start = [], 0
            for stack in cast(Iterable[NodeStack], level):
                stop = start + stack.count * stack.size
                outputs.append(stack(nodes[start:stop]))
                start = stop
            nodes = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        fused: torch.Tensor = self.norm(nodes[0])
        return fused
