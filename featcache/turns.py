"""Who may change a cache at the same time: many add to it, and one alone takes something away.

Each says what it is about before it looks at what others are about: of two that meet, at least one sees the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from featcache import layout
from featcache.errors import CacheError
from featcache.lease import Leases, clear_dead, is_held, living
from featcache.storage import Storage

REMOVAL = f"{layout.LOG}/leases/forget"
ADDITIONS = f"{layout.LOG}/leases/adding"


@contextlib.contextmanager
def adding(storage: Storage) -> Iterator[None]:
    """Files are written meanwhile that nothing proves yet, or that are about to be made again.

    Raises:
        CacheError: something is being taken away.
    """
    leases = Leases(storage)
    try:
        leases.acquire(f"{ADDITIONS}/{leases.owner}")
        if is_held(storage, REMOVAL):
            raise CacheError(f"a `featcache forget` or `featcache gc` is at work on {storage}: wait for it")
        yield
    finally:
        leases.close()


@contextlib.contextmanager
def taking_away(storage: Storage) -> Iterator[None]:
    """Files are removed meanwhile.

    Raises:
        CacheError: something is being added, or taken away by another process.
    """
    leases = Leases(storage)
    try:
        if not leases.acquire(REMOVAL):
            raise CacheError(f"another `featcache forget` or `featcache gc` is at work on {storage}: wait for it")
        if living(storage, ADDITIONS):
            raise CacheError(f"{storage} is being added to by another command: wait for it, then run this again")
        clear_dead(storage, ADDITIONS)
        yield
    finally:
        leases.close()
