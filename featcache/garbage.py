"""Removing from a cache what is no part of it."""

from __future__ import annotations

import contextlib
from pathlib import Path

from featcache import contents, layout
from featcache.errors import CacheError
from featcache.forgotten import refuse_half_forgotten
from featcache.lease import living
from featcache.storage import open_storage
from featcache.turns import alone
from featcache.verify import verify


def garbage(place: str | Path, delete: bool) -> list[str]:
    """Files that no seal or ledger names, and unfinished segments; removed if `delete`.

    Raises:
        CacheError: another process is writing to the cache; or it is not whole, so that what names the files is not
            all there.
    """
    storage = open_storage(place)
    if not storage.exists(layout.ROOT):
        raise CacheError(f"there is no cache at {storage}: give the path of one")
    with alone(storage) if delete else contextlib.nullcontext():
        refuse_half_forgotten(place, storage.exists(layout.PENDING))
        unfinished = [name for name in layout.segments(storage) if not storage.exists(f"{name}/seal.json")]
        if any(living(storage, f"{name}/leases") for name in unfinished):
            raise CacheError(f"{place} has leases of a running extraction: wait for it")
        report = verify(place)
        # An unfinished segment goes as a whole, in whatever state it is.
        within = tuple(f"{name}/" for name in unfinished)
        problem = next((p for p in report.problems if contents.proves(p.key) and not p.key.startswith(within)), None)
        if problem is not None:
            raise CacheError(
                f"{place}/{problem.key} {problem.what}, so that it is not known what belongs to the cache and nothing "
                f"is removed: first run `featcache repair MANIFEST {place}`, or restore it from a copy of the cache"
            )
        keys = unfinished + report.unknown
        if delete:
            for name in unfinished:
                storage.delete_folder(name)
            for key in report.unknown:
                storage.delete(key)
            storage.delete_temporary("")
        return keys
