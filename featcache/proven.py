"""Small arrays of a segment, from bytes that are as they were sealed.

A checksum inside a file says only that it is whole: another array's would do as well. One that is missing zarr would
read as zeros. So all files of an array are read as they are and proven, and those bytes are decoded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from featcache.errors import CorruptCacheError
from featcache.ledger import FileProof, proof
from featcache.storage import Storage

# Files that are asked for at the same time.
TOGETHER = 16


def read_array(storage: Storage, path: str, proofs: Mapping[str, FileProof], remedy: str) -> np.ndarray:
    """The array at `path`.

    Args:
        proofs: of files of the cache, by key; those below `path` are all that the array has.
        remedy: what to do about a damaged cache, in words.

    Raises:
        CorruptCacheError: a file is missing or not as it was sealed, or nothing proves the array.
    """
    wanted = {key: expected for key, expected in proofs.items() if key.startswith(f"{path}/")}
    if f"{path}/zarr.json" not in wanted:
        raise CorruptCacheError(f"{storage}/{path} is no part of what was sealed: {remedy}")
    files = _read(storage.zarr(), [*wanted])
    for key, expected in wanted.items():
        _check(f"{storage}/{key}", files[key], expected, remedy)
    buffer = default_buffer_prototype().buffer
    store = MemoryStore({key: buffer.from_bytes(data) for key, data in files.items() if data is not None})
    return np.asarray(zarr.open_array(store, path=path, mode="r")[...])


def _read(store: Store, keys: Sequence[str]) -> dict[str, bytes | None]:
    """Whole files through a store that may be far away, some at a time."""
    prototype = default_buffer_prototype()

    async def read() -> list[bytes | None]:
        free = asyncio.Semaphore(TOGETHER)

        async def one(key: str) -> bytes | None:
            async with free:
                found = await store.get(key, prototype)
            return None if found is None else found.to_bytes()

        return list(await asyncio.gather(*map(one, keys)))

    return dict(zip(keys, sync(read()), strict=True))


def _check(place: str, data: bytes | None, expected: FileProof, remedy: str) -> None:
    if data is None:
        raise CorruptCacheError(f"{place} is missing: {remedy}")
    if len(data) != expected.bytes:
        raise CorruptCacheError(f"{place} has {len(data)} bytes where {expected.bytes} were written: {remedy}")
    if proof(data) != expected:
        raise CorruptCacheError(f"{place} is damaged (not as it was sealed): {remedy}")
