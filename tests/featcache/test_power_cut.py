"""A power cut: all that was not synced is gone, names as well as bytes. What is left goes on to the same cache."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featcache.digest import sha256
from featcache.job import Job, Request
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig
from tests.helpers import contents, make_speech

MEL = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=128))


class Disk:
    """What of a folder would survive a power cut: bytes of synced files, names of synced folders."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.syncs = 0
        self._bytes: dict[int, bytes] = {}
        self._names: dict[str, dict[str, int | None]] = {}

    @contextmanager
    def watched(self, at: set[int], cuts: Path) -> Iterator[None]:
        """Keep what would be left right before each of these syncs, as `cuts / number`."""
        real, one_at_a_time = os.fsync, threading.Lock()

        def sync(descriptor: int) -> None:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            with one_at_a_time:  # leases and shards are written by threads of their own
                if self.syncs in at:
                    self._restore(self.root, cuts / str(self.syncs))
                self.syncs += 1
                if os.path.isdir(path):
                    found = list(os.scandir(path))
                    self._names[path] = {e.name: None if e.is_dir() else e.inode() for e in found}
                else:
                    self._bytes[os.fstat(descriptor).st_ino] = Path(path).read_bytes()

        os.fsync = sync
        try:
            yield
        finally:
            os.fsync = real

    def _restore(self, folder: Path, target: Path) -> None:
        target.mkdir(parents=True)
        for name, inode in self._names.get(str(folder), {}).items():
            if inode is None:
                self._restore(folder / name, target / name)
            else:
                (target / name).write_bytes(self._bytes.get(inode, b""))


def test_it_goes_on_after_a_power_cut_at_any_time(tmp_path: Path) -> None:
    speech = make_speech(tmp_path, 6)
    root, cuts = tmp_path / "disk", tmp_path / "cuts"
    root.mkdir()
    job = Job(speech, root / "whole", MEL)
    first = Disk(root)
    with first.watched(set(), cuts):
        job.extract()
    expected = contents(root / "whole")
    assert first.syncs > 100
    # Anywhere; and in the last steps, which write index, labels and seal.
    chosen = {*random.Random(7).sample(range(first.syncs - 12), 14), *range(first.syncs - 12, first.syncs, 3)}
    disk = Disk(root)
    with disk.watched(chosen, cuts):
        again = Job(speech, root / "again", MEL)
        again.use(job.upstream)
        again.extract()
    assert contents(root / "again") == expected
    unlike = 0
    for number in sorted(chosen & set(range(disk.syncs))):
        place = cuts / str(number) / "again"
        records = {path: path.read_bytes() for path in place.glob("segments/*/ledger/*.json")}
        for data in records.values():
            for name, proof in json.loads(data)["content"]["files"].items():
                assert sha256((place / "segments/000000" / name).read_bytes()) == proof["sha256"]
        unlike += contents(place) != expected if place.exists() else 1
        resumed = Job(speech, place, MEL)
        resumed.use(job.upstream)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: None)
            # The process that was cut is this one: its leases are those of a dead one.
            patch.setattr("featcache.lease.may_run", lambda *process: False)
            patch.setattr("featcache.storage.left_by_the_dead", lambda name: True)
            resumed.extract()
        assert contents(place) == expected, f"cut before sync {number} of {disk.syncs}"
        assert all(path.read_bytes() == data for path, data in records.items())
    assert unlike > 10
