"""One process or several (torchrun): who am I, and what do the others have."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from featcache.cores import usable_cores
from featcache.errors import UsageError


@dataclass(frozen=True)
class World:
    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over the processes."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        # It would wait for gradients of what is empty, as the rungs of a ladder over one tap are.
        empty = [name for name, parameter in module.named_parameters() if not parameter.numel()]
        if empty:
            nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, empty)
        return nn.parallel.DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def any(self, flag: bool) -> bool:
        """Whether the flag is up in any process."""
        if self.size == 1:
            return flag
        value = torch.tensor([int(flag)], device=self.device)
        distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
        return bool(value.item())

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over the processes."""
        if self.size > 1:
            distributed.all_reduce(value)
            value = value / self.size
        return value

    def gather(self, value: Any) -> list[Any]:
        """A JSON-able value of each process, in order of rank; as JSON, since torch's own way is pickle."""
        if self.size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        sizes = [torch.zeros(1, dtype=torch.int64, device=self.device) for _ in range(self.size)]
        distributed.all_gather(sizes, torch.tensor([len(data)], device=self.device))
        longest = max(int(size) for size in sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device=self.device)
        padded[: len(data)] = data
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        distributed.all_gather(parts, padded)
        return [json.loads(part[: int(size)].cpu().numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]

    def barrier(self) -> None:
        if self.size > 1:
            self.any(False)


@contextlib.contextmanager
def world(device: str = "auto") -> Iterator[World]:
    """This process among those that torchrun started; alone where it did not.

    Raises:
        UsageError: the device is not there.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")) if size > 1 else 0)
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(rank, size, chosen)
    finally:
        distributed.destroy_process_group()


def cores() -> int:
    """Cores that the arithmetic may use: as many as OMP_NUM_THREADS says, or all that this process may use."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if told.isdecimal() and int(told):
        return int(told)
    return usable_cores()


def use_threads(threads: int, device: torch.device) -> None:
    """Set the threads of the arithmetic; 0 leaves one core to the threads that read.

    An LSTM meets at a barrier in every frame: where readers want the same cores it becomes many times
    slower, so one thread less is faster. A number in OMP_NUM_THREADS is taken as it is.
    """
    if not threads and device.type != "cpu":
        return
    told = "OMP_NUM_THREADS" in os.environ
    # Also where that is how many there are: torch would take over what another thread is given before it asks.
    torch.set_num_threads(threads or (cores() if told else max(1, cores() - 1)))


def pick_device(name: str, local_rank: int = 0, key: str = "key train.device") -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that is there.

    Args:
        key: what the user gave it with, for the error.

    Raises:
        UsageError: it is another name, or not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"{key}: {name!r} is not allowed, use auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(f"{key}: cuda is not available here, use cpu or auto")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"{key}: there is no {device}, this machine has {torch.cuda.device_count()} GPUs")
    elif device.type != "cpu":
        raise UsageError(f"{key}: {name!r} is not allowed, use auto, cpu, cuda or cuda:N")
    return device


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Mixed precision as a recipe asks for it; float32 where that is not bfloat16."""
    bfloat16 = precision == "bfloat16" or (
        precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
