"""Where a model runs."""

from __future__ import annotations

from featcache.errors import UsageError


def choose_device(name: str | None) -> str:
    """The device of that name, or the best that this machine has.

    Raises:
        UsageError: PyTorch sees no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: PyTorch sees no GPU here; leave the option out or say cpu")
    return name
