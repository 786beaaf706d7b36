"""How many cores a process may use."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from featcache import upstreams
from featcache.cores import usable_cores
from featcache.upstreams import UpstreamConfig

CONFINED = """
import os

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from featcache.cores import usable_cores

print(usable_cores())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinities here")
def test_cores_are_those_that_the_process_may_run_on() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
    done = subprocess.run([sys.executable, "-c", CONFINED], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(("seen", "quota", "told", "taken"), [(6, 2, None, 2), (3, 8, None, 3), (6, 2, "6", 6)])
def test_a_model_takes_no_more_threads_than_a_containers_quota(
    seen: int, quota: int, told: str | None, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dask.system.cpu_count", lambda: quota)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if told is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", told)
    before = torch.get_num_threads()
    torch.set_num_threads(seen)
    try:
        upstreams.load(UpstreamConfig(id="mel:80"))
        assert torch.get_num_threads() == taken
    finally:
        torch.set_num_threads(before)
