"""The peak of a process's memory: resident on a CPU, what torch has allocated on a GPU."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def held(device: torch.device) -> int:
    """Bytes that the process holds now; where the system does not say, the peak so far."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _status("VmRSS")


def reset_peak(device: torch.device) -> None:
    """What comes next is measured: loading a model takes more for a moment than training it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # the C library keeps what was freed; musl has none
        if trim is not None:
            trim(0)
    try:
        CLEAR.write_text("5")  # Linux: the peak becomes what is resident now
    except OSError:
        pass


def peak(device: torch.device) -> int:
    """Bytes at most since `reset_peak`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status("VmHWM")


def _status(key: str) -> int:
    if STATUS.exists():
        # not getrusage's maximum, which a child takes over from its parent
        for line in STATUS.read_text().splitlines():
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
