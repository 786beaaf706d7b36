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


def memory_of(device: str) -> int | None:
    """Bytes of memory that a device has of its own; None where that is not known."""
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)
