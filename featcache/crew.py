"""The thread that runs the model, and how many work beside it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch

# How long a thread may keep the interpreter's lock while another wants it, beside a device.
SWITCH_SECONDS = 0.0002


@dataclass(frozen=True)
class Crew:
    """How much is done at a time beside the thread that runs the model; the bytes written do not depend on it.

    Attributes:
        readers: threads that read audio.
        batches: those that are read and made the model's input at a time.
        encoders: threads that encode rows; 0 where the writing thread does.
        finishers: threads that write full shards, and so shards beside the one that is filled; 0 where the writing
            thread does.
        begun: batches in the model.
        compressors: threads that compress the chunks of full shards; 0 where those do that write them.
    """

    readers: int
    encoders: int
    finishers: int
    begun: int
    batches: int = 1
    compressors: int = 0


# The forward has the cores. Two batches in the model: the rows of the next one take the threads that the last
# rows of one leave idle.
BESIDE_A_CPU = Crew(readers=2, encoders=0, finishers=0, begun=2)


def crew_for(device: torch.device, cores: int) -> Crew:
    """The threads beside a model on this device, where the process may use so many cores.

    An H200 runs wav2vec 2.0 Base at 9,000 x real time, where one thread compresses shards at 2,350 x, reads FLAC at
    some 6,000 x, and encodes far slower what the device leaves to it: some rows, and all of other profiles. Shards that
    are being finished are in memory twice: there are no more than 6. Their chunks are shared out, so that the last
    shards of a run do not keep most cores waiting. With a third batch in the model, the device has work while the host
    is at the end of one and the beginning of another.
    """
    if device.type == "cpu":
        return BESIDE_A_CPU
    half = max(2, cores // 2)
    return Crew(readers=min(8, half), encoders=half, finishers=min(6, half), begun=3, batches=2, compressors=half)


@contextlib.contextmanager
def launching(device: torch.device) -> Iterator[None]:
    """This thread launches what a device does, beside threads that use the cores.

    To share out its small copies would wait, in each of them, for cores that the others have, and torch's own threads
    spin meanwhile. And it is not to wait 5 ms for the interpreter's lock whenever a library call gave it away.
    """
    if device.type == "cpu":
        yield
        return
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        with one_thread():
            yield
    finally:
        sys.setswitchinterval(interval)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Operations of this thread are not shared out meanwhile."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
