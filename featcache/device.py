"""Where a model runs."""

from __future__ import annotations

from featcache.errors import UsageError


def choose_device(name: str | None) -> str:
    """The device of that name, or the best that this machine has.

    Raises:
        UsageError: there is no device of that name, or PyTorch sees none here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or bool(colon) != number.isdecimal():
        raise UsageError(f"--device {name}: that is no device; write cpu, cuda or cuda:N, or leave the option out")
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not torch.backends.mps.is_available()):
        raise UsageError(f"--device {name}: PyTorch sees no GPU here; leave the option out or say cpu")
    if kind == "cuda" and number and int(number) >= torch.cuda.device_count():
        raise UsageError(f"--device {name}: PyTorch sees {torch.cuda.device_count()} here, counted from cuda:0")
    return name


def memory_of(device: str) -> int | None:
    """Bytes of memory that a device has of its own; None where that is not known."""
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)
