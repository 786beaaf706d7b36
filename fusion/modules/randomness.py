"""Random numbers of one training step, from a generator that is its own.

torch's generator of the CPU is one for all threads. Heads that train on a thread each (`fusion.crew`) would take
each other's numbers from it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

_here = threading.local()
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """What this thread draws in here starts from this seed: the numbers of `torch.manual_seed(seed)`."""
    _here.generator = torch.Generator().manual_seed(seed)
    try:
        yield
    finally:
        _here.generator = None


def generator() -> torch.Generator | None:
    """To draw from on the CPU; None outside of `seeded`, which stands for torch's own."""
    return getattr(_here, "generator", None)


def draws_from_torch(module: nn.Module) -> bool:
    """Whether dropout of torch's own is in a module, which draws from the generator of all threads."""
    return any(
        (isinstance(part, _DROPOUTS) and part.p > 0)
        or (isinstance(part, nn.MultiheadAttention | nn.RNNBase) and part.dropout > 0)
        for part in module.modules()
    )
