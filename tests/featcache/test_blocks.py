"""The cache of blocks on the local disk: bounded, least recently used goes first, never a wrong byte."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.blocks import Blocks, default_blocks
from featcache.errors import UsageError


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 40)), max_size=40), st.integers(0, 200))
def test_never_more_than_the_limit_and_never_other_bytes(puts: list[tuple[int, int]], limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        blocks = Blocks(Path(folder), limit)
        known: dict[str, bytes] = {}
        for name, size in puts:
            last = f"{name} of {size} bytes"
            known[last] = bytes([name]) * size
            blocks.put(last, known[last])
            assert size_of(Path(folder)) <= limit
            for each, data in known.items():
                assert blocks.get(each) in (None, data)
        if puts and len(known[last]) + 4 <= limit:
            assert blocks.get(last) == known[last]


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path, 3 * 104)
    for time, name in enumerate("abc"):
        blocks.put(name, bytes(100))
        os.utime(blocks._path(name), (time, time))
    assert blocks.get("a") is not None  # and so it was used just now
    blocks.put("d", bytes(100))
    assert [name for name in "abcd" if blocks.get(name) is None] == ["b"]


def test_a_damaged_block_is_dropped_and_a_full_disk_is_no_error(tmp_path: Path) -> None:
    blocks = Blocks(tmp_path / "folder", 1000)
    blocks.put("a", b"some bytes")
    path = blocks._path("a")
    for damage in (b"", b"some bytes", path.read_bytes()[:-1], b"X" + path.read_bytes()[1:]):
        path.write_bytes(damage)
        assert blocks.get("a") is None and not path.exists()
        blocks.put("a", b"some bytes")
    assert blocks.get("a") == b"some bytes"
    # Zeros are their own checksum, of nothing; as is a whole block of another length.
    for damage in (bytes(4), b"less" + zlib.crc32(b"less").to_bytes(4, "little")):
        path.write_bytes(damage)
        assert blocks.get("a", size=10) is None and not path.exists()
        blocks.put("a", b"some bytes")
    assert blocks.get("a", size=10) == b"some bytes"
    (tmp_path / "file").write_bytes(b"")
    Blocks(tmp_path / "file", 1000).put("a", b"1")
    assert Blocks(tmp_path / "file", 1000).get("a") is None


def test_folder_and_limit_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = default_blocks()
    assert found is not None and found.folder == tmp_path / "featcache" / "blocks" and 0 < found.limit <= 10e9
    assert found.folder.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(tmp_path / "other"))
    monkeypatch.setenv("FEATCACHE_BLOCKS_GB", "0.5")
    found = default_blocks()
    assert found is not None and (found.folder, found.limit) == (tmp_path / "other", 500_000_000)
    monkeypatch.setenv("FEATCACHE_BLOCKS_GB", "0")
    assert default_blocks() is None
    monkeypatch.setenv("FEATCACHE_BLOCKS_GB", "lots")
    with pytest.raises(UsageError, match="FEATCACHE_BLOCKS_GB=lots is not a number"):
        default_blocks()
