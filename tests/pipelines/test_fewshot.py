"""Subsets of the training speech: nested, drawn by seed, with each language's share; and the curves from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from featcache import Cache
from featcache.errors import UsageError
from fusion import labels
from fusion.learner import Learner
from fusion.run import Run
from pipelines import fewshot, figures
from tests.fusion.speech import toy_cache, toy_recipe

OVERRIDES = ("train.workers=0", "train.mask_taps=0.0")


def test_every_beginning_has_each_languages_share() -> None:
    rng = np.random.default_rng(0)
    seconds = rng.uniform(1, 6, 900)
    groups = rng.choice(["en", "fr", "it"], 900, p=[0.6, 0.3, 0.1]).tolist()
    order = fewshot.nested(seconds, groups, seed=1)
    assert sorted(order.tolist()) == list(range(900))
    of_language = {name: seconds[np.array(groups) == name].sum() / seconds.sum() for name in set(groups)}
    for taken in (90, 300, 600):
        inside = order[:taken]
        for name, share in of_language.items():
            mine = sum(seconds[i] for i in inside if groups[i] == name) / seconds[inside].sum()
            assert mine == pytest.approx(share, abs=0.03)
    assert order.tolist() == fewshot.nested(seconds, groups, seed=1).tolist()
    assert order.tolist() != fewshot.nested(seconds, groups, seed=2).tolist()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fewshot")
    (root / "asr.toml").write_text(toy_recipe(toy_cache(root / "cache", 30), 3, "linear"))
    return root


def test_curves_from_nested_subsets_that_leave_test_alone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure() -> list[fewshot.Size]:
        return fewshot.curves(
            place / "cache", [place / "asr.toml"], minutes=["0.02", "0.05", "all"], runs=tmp_path, overrides=OVERRIDES,
            console=Console(quiet=True),
        )  # fmt: skip

    sizes = measure()
    cache = Cache.open(str(place / "cache"))
    learnt = []
    for size in sizes:
        recipe = Run.read_recipe(tmp_path / f"fewshot/asr-{size.asked}min-seed1")
        splits = labels.select(cache, recipe).splits
        learnt.append({example.id for example in splits["train"]})
        assert (len(splits["dev"]), len(splits["test"])) == (3, 3)
        assert len(learnt[-1]) == size.utterances
    assert learnt[0] < learnt[1] < learnt[2]
    assert sizes[0].minutes <= 0.02 and 0.02 < sizes[1].minutes <= 0.05
    fewshot.print_table(sizes)
    assert "asked, min" in capsys.readouterr().out
    figures.save(figures.by_speech(sizes), tmp_path / "curves.png")
    assert json.loads(json.dumps(sizes[0].as_json()))["wer"] == sizes[0].scores["wer"].value
    monkeypatch.setattr(Learner, "step", None)  # what is there is not trained again
    assert [size.as_json() for size in measure()] == [size.as_json() for size in sizes]


def test_an_amount_that_is_none_is_refused(place: Path) -> None:
    with pytest.raises(UsageError, match="'0' is neither a number above 0 nor `all`"):
        fewshot.curves(place / "cache", [place / "asr.toml"], minutes=["0"], console=Console(quiet=True))
