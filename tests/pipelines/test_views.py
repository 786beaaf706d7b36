"""What views buy: four arms of one recipe, differences from masking alone, and what makes no sense."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from featcache.errors import UsageError
from fusion.run import Run
from pipelines import figures, views
from tests.fusion.speech import toy_recipe
from tests.fusion.test_views import views_cache

QUIET = Console(quiet=True)


def test_four_arms_of_one_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "asr.toml"
    recipe.write_text(toy_recipe(views_cache(tmp_path / "cache"), 10, "linear"))
    settings = ("train.workers=0", "train.mask_time=0.1", "train.views=0.3")
    arms = views.compare(
        tmp_path / "cache", recipe, seeds=[1, 2], share=0.7, runs=tmp_path, overrides=settings, console=QUIET
    )
    assert [arm.name for arm in arms] == ["neither", "masking", "views", "both"]
    trained = {arm.name: Run.open(tmp_path / f"views/asr-{arm.name}-seed2").recipe.train for arm in arms}
    assert {name: (train.mask_time, train.views) for name, train in trained.items()} == {
        "neither": (0, 0), "masking": (0.1, 0), "views": (0, 0.7), "both": (0.1, 0.7),
    }  # fmt: skip
    assert [arm.scores["cer"].difference is None for arm in arms] == [False, True, False, False]
    views.print_table(arms)
    assert "- masking" in capsys.readouterr().out
    figures.save(figures.scores(arms), tmp_path / "views.svg")
    assert "<!-- both -->" in (tmp_path / "views.svg").read_text()
    assert json.loads(json.dumps(arms[3].as_json()))["cer_by_seed"] == list(arms[3].scores["cer"].by_seed)


def test_a_recipe_without_masks_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "asr.toml"
    recipe.write_text(toy_recipe(tmp_path / "cache", 10, "linear"))
    masks = [f"train.{name}=0" for name in views.MASKS]
    with pytest.raises(UsageError, match="masks nothing"):
        views.compare(tmp_path / "cache", recipe, seeds=[1], overrides=masks, console=QUIET)
