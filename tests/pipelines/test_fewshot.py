"""Subsets of the training speech: nested, drawn by seed, with each language's share; and the curves from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from featcache import Cache
from featcache.errors import UsageError
from fusion import labels, recipe
from fusion.learner import Learner
from fusion.recipe import Recipe
from fusion.run import Run
from pipelines import fewshot, figures
from pipelines.cli_options import seed_list
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
        settings = Run.read_recipe(tmp_path / f"fewshot/asr-{size.asked}min-seed1")
        splits = labels.select(cache, settings).splits
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


def subset(settings: Recipe, minutes: float, by: str, file: Path) -> tuple[set[str], Recipe]:
    """The ids that a recipe for a part of train learns from."""
    made, (_, count) = fewshot.within(settings, minutes, by, file)
    ids = {example.id for example in labels.select(Cache.open(made.cache), made).splits["train"]}
    assert len(ids) == count
    return ids, made


def test_a_subset_never_takes_the_place_of_another(place: Path, tmp_path: Path) -> None:
    settings = recipe.read(place / "asr.toml")
    file = tmp_path / "one.jsonl"
    first, made = subset(settings, 0.05, "lang", file)
    before = file.read_bytes()
    assert made.task.labels_file == str(file) == subset(settings, 0.05, "lang", file)[1].task.labels_file
    other, of_other = subset(settings, 0.05, "text", file)
    assert other != first and of_other.task.labels_file != str(file) and file.read_bytes() == before
    assert subset(settings, 0.05, "text", file)[1] == of_other
    assert len(list(tmp_path.iterdir())) == 2


def test_shares_of_another_label_are_runs_of_their_own(place: Path, tmp_path: Path) -> None:
    def measure(by: str) -> None:
        fewshot.curves(
            place / "cache", [place / "asr.toml"], minutes=["0.05", "all"], by=by, runs=tmp_path, overrides=OVERRIDES,
            console=Console(quiet=True),
        )  # fmt: skip

    measure("lang")
    measure("the text")
    assert {path.name for path in (tmp_path / "fewshot").iterdir() if path.is_dir()} == {
        "asr-0.05min-seed1", "asr-allmin-seed1", "asr-0.05min-by-the_text-seed1",
    }  # fmt: skip


def test_rows_that_a_limit_leaves_out_stay_out_of_the_subset(place: Path, tmp_path: Path) -> None:
    limited = recipe.read(place / "asr.toml", ["limit=10"])
    ids, _ = subset(limited, 0.02, "lang", tmp_path / "few.jsonl")
    assert ids < {example.id for example in labels.select(Cache.open(limited.cache), limited).splits["train"]}


def test_the_other_columns_of_the_recipes_own_file_are_kept(place: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    ids = Cache.open(str(place / "cache")).ids
    own.write_text("id,room\n" + "".join(f"{id_},{'b' if i % 4 == 0 else 'a'}\n" for i, id_ in enumerate(ids)))
    settings = recipe.read(place / "asr.toml", [f"task.labels_file={own}", "task.where.room=a"])
    found, _ = subset(settings, 0.03, "room", tmp_path / "few.jsonl")
    assert found and all(ids.index(id_) % 4 for id_ in found)


def test_an_amount_that_is_none_is_refused(place: Path) -> None:
    for text in ("0", "nan", "inf", "-1", "ten"):
        with pytest.raises(UsageError, match=f"'{text}' is neither a number above 0 nor `all`"):
            fewshot.curves(place / "cache", [place / "asr.toml"], minutes=[text], console=Console(quiet=True))
    with pytest.raises(UsageError, match="no amount of speech"):
        fewshot.curves(place / "cache", [place / "asr.toml"], minutes=[], console=Console(quiet=True))


def test_seeds_are_given_once_each() -> None:
    assert seed_list("1, 2") == [1, 2]
    with pytest.raises(UsageError, match="have one twice"):
        seed_list("1,2,1")
