"""The bench of S3: a small run against a server of its own, which is gone afterwards, as is what it set."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from featcache.errors import UsageError
from pipelines.bench.s3 import AGAIN, DIRECT, FIRST, LOCAL, Plan, print_tables, run
from tests.fusion.speech import toy_cache, toy_recipe


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = toy_cache(tmp_path / "cache", 40)
    recipe = tmp_path / "toy.toml"
    recipe.write_text(toy_recipe(cache, 30, "linear"))
    before = dict(os.environ)
    found = run(cache, ["split=train", "split=dev", "split=test"], "", recipe, Plan(1, 12, 2))
    assert dict(os.environ) == before
    json.dumps(found)
    assert found["server"] == "moto on loopback" and found["utterances"] == 40 and found["files"] > 20
    assert [row["verb"] for row in found["copies"]] == ["push", "pull"]
    for row in found["copies"]:
        assert row["mb_s"] > 0 and row["share_of_s5cmd"] == pytest.approx(row["mb_s"] / row["s5cmd_mb_s"], rel=0.2)
    for rows in (found["reads"], found["training"]):
        assert [row["from"] for row in rows] == [LOCAL, DIRECT, FIRST, AGAIN]
        assert rows[0]["share_of_local"] == 1
    print_tables(found)
    assert "share of s5cmd" in capsys.readouterr().out


def test_a_place_that_is_not_on_s3_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not on S3"):
        run(tmp_path, [], "/somewhere", tmp_path, Plan())
