"""Who may change a cache at the same time: many add to it, and one alone takes something away or copies onto it.

Each says what it is about before it looks at what others are about: of two that meet, at least one sees the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from featcache import layout
from featcache.errors import CacheError
from featcache.lease import Leases, clear_dead, clear_ended, is_held, living
from featcache.storage import Storage

# One name for all who are alone, that of versions before a push was one of them.
ALONE = f"{layout.LOG}/leases/forget"
ADDITIONS = f"{layout.LOG}/leases/adding"
MAKING = f"{layout.LOG}/leases/making"
_WAIT = "wait for it; where it was killed on another machine, for a minute"


@contextlib.contextmanager
def adding(storage: Storage) -> Iterator[None]:
    """Files are written meanwhile that nothing proves yet, or that are about to be made again.

    Raises:
        CacheError: something is being taken away, or a copy is on its way here.
    """
    leases = Leases(storage)
    try:
        # A command that was killed and given again is to leave what one that was not leaves.
        clear_ended(storage, ADDITIONS)
        leases.acquire(f"{ADDITIONS}/{leases.owner}")
        if is_held(storage, ALONE):
            raise CacheError(f"a `featcache forget`, `gc` or `push` is at work on {storage}: {_WAIT}")
        yield
    finally:
        leases.close()


@contextlib.contextmanager
def making(storage: Storage) -> Iterator[None]:
    """As `adding`, where a cache is to be made and was not there a moment ago; one at a time.

    Raises:
        CacheError: it is there now.
    """
    leases = Leases(storage)
    try:
        while not leases.acquire(MAKING):
            leases.wait(0.2)
        with adding(storage):
            if storage.exists(layout.ROOT):
                raise CacheError(f"another command has just made a cache at {storage}: run the same command again")
            yield
    finally:
        leases.close()


@contextlib.contextmanager
def alone(storage: Storage) -> Iterator[Callable[[], None]]:
    """Files are removed meanwhile, or all that makes a cache is copied here. Gives a check that this is so still.

    Raises:
        CacheError: something is being added, taken away or copied here by another process.
    """
    leases = Leases(storage)
    try:
        if not leases.acquire(ALONE):
            raise CacheError(f"another `featcache forget`, `gc` or `push` is at work on {storage}: {_WAIT}")
        if living(storage, ADDITIONS):
            raise CacheError(f"{storage} is being added to by another command: wait for it, then run this again")
        clear_dead(storage, ADDITIONS)
        yield lambda: leases.check(ALONE)
    finally:
        leases.close()
