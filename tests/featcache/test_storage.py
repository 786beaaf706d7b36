"""Durable, whole or absent: what the ledger's promise rests on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from featcache.errors import CacheError, JobError
from featcache.process import own_name
from featcache.storage import LocalStorage


def test_write_syncs_the_file_before_the_name_and_the_name_before_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    real_sync, real_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        log.append("sync folder" if os.path.isdir(path) else "sync file")
        real_sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        log.append("rename")
        return real_replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    LocalStorage(tmp_path).write("a", b"1")
    assert log == ["sync file", "rename", "sync folder"]


def test_a_failed_write_leaves_the_old_bytes_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a/b", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(JobError, match="no space left.*finished shards are safe"):
        storage.write("a/b", b"new")
    assert storage.read("a/b") == b"old"
    assert os.listdir(tmp_path / "a") == ["b"]


def test_create_is_exclusive(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    barrier = threading.Barrier(8)
    won: list[bool] = []

    def attempt(number: int) -> None:
        barrier.wait()
        won.append(storage.create("lease", str(number).encode()))

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1
    assert os.listdir(tmp_path) == ["lease"]


def test_a_place_that_cannot_be_written_to_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(JobError, match="cannot be written"):
        LocalStorage(tmp_path / "file").write("a", b"1")


@pytest.mark.parametrize(
    "look",
    [
        lambda storage: storage.exists("a"),
        lambda storage: storage.read("a"),
        lambda storage: storage.size("a"),
        lambda storage: list(storage.list_keys()),
        lambda storage: storage.folders(""),
        lambda storage: storage.free_bytes(),
    ],
)
def test_a_place_that_cannot_be_looked_at_is_one_clear_line(
    tmp_path: Path, look: Callable[[LocalStorage], object]
) -> None:
    """With a name that is too long, since no permission is refused to root."""
    with pytest.raises(CacheError, match=r"cannot be (read|listed) \(File name too long\): mend that") as caught:
        look(LocalStorage(tmp_path / ("x" * 300)))
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_listed_is_not_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("a/1", b"")
    storage.write("b/c/1", b"")
    scan = os.scandir
    refused = errno.EACCES

    def scandir(path: str) -> object:
        if str(path) == str(tmp_path / "b" / "c"):
            raise OSError(refused, os.strerror(refused), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(CacheError, match=r"b/c cannot be listed \(Permission denied\)"):
        list(storage.list_keys())
    with pytest.raises(CacheError, match=r"b/c cannot be listed \(Permission denied\)"):
        storage.delete_folder("b")
    refused = errno.ENOENT  # another process has just removed it
    assert list(storage.list_keys()) == ["a/1"]


def test_listing_leaves_out_what_is_being_written(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    storage.write("b/2", b"")
    storage.write("b/1", b"")
    (tmp_path / "b" / ".tmp-x").write_bytes(b"half")
    assert list(storage.list_keys()) == ["b/1", "b/2"]
    half = subprocess.run(
        [sys.executable, "-c", "from featcache.process import own_name; print(own_name())"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    ).stdout.strip()  # fmt: skip
    (tmp_path / "b" / f".tmp-{half}").write_bytes(b"half")
    (tmp_path / "b" / f".tmp-{own_name()}").write_bytes(b"still being written")
    os.utime(tmp_path / "b" / ".tmp-x", (0, 0))
    storage.delete_temporary("")
    assert [name for name in os.listdir(tmp_path / "b") if name.startswith(".tmp-")][0].split("-")[2] == str(
        os.getpid()
    )
    assert len(os.listdir(tmp_path / "b")) == 3
    assert storage.read("b/3") is None and storage.size("b/3") is None and storage.folders("c") == []


def test_a_file_that_gets_its_name_while_leftovers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread or process may name or remove its temporary file between the listing and the look at it."""
    storage = LocalStorage(tmp_path)
    storage.write("lease", b"1")
    for name in ("b", "c"):
        (tmp_path / f".tmp-{name}").write_bytes(b"2")

    def named_just_now(name: str) -> bool:
        (tmp_path / f".tmp-{name}").replace(tmp_path / name)
        return False

    monkeypatch.setattr("featcache.storage.left_by_the_dead", named_just_now)
    storage.delete_temporary("")
    assert sorted(os.listdir(tmp_path)) == ["b", "c", "lease"]
