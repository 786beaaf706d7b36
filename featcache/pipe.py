"""The parts of a pipeline of threads that stops as a whole: queues between its stages, and pools beside them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")


class Pipe:
    """Queues that give up waiting as soon as any stage has failed."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        """Stop all stages; the first error is the pipeline's."""
        if self.error is None:
            self.error = error
        self.stop.set()

    def put(self, target: queue.Queue[Item | None], item: Item | None) -> None:
        """Wait for room; None is the end of a queue."""
        while not self.stop.is_set():
            try:
                return target.put(item, timeout=0.2)
            except queue.Full:
                continue

    def get(self, source: queue.Queue[Item | None]) -> Iterator[Item]:
        """The items of a queue until its end."""
        return (item for item in self.poll(source, 0.2) if item is not None)

    def poll(self, source: queue.Queue[Item | None], seconds: float) -> Iterator[Item | None]:
        """As `get`, with None whenever nothing has come for so many seconds, and at the end."""
        while not self.stop.is_set():
            try:
                item = source.get(timeout=seconds)
            except queue.Empty:
                yield None
                continue
            yield item
            if item is None:
                return

    def run(self, stage: Callable[[], None]) -> threading.Thread:
        """Start a stage in a thread of its name; what it raises stops all."""

        def guarded() -> None:
            try:
                stage()
            except BaseException as error:
                self.fail(error)

        thread = threading.Thread(target=guarded, name=stage.__name__, daemon=True)
        thread.start()
        return thread


class Pool:
    """Threads that do pieces of a stage's work; where there are none, the stage does them itself.

    What a piece raises stops the pipeline at once, whoever waits for it and when.
    """

    def __init__(self, pipe: Pipe, threads: int, name: str) -> None:
        self._pipe = pipe
        # One thread of torch each, as there are several of these.
        self._executor = (
            ThreadPoolExecutor(threads, name, initializer=torch.set_num_threads, initargs=(1,)) if threads else None
        )

    def begin(self, work: Callable[[], Item]) -> Callable[[], Item]:
        """Begin a piece; the call that is returned waits for what it gives, or does it where nobody else would."""
        return work if self._executor is None else self._executor.submit(self._guarded, work).result

    def _guarded(self, work: Callable[[], Item]) -> Item:
        try:
            return work()
        except BaseException as error:
            self._pipe.fail(error)
            raise

    def close(self) -> None:
        """Wait for what is in work, and drop what was not begun yet."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
