"""Several heads at a time: on a CPU a thread each, as many as its cores take.

An operation of a small head is too short to be shared out over cores, and an LSTM meets at a barrier in every frame.
Whole heads need not meet before the end of a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from fusion.distributed import World, cores

T = TypeVar("T")
R = TypeVar("R")


class Crew:
    """Calls a function for each of several heads; use it in a `with` statement.

    Args:
        heads: the most that a call is for.
        threads: of the arithmetic of each head (key `train.threads`); 0 shares the cores out among the heads.
        in_turn: one head after the other, whatever the machine.
    """

    def __init__(self, heads: int, here: World, threads: int = 0, in_turn: bool = False) -> None:
        each = threads or max(1, cores() // max(heads, 1))
        at_a_time = min(heads, cores() // each)
        # Several processes meet in every step of a head, in one order.
        if in_turn or here.size > 1 or here.device.type != "cpu" or at_a_time < 2:
            self._pool = None
        else:
            self._pool = ThreadPoolExecutor(
                at_a_time, "fusion-head", initializer=torch.set_num_threads, initargs=(each,)
            )

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def map(self, function: Callable[[T], R], heads: Sequence[T]) -> list[R]:
        """What the function gives for each, in order; the first error is raised once all have ended."""
        if self._pool is None or len(heads) < 2:
            return [function(head) for head in heads]
        futures = [self._pool.submit(function, head) for head in heads]
        for future in futures:
            future.exception()
        return [future.result() for future in futures]
