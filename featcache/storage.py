"""Bytes by key, durably: what a cache needs of the place that it lies in.

Everything a cache is made of goes through `Storage.write`, which returns only when the bytes would
survive a power cut, and which never shows half a file. Zarr renders arrays into memory first
(`featcache.layout`); zarr's own local store neither syncs nor writes through a temporary file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import zarr.abc.store
import zarr.storage

from featcache import contents, layout
from featcache.case import ignores_case
from featcache.errors import CacheError, JobError
from featcache.process import left_by_the_dead, own_name
from featcache.s3 import S3Settings, S3Url, is_s3

TEMPORARY = ".tmp-"
# A temporary file of which it is not known whose it is, is taken for abandoned after this time.
TEMPORARY_SECONDS = 3600


@dataclass(frozen=True)
class Address:
    """What another process needs to open a storage: a path, or a URL and how to reach it (never with keys)."""

    place: str
    s3: S3Settings | None = None

    def absolute(self) -> Address:
        """With a path that holds in every folder of this machine, and of those that mount it there as well."""
        return self if is_s3(self.place) else Address(os.path.abspath(self.place))

    def __str__(self) -> str:
        return self.place


class Storage(ABC):
    """A place for bytes by key. Keys are relative POSIX paths; `str` of it opens it again (`open_storage`).

    Whatever looks at the place raises CacheError where it cannot be looked at, which is not the same as empty.
    """

    @abstractmethod
    def zarr(self) -> zarr.abc.store.Store:
        """A read-only zarr store over the same keys."""

    @property
    @abstractmethod
    def address(self) -> Address:
        """Opens the same place again."""

    @abstractmethod
    def exists(self, key: str) -> bool: ...

    @abstractmethod
    def read(self, key: str) -> bytes | None:
        """The bytes of a key; None where there is none."""

    @abstractmethod
    def size(self, key: str) -> int | None:
        """Bytes of a key; None where there is none."""

    def identity(self, key: str) -> tuple[int, ...] | None:
        """What changes when a file is replaced; None where there is no file, or reading notices by itself."""
        return None

    @abstractmethod
    def list_keys(self, prefix: str = "") -> Iterator[str]:
        """All keys below a folder, sorted within each folder; files still being written are left out."""

    @abstractmethod
    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a folder."""

    @abstractmethod
    def write(self, key: str, data: bytes | memoryview) -> None:
        """Write or replace a key, whole or not at all; it is durable when this returns.

        Raises:
            JobError: the place is full, or cannot be written to.
        """

    @abstractmethod
    def create(self, key: str, data: bytes) -> bool:
        """Write a key that must not be there yet; False where it is. Exclusive among all processes."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove a key, if it is there."""

    @abstractmethod
    def delete_folder(self, prefix: str) -> None:
        """Remove all keys below a folder."""

    @abstractmethod
    def move_folder(self, source: str, target: str) -> None:
        """Give a segment's folder another name, durably; the target must not be there.

        Where that cannot be done at once, the source keeps its seal until the target is complete.
        """

    @abstractmethod
    def delete_temporary(self, prefix: str) -> None:
        """Remove what killed writers left half-written below a folder."""

    def drop_kept(self) -> None:  # noqa: B027 - most keep nothing
        """Remove what this machine keeps elsewhere of what was read here."""

    def ignores_case(self) -> bool:
        """Whether keys that differ only in case are one here."""
        return False

    @abstractmethod
    def free_bytes(self) -> int:
        """Space that is left."""


