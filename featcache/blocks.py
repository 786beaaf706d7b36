"""A bounded cache on the local disk for pieces of remote files: read through, least recently used goes first.

A block is a file of its bytes and their CRC-32, written under a temporary name; one that does not match is
dropped and fetched again. What a name stands for never changes: it includes the remote file's ETag, so that a
replaced file is another block.
Several processes may share a folder: each keeps it within its limit, give or take what the others write
between two looks.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import zlib
from pathlib import Path

from featcache.digest import sha256
from featcache.errors import UsageError
from featcache.process import own_name
from featcache.storage import TEMPORARY, TEMPORARY_SECONDS

BLOCK_BYTES = 1 << 20
DEFAULT_GB = 10.0
# Evicting stops at this share of the limit, so that it is not done for every block.
LOW_WATER = 0.9
_CRC = 4


class Blocks:
    """Blocks by name, in a folder, `limit` bytes at most. Safe to use from threads and processes.

    Those of one place lie together, so that what was forgotten there can be removed here.

    Args:
        shelf: the folder below, of one place in one state, that blocks are put into; the limit holds for all.
    """

    def __init__(self, folder: Path, limit: int, shelf: str = "") -> None:
        self.folder = folder
        self.limit = limit
        self._shelf = folder / shelf
        self._lock = threading.Lock()
        self._total: int | None = None
        self._written = 0

    def of(self, place: str, state: str) -> Blocks:
        """Those of one place; all that was kept of it in another state is removed."""
        shelves = _shelves(place)
        name = sha256(state.encode())[:16]
        with contextlib.suppress(OSError):
            for other in (self.folder / shelves).iterdir():
                if other.name != name:
                    shutil.rmtree(other, ignore_errors=True)
        return Blocks(self.folder, self.limit, f"{shelves}/{name}")

    def drop(self, place: str) -> None:
        """Remove all that was kept of a place."""
        shutil.rmtree(self.folder / _shelves(place), ignore_errors=True)

    def get(self, name: str, size: int | None = None) -> bytes | None:
        """A block as it was put; None where it is not here, or not whole.

        Args:
            size: of the block in bytes, where it is known. The checksum of nothing is zero: four bytes of zeros, as
                a crash leaves them, are a whole block of none.
        """
        path = self._path(name)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        block, crc = data[:-_CRC], data[-_CRC:]
        if zlib.crc32(block).to_bytes(_CRC, "little") == crc and size in (None, len(block)):
            return block
        path.unlink(missing_ok=True)
        return None

    def put(self, name: str, block: bytes) -> None:
        """Keep a block. A disk that is full or read-only costs speed, not the job: then nothing is kept."""
        size = len(block) + _CRC
        if size > self.limit:
            return
        path = self._path(name)
        temporary = path.with_name(TEMPORARY + own_name())
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._make_room(size)
            with temporary.open("wb") as file:
                file.write(block)
                file.write(zlib.crc32(block).to_bytes(_CRC, "little"))
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _make_room(self, size: int) -> None:
        with self._lock:
            # Others write here too: look again after an eighth of the limit.
            if self._total is None or self._written > self.limit // 8:
                self._total, self._written = self._scan(self.limit), 0
            if self._total + size > self.limit:
                self._total = self._scan(min(int(self.limit * LOW_WATER), self.limit - size))
            self._total += size
            self._written += size

    def _scan(self, keep: int) -> int:
        """Remove the blocks that were not used for longest until `keep` bytes are left; returns what is left."""
        found: list[tuple[int, int, Path]] = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder) / name
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                if name.startswith(TEMPORARY) and status.st_mtime < time.time() - TEMPORARY_SECONDS:
                    path.unlink(missing_ok=True)
                else:
                    found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= keep:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    def _path(self, name: str) -> Path:
        digest = sha256(name.encode())[:40]
        return self._shelf / digest[:2] / digest[2:]


def _shelves(place: str) -> str:
    """The name of the folder that holds all blocks of a place."""
    return f"of-{sha256(place.encode())[:16]}"


def default_blocks() -> Blocks | None:
    """The cache that FEATCACHE_BLOCKS (a folder) and FEATCACHE_BLOCKS_GB ask for; None for 0 GB.

    By default 10 GB, or half of what the disk has free if that is less, below XDG_CACHE_HOME or ~/.cache.
    Features reveal speech: the folder is for its owner alone.
    """
    text = os.environ.get("FEATCACHE_BLOCKS_GB")
    try:
        gigabytes = float(text) if text else None
        if gigabytes is not None and not 0 <= gigabytes < 1e9:
            raise ValueError
    except ValueError:
        raise UsageError(f"FEATCACHE_BLOCKS_GB={text} is not a number of gigabytes: write for instance 20") from None
    home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = Path(os.environ.get("FEATCACHE_BLOCKS") or home / "featcache" / "blocks")
    if gigabytes == 0:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(folder).free
    except OSError:
        return None
    return Blocks(folder, int(min(DEFAULT_GB * 1e9, free / 2) if gigabytes is None else gigabytes * 1e9))
