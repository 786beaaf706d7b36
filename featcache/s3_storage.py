"""A cache that lies on S3, through obstore: what `featcache.storage` asks for, and zarr's reads by blocks.

A put is atomic and durable by S3's own promise, and `create` is a conditional put. Reading takes whole
files for metadata, and blocks of 1 MiB through the cache on the local disk (`featcache.blocks`) for the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import zarr.abc.store
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from featcache.blocks import BLOCK_BYTES, Blocks, default_blocks
from featcache.digest import sha256
from featcache.errors import CacheError, CorruptCacheError, FeatcacheError, JobError, UsageError
from featcache.forgotten import FORGOTTEN
from featcache.s3 import S3Settings, S3Url, explain, find_keys
from featcache.storage import Address, Storage

AGAIN = "the same command can be run again"
RETRIES: dict[str, Any] = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
CLIENT: dict[str, Any] = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(seconds=120)}


@dataclass(frozen=True)
class Head:
    """What a file is at this moment."""

    size: int
    etag: str


class S3Storage(Storage):
    """The keys below `s3://bucket/prefix`. Safe to use from threads."""

    def __init__(self, url: S3Url, settings: S3Settings | None = None, blocks: Blocks | None = None) -> None:
        """`blocks`: the cache on the local disk; what the environment asks for by default."""
        try:
            import obstore
            from obstore.store import S3Store
        except ImportError as error:
            raise UsageError(f"{url} needs obstore: run `pip install 'speech-featcache[s3]'`") from error
        self._obstore: Any = obstore
        make: Any = S3Store
        self.url = url
        self._settings = settings or S3Settings.find()
        self._all_blocks = blocks or default_blocks()
        self._blocks: Blocks | None = None
        self._place = f"{self._settings.endpoint} {self.url}"
        given: dict[str, Any] = {name: v for name, v in vars(self._settings).items() if v and name != "profile"}
        self._store = make(
            url.bucket,
            prefix=url.prefix or None,
            client_options=CLIENT | ({"allow_http": True} if self._settings.plain_http else {}),
            retry_config=RETRIES,
            **given,
            **find_keys(self._settings.profile),
        )
        self._zarr: zarr.abc.store.Store | None = None
        self._heads: dict[str, Head] = {}
        self._reached = False
        # Blocks on their way: parts of one row are often wanted from the same block at the same time.
        self._flying: dict[tuple[asyncio.AbstractEventLoop, str], asyncio.Task[bytes]] = {}

    def __str__(self) -> str:
        return str(self.url)

    @property
    def address(self) -> Address:
        return Address(str(self.url), self._settings)

    def zarr(self) -> zarr.abc.store.Store:
        if self._zarr is None:
            if self._all_blocks is not None:
                # Whenever something is forgotten there, this list becomes another, and what was kept before goes.
                self._blocks = self._all_blocks.of(self._place, sha256(self.read(FORGOTTEN) or b""))
            self._zarr = _BlockStore(self)
        return self._zarr

    def exists(self, key: str) -> bool:
        return self.size(key) is not None

    def read(self, key: str) -> bytes | None:
        with self._explained(key):
            try:
                return bytes(self._obstore.get(self._store, key).bytes())
            except FileNotFoundError:
                self._check_bucket()
                return None

    def size(self, key: str) -> int | None:
        with self._explained(key):
            try:
                found = self._obstore.head(self._store, key)
            except FileNotFoundError:
                self._check_bucket()
                self._heads.pop(key, None)
                return None
            except self._obstore.exceptions.BaseError:
                # The answer to HEAD has no body that could say why: that to a read has one.
                self._obstore.get_range(self._store, key, start=0, end=1)
                raise
        self._heads[key] = Head(int(found["size"]), found["e_tag"] or "")
        return int(found["size"])

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        with self._explained(prefix):
            pages = self._obstore.list(self._store, prefix or None)
            yield from sorted(str(row["path"]) for page in pages for row in page)

    def folders(self, prefix: str) -> list[str]:
        with self._explained(prefix):
            found = self._obstore.list_with_delimiter(self._store, prefix or None)
        return sorted(str(path).rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def write(self, key: str, data: bytes | memoryview) -> None:
        with self._explained(key, JobError):
            self._obstore.put(self._store, key, bytes(data))

    def create(self, key: str, data: bytes) -> bool:
        with self._explained(key, JobError):
            try:
                self._obstore.put(self._store, key, data, mode="create", use_multipart=False)
            except self._obstore.exceptions.AlreadyExistsError:
                return False
        return True

    def delete(self, key: str) -> None:
        with self._explained(key, JobError), contextlib.suppress(FileNotFoundError):
            self._obstore.delete(self._store, key)

    def delete_folder(self, prefix: str) -> None:
        for key in list(self.list_keys(prefix)):
            self.delete(key)

    def move_folder(self, source: str, target: str) -> None:
        """Copies, then deletes: S3 has no names to change."""
        keys = list(self.list_keys(source))
        with self._explained(source, JobError):
            for key in keys:
                self._obstore.copy(self._store, key, target + key.removeprefix(source))
        # Without its seal, what is left of the source counts for nothing.
        for key in sorted(keys, key=lambda key: not key.endswith("/seal.json")):
            self.delete(key)

    def delete_temporary(self, prefix: str) -> None:
        """Nothing: S3 shows no half-written keys."""

    def free_bytes(self) -> int:
        """A bucket is never full."""
        return sys.maxsize

    def drop_kept(self) -> None:
        if self._all_blocks is not None:
            self._all_blocks.drop(self._place)
            self._zarr = None

    # Reading by blocks

    def head(self, key: str) -> Head | None:
        """The size and ETag of a file, asked for once; `size` asks again."""
        if key not in self._heads:
            self.size(key)
        return self._heads.get(key)

    async def read_range(self, key: str, head: Head, start: int, end: int) -> bytes:
        """Bytes `start .. end` of a file, all of that ETag: from blocks where they are kept, else as they are there."""
        if self._blocks is None:
            return await self._get_range(key, head, start, end)
        numbers = range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))
        blocks = await asyncio.gather(*(self._block(key, head, number) for number in numbers))
        first = numbers.start * BLOCK_BYTES
        return b"".join(blocks)[start - first : end - first]

    async def _block(self, key: str, head: Head, number: int) -> bytes:
        name = f"{self._place}/{key} {head.etag} {head.size} {number}"
        flight = asyncio.get_running_loop(), name
        if flight not in self._flying:
            task = asyncio.ensure_future(self._load_block(name, key, head, number))
            self._flying[flight] = task
            task.add_done_callback(lambda _: self._flying.pop(flight, None))
        return await asyncio.shield(self._flying[flight])

    async def _load_block(self, name: str, key: str, head: Head, number: int) -> bytes:
        assert self._blocks is not None
        start = number * BLOCK_BYTES
        wanted = (start, min(start + BLOCK_BYTES, head.size))
        known = await asyncio.to_thread(self._blocks.get, name, wanted[1] - start)
        if known is not None:
            return known
        block = await self._get_range(key, head, *wanted)
        await asyncio.to_thread(self._blocks.put, name, block)
        return block

    async def _get_range(self, key: str, head: Head, start: int, end: int) -> bytes:
        """Raises CorruptCacheError where the file is not of that ETag any more."""
        if start >= end:
            # No server gives a range of nothing.
            return b""
        options: dict[str, Any] = {"range": (start, end), **({"if_match": head.etag} if head.etag else {})}
        try:
            answer = await self._obstore.get_async(self._store, key, options=options)
            return bytes(await answer.bytes_async())
        except (self._obstore.exceptions.PreconditionError, FileNotFoundError) as error:
            raise CorruptCacheError(f"{self.url.of(key)} was replaced or removed while it was read: {AGAIN}") from error

    # Errors

    def _check_bucket(self) -> None:
        """A file that is not there may mean a bucket that is not there; asked once."""
        if not self._reached:
            next(iter(self._obstore.list(self._store, "", chunk_size=1)), None)
            self._reached = True

    @contextlib.contextmanager
    def _explained(self, key: str, kind: type[FeatcacheError] = CacheError) -> Iterator[None]:
        try:
            yield
        except FeatcacheError:
            raise
        except (self._obstore.exceptions.BaseError, OSError) as error:
            raise explain(str(error), self.url.of(key) if key else str(self.url), AGAIN, kind) from error


class _BlockStore(Store):
    """zarr's reads: metadata afresh, chunks and parts of shards of one ETag, by blocks where these are kept.

    No `WrapperStore`, which hands what later versions of zarr read in other ways (`get_ranges`) to the store inside,
    around `get`.
    """

    supports_writes = supports_deletes = False
    supports_listing = True

    def __init__(self, storage: S3Storage) -> None:
        super().__init__(read_only=True)
        self._storage = storage
        self._plain = ObjectStore(storage._store, read_only=True)

    def __eq__(self, value: object) -> bool:
        return isinstance(value, _BlockStore) and value._storage is self._storage

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        storage = self._storage
        with storage._explained(key):
            if key.endswith("zarr.json"):
                return await self._plain.get(key, prototype, byte_range)
            head = await asyncio.to_thread(storage.head, key)
            if head is None:
                return None
            start, end = _resolve(byte_range, head.size)
            return prototype.buffer.from_bytes(await storage.read_range(key, head, start, end))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, wanted) for key, wanted in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await self._plain.exists(key)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()

    async def delete(self, key: str) -> None:
        self._check_writable()

    def list(self) -> AsyncIterator[str]:
        return self._plain.list()

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        return self._plain.list_prefix(prefix)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:
        return self._plain.list_dir(prefix)


def _resolve(wanted: ByteRequest | None, size: int) -> tuple[int, int]:
    match wanted:
        case RangeByteRequest(start, end):
            return start, min(end, size)
        case OffsetByteRequest(offset):
            return offset, size
        case SuffixByteRequest(suffix):
            return max(size - suffix, 0), size
        case _:
            return 0, size
