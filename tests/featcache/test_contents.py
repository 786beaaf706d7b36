"""What belongs to a cache: of every file of a real one, each of these says the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from featcache import contents, layout
from featcache.storage import LocalStorage
from featcache.verify import verify
from tests.helpers import make_cache


def test_every_file_of_a_cache_is_of_one_kind(tmp_path: Path) -> None:
    features = {"a": np.ones((300, 2, 3), np.float32), "b": np.ones((100, 2, 3), np.float32)}
    storage = LocalStorage(make_cache(tmp_path / "c", features, {"a": {"who": "x"}}))
    kinds: dict[str, list[str]] = {}
    for key in storage.list_keys():
        inside = key.removeprefix("segments/000000/")
        found = [
            name
            for name, holds in {
                "root": key == layout.ROOT,
                "calibration": contents.is_calibration(key),
                "metadata": inside != key and contents.is_metadata(inside, ["values"]),
                "shard": contents.is_shard(key),
                "seal": contents.is_seal(key),
                "record": contents.is_record(key),
                "labels": inside.startswith("labels/") and not contents.is_record(key),
            }.items()
            if holds
        ]
        assert len(found) == 1, key
        assert not contents.is_foreign(key) and not contents.is_beside(key)
        assert contents.proves(key) == (found[0] in ("root", "seal", "record"))
        assert contents.is_mendable(key) == (found[0] not in ("root", "calibration", "seal"))
        kinds.setdefault(found[0], []).append(key)
    assert [contents.shard_of(key) for key in sorted(kinds["shard"])] == [0, 1]
    ledger = [key for key in sorted(kinds["record"]) if "/ledger/" in key]
    assert [contents.shard_of(key) for key in ledger] == [0, 1]
    assert contents.shard_of("segments/000000/index/frames/c/0") is None and verify(storage.root).whole


def test_what_lies_beside_a_cache_is_none_of_it() -> None:
    for key in ("log/rates.json", "log/leases/adding/0", "segments/000000/leases/000003"):
        assert contents.is_beside(key) and not contents.is_foreign(key)
    for key in ("notes.txt", "lost+found", "zarr.json/x"):
        assert contents.is_foreign(key)
    # Those of a NAS or a file manager within a cache's folders.
    for key in ("segments/000000/index/frames/@eaDir/x", "segments/000000/.DS_Store"):
        assert not contents.is_metadata(key.removeprefix("segments/000000/"), ["codes"])
    assert not contents.is_calibration("calibration/scale/.DS_Store")
    # Of a ledger as a whole, and of a cache that does not open.
    for key in ("segments/000000/ledger", ""):
        assert contents.proves(key) and not contents.is_mendable(key)
