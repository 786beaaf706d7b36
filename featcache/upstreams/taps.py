"""Taps: which activations are captured, and the forward hooks that capture them.

The convention, the same for every family: tap `0` is exactly what enters block 1, tap `i` is what leaves
block i before any closing norm, and `final` is what leaves the closing norm where the model has one.
`output_hidden_states` and `extract_features` are not used: their conventions differ between models.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from featcache.errors import UpstreamError

CONVENTION = "0 enters block 1; i leaves block i before any closing norm; final leaves the closing norm"
FINAL = "final"


def all_taps(blocks: int, closing: bool) -> tuple[str, ...]:
    """Every tap of a model of `blocks` blocks, lowest first. Raises `UpstreamError` where it has no block."""
    if blocks < 1:
        raise UpstreamError(
            "this model has no layers, so nothing of it can be stored: use one that has, or fetch it again"
        )
    return (*(str(i) for i in range(blocks + 1)), *((FINAL,) if closing else ()))


def choose(asked: str | Sequence[str], available: tuple[str, ...]) -> tuple[str, ...]:
    """The asked taps in the model's order. Raises `UpstreamError` for an unknown, repeated or empty choice."""
    if asked == "all":
        return available
    names = [asked] if isinstance(asked, str) else list(asked)
    unknown = [name for name in names if name not in available]
    if unknown:
        raise UpstreamError(f"this model has no tap {', '.join(unknown)}; choose from: {' '.join(available)}")
    if not names or len(set(names)) != len(names):
        raise UpstreamError(f"taps are named once each, at least one; choose from: {' '.join(available)}")
    return tuple(name for name in available if name in names)


def blocks_needed(taps: Sequence[str], blocks: int) -> int:
    """Blocks that must run for these taps; at least one, since tap 0 is seen where block 1 begins."""
    if FINAL in taps:
        return blocks
    return max(1, *(int(name) for name in taps))


class _Capture(threading.local):
    """What the forward under way in this thread has left so far."""

    buffer: Tensor | None = None
    seen: int = 0


class TapRecorder:
    """Forward hooks that copy each tap into one preallocated float32 tensor as the model runs.

    Several threads may run the model at the same time: each records for itself.
    """

    def __init__(self, blocks: nn.ModuleList, closing: nn.Module | None, taps: Sequence[str]) -> None:
        self.taps = tuple(taps)
        self._capture = _Capture()
        for slot, name in enumerate(self.taps):
            if name == "0":
                blocks[0].register_forward_pre_hook(self._entering(slot), with_kwargs=True)
            elif name == FINAL:
                assert closing is not None
                closing.register_forward_hook(self._leaving(slot))
            else:
                blocks[int(name) - 1].register_forward_hook(self._leaving(slot))

    def start(self) -> None:
        """Forget what was seen: a forward begins."""
        self._capture.buffer, self._capture.seen = None, 0

    def take(self) -> Tensor:
        """What was captured since `start`: float32 (batch, frames, taps, channels)."""
        capture = self._capture
        if capture.buffer is None or capture.seen != len(self.taps):
            raise RuntimeError(f"{capture.seen} of {len(self.taps)} taps were captured: a block did not run")
        buffer, capture.buffer = capture.buffer, None
        return buffer

    def _keep(self, slot: int, value: Tensor) -> None:
        capture = self._capture
        if capture.buffer is None:
            batch, frames, channels = value.shape
            shape = (batch, frames, len(self.taps), channels)
            capture.buffer = torch.empty(shape, dtype=torch.float32, device=value.device)
        capture.buffer[:, :, slot].copy_(value)
        capture.seen += 1

    def _entering(self, slot: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._keep(slot, args[0] if args else kwargs["hidden_states"])

        return hook

    def _leaving(self, slot: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._keep(slot, output[0] if isinstance(output, tuple) else output)

        return hook
