"""Training on a damaged cache stops with the file's name and its repair, and trains on nothing of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fusion.speech import toy_cache, toy_recipe


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_cache(tmp_path_factory.mktemp("sound") / "cache")


@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_training_stops_with_the_shards_name(sound: Path, tmp_path: Path, damage: str) -> None:
    cache = Path(shutil.copytree(sound, tmp_path / "cache"))
    shard = cache / "segments/000000/values/c/2/0/0"
    data = bytearray(shard.read_bytes())
    if damage == "missing":
        shard.unlink()
    else:
        data[len(data) // 3] ^= 4
        shard.write_bytes(data)
    (tmp_path / "toy.toml").write_text(toy_recipe(cache, 200))
    ran = subprocess.run(
        [sys.executable, "-m", "fusion", "train", "toy.toml", "--runs", "runs"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"},
    )  # fmt: skip
    errors = [line for line in ran.stderr.splitlines() if line.startswith("error:")]
    assert ran.returncode == 1 and "Traceback" not in ran.stderr, ran.stderr
    assert len(errors) == 1 and ran.stderr.splitlines()[-1] == errors[0]
    assert str(shard) in errors[0] and f"featcache repair MANIFEST {cache}" in errors[0]
    # It was found in the first epoch, before any evaluation, and there are no scores.
    assert not ran.stdout and not list(tmp_path.glob("runs/*/metrics.json"))