class LocalStorage(Storage):
    """A folder of a local or shared file system."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def __str__(self) -> str:
        return str(self.root)

    def path(self, key: str) -> Path:
        return self.root / key

    @property
    def address(self) -> Address:
        return Address(str(self.root))

    def zarr(self) -> zarr.abc.store.Store:
        return zarr.storage.LocalStore(self.root, read_only=True)

    def exists(self, key: str) -> bool:
        with _found(self.path(key)):
            return stat.S_ISREG(self.path(key).stat().st_mode)
        return False

    def read(self, key: str) -> bytes | None:
        with _found(self.path(key)):
            return self.path(key).read_bytes()
        return None

    def size(self, key: str) -> int | None:
        with _found(self.path(key)):
            return self.path(key).stat().st_size
        return None

    def identity(self, key: str) -> tuple[int, ...] | None:
        # Every read asks for it, and a `Path` takes longer to make than the answer.
        path = os.path.join(self.root, key)
        try:
            found = os.stat(path)
        except OSError as error:
            with _found(Path(path)):
                raise error
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def list_keys(self, prefix: str = "") -> Iterator[str]:
        for folder, folders, files in _walk(self.path(prefix), foreign=not prefix):
            folders.sort()
            for name in sorted(files):
                if not name.startswith(TEMPORARY):
                    yield (Path(folder) / name).relative_to(self.root).as_posix()

    def folders(self, prefix: str) -> list[str]:
        with _found(self.path(prefix), "listed"):
            return sorted(entry.name for entry in self.path(prefix).iterdir() if entry.is_dir())
        return []

    def write(self, key: str, data: bytes | memoryview) -> None:
        """Temporary file, fsync, rename, fsync of the folder."""
        with self._written(key, data) as temporary:
            temporary.replace(self.path(key))

    def create(self, key: str, data: bytes) -> bool:
        with self._written(key, data) as temporary:
            try:
                # A hard link appears whole or not at all, and fails where the name is taken.
                os.link(temporary, self.path(key))
            except FileExistsError:
                return False
        return True

    def temporary(self, key: str) -> Path:
        """Where another program may write a key, for `adopt` to take in; its folder is made."""
        path = self.path(key)
        with self._explained(path):
            self._make_folder(path.parent)
        return path.with_name(TEMPORARY + own_name())

    def adopt(self, key: str, written: Path) -> None:
        """Take in what another program has written to `temporary`: sync it, then give it its name."""
        path = self.path(key)
        with self._explained(path):
            sync_path(written)
            written.replace(path)
            sync_path(path.parent)

    def delete(self, key: str) -> None:
        with self._explained(self.path(key), "removed"):
            self.path(key).unlink(missing_ok=True)

    def delete_folder(self, prefix: str) -> None:
        for folder, folders, files in _walk(self.path(prefix), topdown=False):
            for name in files:
                self.delete(f"{Path(folder).relative_to(self.root).as_posix()}/{name}")
            for name in folders:
                path = Path(folder) / name
                if path.is_symlink():
                    # What lies behind it goes as well.
                    self.delete_folder(path.relative_to(self.root).as_posix())
                else:
                    self._remove_folder(path)
        self._remove_folder(self.path(prefix))

    def move_folder(self, source: str, target: str) -> None:
        new = self.path(target)
        with self._explained(new):
            self._make_folder(new.parent)
            self.path(source).rename(new)
            sync_path(new.parent)
            sync_path(self.path(source).parent)

    def delete_temporary(self, prefix: str) -> None:
        for folder, _, files in os.walk(self.path(prefix)):
            for path in (Path(folder) / name for name in files if name.startswith(TEMPORARY)):
                if left_by_the_dead(path.name.removeprefix(TEMPORARY)) or _untouched(path):
                    self.delete(path.relative_to(self.root).as_posix())

    def ignores_case(self) -> bool:
        # In the log, where a file that is no part of the cache is passed over.
        folder = self.path(layout.LOG)
        with self._explained(folder, "made"):
            folder.mkdir(parents=True, exist_ok=True)
        return ignores_case(folder)

    def free_bytes(self) -> int:
        """Free disk space at the nearest folder that exists."""
        path = self.root.absolute()
        with _found(path):
            while not path.exists():
                path = path.parent
            return shutil.disk_usage(path).free
        return 0

    @contextlib.contextmanager
    def _written(self, key: str, data: bytes | memoryview) -> Iterator[Path]:
        """A temporary file with these bytes, synced, for the block to name; gone after it, and the folder synced."""
        path = self.path(key)
        temporary = path.with_name(TEMPORARY + own_name())
        with self._explained(path):
            self._make_folder(path.parent)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                yield temporary
                sync_path(path.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def _remove_folder(self, path: Path) -> None:
        with self._explained(path, "removed"):
            try:
                # A folder of a cache may be a link to another disk.
                path.unlink() if path.is_symlink() else path.rmdir()
            except OSError as error:
                # Another process has removed it, or has put something new into it.
                if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        missing = [folder]
        while not missing[-1].parent.is_dir():
            missing.append(missing[-1].parent)
        folder.mkdir(parents=True, exist_ok=True)
        for made in missing:
            sync_path(made.parent)

    @contextlib.contextmanager
    def _explained(self, path: Path, done: str = "written") -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise JobError(f"{path} could not be {done}: its folder went away") from error
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise JobError(
                    f"no space left to write {path}: finished shards are safe; free some space and "
                    "run the same command again"
                ) from error
            raise JobError(
                f"{path} cannot be {done} ({error.strerror}): finished shards are safe; mend that and "
                "run the same command again"
            ) from error


@contextlib.contextmanager
def _found(path: Path, done: str = "read") -> Iterator[None]:
    """Looks at a path: one that is not there ends the block quietly, all else that goes wrong is one clear line.

    Raises:
        CacheError: the path cannot be looked at.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise CacheError(f"{path} cannot be {done} ({error.strerror}): mend that, or give another path") from error


def _walk(top: Path, topdown: bool = True, foreign: bool = False) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`, which takes a folder that cannot be listed for an empty one: what it holds would then be
    computed anew, or removed as the rest of nothing.

    Args:
        foreign: folders right below that are none of a cache's may be closed to us, as `lost+found` of a disk is.

    Raises:
        CacheError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        closed = Path(error.filename or top)
        if foreign and closed.parent == top and contents.is_foreign(closed.name):
            return
        with _found(Path(error.filename or top), "listed"):
            raise error

    return os.walk(top, topdown, onerror=refuse)


def _untouched(path: Path) -> bool:
    """Whether nobody has written to a temporary file for so long that its writer must be gone."""
    try:
        return path.stat().st_mtime < time.time() - TEMPORARY_SECONDS
    except FileNotFoundError:
        # Its writer, who is well, has just given it its name.
        return False


def sync_path(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_storage(place: str | Path | Address) -> Storage:
    """The storage behind a path, an `s3://` URL (reached as command line, environment and AWS's files say) or an
    address.
    """
    address = place if isinstance(place, Address) else Address(str(place))
    if is_s3(address.place):
        from featcache.s3_storage import S3Storage

        return S3Storage(S3Url.parse(address.place), address.s3)
    return LocalStorage(address.place)
