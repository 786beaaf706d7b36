"""Shards read from their files: what zarr-python reads, or an error; never other values."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache import Cache, layout, shardfile
from featcache.block import ShardBlock
from featcache.codec import Plane
from featcache.errors import CorruptCacheError
from featcache.shardfile import ShardFiles
from featcache.spec import Layout
from tests.helpers import make_cache

PROFILES: dict[str, dict[str, Any]] = {"fp16": {}, "int8": {}, "residual": {}, "blosc": {"step": 0.5}}


@pytest.fixture(scope="module", params=PROFILES)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(3)
    features = {f"u{i}": rng.standard_normal((1 + 13 * i, 2, 8)).astype(np.float32) for i in range(14)}
    place = tmp_path_factory.mktemp(request.param) / "cache"
    return make_cache(place, features, profile=request.param, parameters=PROFILES[request.param])


def test_every_range_is_what_zarr_reads(place: Path) -> None:
    [segment] = Cache.open(place).segments
    assert set(segment._files) == set(segment._planes), "all planes are of the layout that is read directly"
    rng = np.random.default_rng(0)
    for name, array in segment._planes.items():
        files = segment._files[name]
        for shard in range(array.shape[0] // files.shard_frames):
            path = place / segment.name / name / "c" / "/".join([str(shard), *("0" for _ in array.shape[1:])])
            for _ in range(20):
                first, end = sorted(rng.integers(0, files.shard_frames + 1, 2).tolist())
                found = files.read(path, first, end)
                expected = np.asarray(array[shard * files.shard_frames + first : shard * files.shard_frames + end])
                assert found.dtype == expected.dtype
                np.testing.assert_array_equal(found, expected)


def test_a_flipped_byte_is_an_error_or_changes_nothing(place: Path, tmp_path: Path) -> None:
    expected = [Cache.open(place).read(i) for i in range(14)]
    copy = tmp_path / "cache"
    shutil.copytree(place, copy)
    [shard] = [p for p in copy.glob("segments/000000/*/c/0/**/*") if p.is_file() and p.stat().st_size > 1000][:1]
    data = shard.read_bytes()
    errors = 0
    for at in np.linspace(0, len(data) - 1, 60).astype(int).tolist():
        shard.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        cache = Cache.open(copy)
        for i in range(14):
            try:
                np.testing.assert_array_equal(cache.read(i), expected[i])
            except CorruptCacheError as error:
                errors += 1
                assert "repair" in str(error)
    assert errors >= 60, "the chunks and the index fill the file: hardly a byte goes unread"


def test_a_shard_that_was_replaced_is_read_anew(place: Path, tmp_path: Path) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(place, copy)
    cache = Cache.open(copy)
    expected = cache.read(13)
    # The largest plane: rows need nothing of the others where everything fits it.
    for shard in [p for p in copy.glob(f"segments/000000/{cache.codec.planes[0].name}/c/**/*") if p.is_file()]:
        data = shard.read_bytes()
        shard.write_bytes(b"\0" * len(data))
        with pytest.raises(CorruptCacheError):
            [cache.read(i) for i in range(14)]
        shard.unlink()
        shard.write_bytes(data)
    np.testing.assert_array_equal(cache.read(13), expected)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("codecs", 0, "configuration", "index_location"), "start"),
        (("codecs", 0, "configuration", "codecs", 1, "name"), "gzip"),
        (("codecs", 0, "configuration", "chunk_shape", 1), 3),
        (("codecs", 0, "name"), "transpose"),
        (("data_type",), "r8"),
    ],
)
def test_what_is_laid_out_otherwise_is_left_to_zarr(place: Path, path: tuple[str | int, ...], value: object) -> None:
    [plane, *_] = Cache.open(place).codec.planes
    document = json.loads((place / "segments/000000" / plane.name / "zarr.json").read_bytes())
    assert ShardFiles.of(json.dumps(document).encode()) is not None
    part = document
    for key in path[:-1]:
        part = part[key]
    assert part[path[-1]] != value
    part[path[-1]] = value
    assert ShardFiles.of(json.dumps(document).encode()) is None


@pytest.mark.parametrize("filled", [[], [0], [3], [0, 1, 2, 3, 4], [1, 4]])
def test_a_sparse_shard_has_the_bytes_that_zarr_writes(filled: list[int]) -> None:
    sparse = Plane("exact", "<f4", (2, 3), level=1, sparse=True)
    block = np.zeros((5 * Layout().chunk_frames, 2, 3), np.float32)
    for chunk in filled:
        # Zero with its sign is a value.
        block[chunk * Layout().chunk_frames + 7, 1, 2] = -0.0 if chunk == 3 else chunk + 0.5
    expected = layout.render_shard(replace(sparse, sparse=False), Layout(), block)
    made = ShardBlock([sparse], Layout(), len(block))
    for at in range(0, len(block), 100):
        made.put({"exact": block[at : at + 100]}, at)
    found = made.render()["exact"]
    assert found == expected
    assert shardfile.join(shardfile.split(found, 5)) == found
