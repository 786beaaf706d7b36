"""Was it memory that ran out? The libraries say so in many ways, and none of them is a fault of the data."""

from __future__ import annotations

import errno
import os
import sys
import threading

# What torch, oneDNN, zstd, the dynamic linker and C++ say; torch's own error on GPUs is a RuntimeError too.
WORDS = (
    "out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc",
    "can't start new thread", "could not create a primitive", "could not create a memory object",
)  # fmt: skip
# libsndfile: "internal malloc() failed", and what it says where the FLAC decoder's failed.
SNDFILE_CODES = (17, 156, 157)

REMEDY = "finished shards are safe; free some memory or use a larger machine, and run the same command again"


def ran_out(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, means that the process got no more memory."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return True
        if type(error).__name__ == "LibsndfileError" and getattr(error, "code", None) in SNDFILE_CODES:
            return True
        # Not of other kinds: a KeyError quotes keys, and those may say anything.
        if isinstance(error, RuntimeError | ImportError | SystemError) and any(w in str(error).lower() for w in WORDS):
            return True
        error = error.__cause__
    return False


def leave_when_a_thread_gets_none() -> None:
    """End the process with one line where an error that nobody handles says that memory ran out.

    Python waits for ever for a new thread that gets no memory to start with. What is finished is durable, and
    the leases of a dead process are taken over.
    """
    if sys.unraisablehook.__module__ == __name__:
        return
    # Nothing can be made when it is needed, so that all is at hand before.
    line, write, leave = f"featcache: out of memory: {REMEDY}\n".encode(), os.write, os._exit
    unraisable, uncaught = sys.unraisablehook, threading.excepthook

    def on_unraisable(found: sys.UnraisableHookArgs) -> None:
        if found.exc_type is MemoryError:
            write(2, line)
            leave(1)
        unraisable(found)

    def on_uncaught(found: threading.ExceptHookArgs) -> None:
        if found.exc_type is MemoryError:
            write(2, line)
            leave(1)
        uncaught(found)

    sys.unraisablehook, threading.excepthook = on_unraisable, on_uncaught
