"""Training from a cache that lies on S3 ends in the same weights as from a local one, server lost or not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from featcache.errors import CacheError, UsageError
from fusion import checkpoint, recipe
from fusion import train as training
from tests.fusion.speech import toy_cache, toy_recipe
from tests.s3 import Bucket, Wire


@pytest.fixture
def url(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(tmp_path / "blocks"))
    cache = toy_cache(tmp_path / "cache", 20)
    for path in cache.rglob("*"):
        if path.is_file():
            bucket.put(f"toy/{path.relative_to(cache).as_posix()}", path.read_bytes())
    return f"{bucket.url}/toy"


def weights(cache: str | Path, runs: Path) -> dict[str, torch.Tensor]:
    made = recipe.parse(toy_recipe(Path("CACHE"), 4, "linear").replace("CACHE", str(cache)), ("train.eval_every=2",))
    run = training.fit(made, runs=runs, console=Console(file=io.StringIO()))
    return checkpoint.load(run.files.checkpoint)[0]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_same_weights_as_from_disk_also_after_losing_the_server(
    url: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = weights(tmp_path / "cache", tmp_path / "local")
    # Without the cache of blocks every batch is fetched, so that the wire is cut within an epoch.
    monkeypatch.setenv("FEATCACHE_BLOCKS_GB", "0")
    wire = Wire(bucket.server.port, cut_after=90_000)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        with pytest.raises(CacheError, match="the server cannot be reached"):
            weights(url, tmp_path / "remote")
    assert wire.is_cut and (tmp_path / "remote/toy/recipe.toml").exists()
    monkeypatch.delenv("FEATCACHE_BLOCKS_GB")
    assert equal(weights(url, tmp_path / "remote"), local)


def test_a_cache_that_is_not_there_is_said_so(url: str, tmp_path: Path) -> None:
    with pytest.raises((CacheError, UsageError), match="there is no cache at s3://"):
        weights(f"{url}-elsewhere", tmp_path / "runs")
