"""Copies between a device and the host that wait for what they copy, and for nothing that was begun after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch


def begin_copy(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Begin to copy a tensor to the host; the call that is returned waits for it.

    On CUDA it goes into pinned memory, in turn with the work of the stream that is current.
    """
    if tensor.device.type != "cuda":
        return lambda: tensor.cpu().numpy()
    found = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    found.copy_(tensor, non_blocking=True)
    wait = begin_wait(tensor.device)

    def end() -> np.ndarray:
        wait()
        return found.numpy()

    return end


def begin_wait(device: torch.device) -> Callable[[], None]:
    """A call that waits for what the device's current stream is at now."""
    if device.type != "cuda":
        return lambda: None
    here = torch.cuda.Event()
    here.record(torch.cuda.current_stream(device))
    return here.synchronize


def to_device(values: Sequence[int], device: torch.device) -> torch.Tensor:
    """int64 `(len(values),)` on a device, without waiting for what it is at."""
    return torch.tensor(values, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
