"""How many cores this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Cores that this process may run on, or what its container's quota comes to, rounded up, where that is less."""
    # It knows affinities and control groups; a sixth of a second of imports that not every command needs.
    from dask.system import cpu_count

    return cpu_count()


def hold_torch_to_them() -> None:
    """Give torch no more threads than that; what OMP_NUM_THREADS says stays.

    By itself torch takes a thread for each core that it sees. In a container that may use four of 64, those 64 are
    stopped together again and again until the next slice of time, and an operation ends with the last of them.
    """
    import torch

    cores = usable_cores()
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > cores:
        torch.set_num_threads(cores)
