"""Training from a cache that lies on S3 ends in the same weights as from a local one, server lost or not."""

from __future__ import annotations

import io
import re
import threading
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from featcache import s3_storage
from featcache.errors import CacheError, UsageError
from fusion import checkpoint, recipe
from fusion import train as training
from tests.fusion.speech import toy_cache, toy_recipe
from tests.s3 import IMPATIENT, Bucket, Server


@pytest.fixture
def url(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(tmp_path / "blocks"))
    cache = toy_cache(tmp_path / "cache", 20)
    for path in cache.rglob("*"):
        if path.is_file():
            bucket.put(f"toy/{path.relative_to(cache).as_posix()}", path.read_bytes())
    return f"{bucket.url}/toy"


def weights(cache: str | Path, runs: Path, said: io.StringIO | None = None) -> dict[str, torch.Tensor]:
    made = recipe.parse(toy_recipe(Path("CACHE"), 12, "linear").replace("CACHE", str(cache)), ("train.eval_every=3",))
    run = training.fit(made, runs=runs, console=Console(file=said or io.StringIO()))
    return checkpoint.load(run.files.checkpoint)[0]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_server_that_is_killed_in_an_epoch_costs_no_step_that_was_saved(
    url: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = weights(tmp_path / "cache", tmp_path / "local")
    # Without the cache of blocks every batch is fetched.
    monkeypatch.setenv("FEATCACHE_BLOCKS_GB", "0")
    monkeypatch.setattr(s3_storage, "RETRIES", IMPATIENT)
    server = Server()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
    copy(bucket, server.make_bucket(bucket.name))
    runs = tmp_path / "remote"

    def kill() -> None:
        while server.alive and not (runs / "toy/state.json").exists():
            time.sleep(0.001)
        server.stop()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with pytest.raises(CacheError, match="the server cannot be reached"):
            weights(url, runs)
    finally:
        server.stop()
        killer.join()
    assert (runs / "toy/recipe.toml").exists() and not (runs / "toy/metrics.json").exists()
    # Another server with the same objects at the same place, and this time through the cache of blocks.
    server = Server(server.port)
    try:
        copy(bucket, server.make_bucket(bucket.name))
        monkeypatch.delenv("FEATCACHE_BLOCKS_GB")
        said = io.StringIO()
        assert equal(weights(url, runs, said), local) and re.search(r"going on from step [369]", said.getvalue())
    finally:
        server.stop()


def copy(source: Bucket, target: Bucket) -> None:
    for key, data in source.files().items():
        target.put(key, data)


def test_mistakes_are_one_line(url: str, bucket: Bucket, tmp_path: Path) -> None:
    for place, words in (
        (f"{url}-elsewhere", "there is no cache at s3://"),
        ("s3://no-such-bucket-here/x", "there is no such bucket"),
    ):
        with pytest.raises((CacheError, UsageError), match=words):
            weights(place, tmp_path / "runs")
    with bucket.server.only_known_keys(), pytest.raises(CacheError, match="the keys are refused") as caught:
        weights(url, tmp_path / "runs")
    assert "\n" not in str(caught.value) and not (tmp_path / "runs/toy").exists()
