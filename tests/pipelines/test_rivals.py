"""The table of rivals: same recipe but for the fuser, matched sizes, a search that leaves test alone, pairs."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from featcache import Cache
from featcache.errors import JobError, UsageError
from fusion import recipe, tasks
from fusion.data import Batch
from fusion.learner import Learner
from fusion.run import Run
from pipelines import figures, rivals, search, studies
from pipelines.rivals import RIVALS, Budget, Field, Row, by_name, select
from pipelines.rivals_table import print_tables
from pipelines.sizes import Sizes, counter
from tests.fusion.speech import toy_cache, toy_recipe
from tests.helpers import make_cache

MEASURES = tasks.of_kind("ctc").measures
QUIET = Console(quiet=True)


def field(base: Path, cache: Path, runs: Path, budget: Budget, folder: str = "rivals/asr") -> Field:
    return Field(base, cache, Path("unused"), folder, budget, runs, False, QUIET)


def table(errors: dict[str, int], words: int = 4) -> dict[str, dict[str, Any]]:
    return {
        key: {"id": key, "words": words, "word_errors": n, "characters": 5 * words, "character_errors": 2 * n}
        for key, n in errors.items()
    }


def rows_of(**tables: list[dict[str, Any]]) -> list[Row]:
    """Rows of these tables, as `compare` would make them."""
    found = []
    for name, of_name in tables.items():
        row = Row(
            by_name(name), "asr", tuple(range(len(of_name))), ("train.lr=0.001",), None, {"lr0.001": 0.5}, 10, 20,
            len(of_name[0]), 1.0, MEASURES, {}, (),
        )  # fmt: skip
        runs = [studies.Finished(Path(name), {"task": "ctc"}, one) for one in of_name]
        found.append((row, runs))
    return rivals.scored(found)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as wide as Whisper base's."""
    rng = np.random.default_rng(0)
    features = {f"u{i}": rng.standard_normal((20, 8, 512)).astype(np.float32) for i in range(6)}
    labels = {name: {"text": "ab", "split": "train" if i < 3 else "dev"} for i, name in enumerate(features)}
    return make_cache(tmp_path_factory.mktemp("wide") / "cache", features, labels)


def test_only_the_fuser_and_its_size_differ(wide: Path, tmp_path: Path) -> None:
    budget = Budget({}, (1,), ("train.steps=7",))
    field_ = field(rivals.RECIPES[0], wide, tmp_path, budget)
    upstream = [rival for rival in RIVALS if rival.features == "upstream"]
    made = {rival.name: field_.recipe(rival, "-seed1", 1, (), "3" if rival.searches_tap else "") for rival in upstream}
    for name, settings in made.items():
        assert settings.train.steps == 7 and settings.cache == str(wide)
        changed = recipe.differences(made["hff"], settings)
        sizes = ["decoder.hidden"] if name == "weighted_sum_large" else []
        assert [key for key in changed if key != "name" and not key.startswith("fuser.")] == sizes
    assert len({settings.name for settings in made.values()}) == len(made)


def test_sizes_match_those_of_hff(wide: Path, tmp_path: Path) -> None:
    field_ = field(rivals.RECIPES[0], wide, tmp_path, Budget({}, (1,)))
    reference = field_.recipe(by_name("hff"), "", 1)
    count = counter(Cache.open(str(wide)), reference)
    of_hff = count(reference)
    assert of_hff.fuser == 875_022
    for rival in RIVALS:
        if rival.match:
            settings = field_.recipe(rival, "", 1)
            sizes = count(settings)
            got, want = (sizes.fuser, of_hff.fuser) if rival.match[0] == "f" else (sizes.total, of_hff.total)
            assert 0.99 * want < got <= want, rival.name
    assert field_.recipe(by_name("ladder"), "", 1).fuser.parameters["hidden"] == 192
    assert field_.recipe(by_name("hconv"), "", 1).fuser.parameters["width"] == 284
    large = count(field_.recipe(by_name("weighted_sum_large"), "", 1))
    assert large.fuser == count(field_.recipe(by_name("weighted_sum"), "", 1)).fuser
    assert Sizes(1, 2).total == 3


def test_names_of_rivals_and_points_of_the_grid() -> None:
    assert [rival.name for rival in select(["hff", "last"])] == ["last", "hff"]
    with pytest.raises(UsageError, match="no row best in the table: choose from mel, last"):
        select(["best"])
    grid = search.parse_grid(["train.lr=1e-3,2e-3", "decoder.dropout=0.1,0.3"])
    assert [search.slug(point) for point in search.points(grid)] == [
        "lr1e-3-dropout0.1", "lr1e-3-dropout0.3", "lr2e-3-dropout0.1", "lr2e-3-dropout0.3",
    ]  # fmt: skip
    assert search.parse_grid([]) == dict(search.GRID)
    with pytest.raises(UsageError, match="searched over the same keys"):
        search.parse_grid(["fuser.dropout=0.1"])
    with pytest.raises(UsageError, match="KEY=VALUE,VALUE"):
        search.parse_grid(["train.lr"])
    assert search.parse_grid(["train.steps=5,9"]) == {"train.steps": ("5", "9")}
    with pytest.raises(UsageError, match="train.steps has no effect beside --steps"):
        search.parse_grid(["train.steps=5,9"], steps=7)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Field, list[Row]]:
    """Two rivals on the toy language, from a grid whose second point cannot learn."""
    place = tmp_path_factory.mktemp("rivals")
    base = place / "asr.toml"
    base.write_text(toy_recipe(toy_cache(place / "cache", 30), 12, "linear"))
    budget = Budget({"train.lr": ("1e-2", "1e-9")}, (1,), ("train.workers=0", "train.mask_taps=0.0"))
    field_ = field(base, place / "cache", place / "runs", budget)
    return field_, rivals.compare(field_, select(["best_tap", "hff"]))


def test_the_search_is_on_dev_and_does_not_read_test(searched: tuple[Field, list[Row]]) -> None:
    field_, rows = searched
    cache = Cache.open(str(field_.cache))
    split_of = dict(zip(cache.ids, cache.labels("split"), strict=True))
    of_search = sorted(field_.runs.glob("rivals/asr/*/dev-*"))
    assert len(of_search) == 2 * 2 + 3  # two rivals by two points, and three taps
    for path in of_search:
        assert {split_of[id_] for id_ in Run.read_table(path)} == {"dev"}
    for row in rows:
        assert row.chosen == ("train.lr=1e-2",)
        assert row.dev == {key: min(row.dev.values()) if "1e-2" in key else max(row.dev.values()) for key in row.dev}
        for path in row.runs:
            assert {split_of[id_] for id_ in Run.read_table(path)} == {"test"}
            assert Run.read_recipe(path).train.lr == 1e-2
    assert (rows[0].tap in cache.taps) and rows[1].tap is None


def test_the_same_command_trains_nothing_again(
    searched: tuple[Field, list[Row]], monkeypatch: pytest.MonkeyPatch
) -> None:
    field_, rows = searched
    monkeypatch.setattr(Learner, "step", None)
    again = rivals.compare(field_, select(["best_tap", "hff"]))
    assert [row.as_json() for row in again] == [row.as_json() for row in rows]
    assert json.loads(json.dumps(again[0].as_json()))["wer"] == rows[0].scores["wer"].value


def test_seeds_are_averaged_and_differences_are_paired() -> None:
    ids = [f"u{i}" for i in range(50)]
    # Utterances differ much in difficulty; on each, "last" makes one error more than HFF.
    hard = np.random.default_rng(0).integers(0, 3, len(ids))
    better = [table({u: int(h) + s for u, h in zip(ids, hard, strict=True)}) for s in (0, 1)]
    worse = [table({u: int(h) + 1 + s for u, h in zip(ids, hard, strict=True)}) for s in (0, 1)]
    last, hff = rows_of(last=worse, hff=better)
    wer = last.scores["wer"]
    assert wer.value == pytest.approx((hard.mean() + 1.5) / 4)
    assert wer.by_seed == pytest.approx([(hard.mean() + 1) / 4, (hard.mean() + 2) / 4])
    assert wer.ci95[0] < wer.value < wer.ci95[1] and wer.ci95[1] - wer.ci95[0] > 0.05
    # The rate depends on the draw of utterances. The difference does not: its interval is a point.
    assert wer.difference == pytest.approx((0.25, 0.25, 0.25))
    assert last.scores["cer"].difference == pytest.approx((0.1, 0.1, 0.1))
    assert hff.scores["wer"].difference is None


def test_utterances_are_matched_by_id_and_seeds_must_agree() -> None:
    last, _ = rows_of(last=[table({"a": 2, "b": 2})], hff=[table({"c": 0, "a": 2, "b": 1})])
    assert last.scores["wer"].difference is not None
    assert last.scores["wer"].difference[0] == pytest.approx(1 / 8)
    with pytest.raises(JobError, match="tested on different utterances"):
        rows_of(last=[table({"a": 1}), table({"b": 1})])
    with pytest.raises(JobError, match="no test utterance in common"):
        rows_of(last=[table({"a": 1})], hff=[table({"b": 1})])


def test_claims_are_answered_by_the_paired_interval() -> None:
    ids = [f"u{i}" for i in range(40)]
    flat, worse, better = ([table(dict.fromkeys(ids, n))] for n in (2, 3, 1))
    answers = {
        claim["claim"]: claim["holds"]
        for claim in rivals.claims(rows_of(last=better, ladder=flat, weighted_sum=worse, hff=flat))
    }
    assert answers == {
        "HFF is not worse than last tap on asr": False,
        "HFF is not worse than ladder on asr": True,
        "HFF is not worse than weighted sum on asr": True,
        "HFF is better than weighted sum on asr": True,
    }
    rows = rows_of(last=better, hff=flat)
    measure = replace(MEASURES[0], higher_is_better=True)  # more is now better
    turned = [replace(row, measures=(measure, *MEASURES[1:])) for row in rows]
    assert rivals.claims(turned)[0]["holds"] is True


def test_tables_are_printed_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(last=[table({"a": 1, "b": 1})], hff=[table({"a": 1, "b": 0})])
    print_tables(rows, rivals.claims(rows))
    out = capsys.readouterr().out
    assert "HFF" in out and "0.125" in out and "+0.125" in out
    assert "Test utterances: 2." in out and "Seeds: 0" in out and "train.lr=0.001" in out
    assert "yes  HFF is not worse than last tap on asr: wer +0.125" in out


def test_a_plot_draws_every_row_and_refuses_an_unknown_format(tmp_path: Path) -> None:
    rows = rows_of(**{rival.name: [table({"a": 1, "b": 0})] for rival in RIVALS})
    figures.save(figures.scores(rows), tmp_path / "plots" / "rates.svg")
    drawn = (tmp_path / "plots" / "rates.svg").read_text()
    assert all(f"<!-- {rival.title} -->" in drawn for rival in RIVALS)
    with pytest.raises(UsageError, match="rates.txt.*png"):
        figures.save(figures.scores(rows), tmp_path / "rates.txt")


def test_a_task_without_its_labels_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    console = Console(record=True, quiet=False, file=(tmp_path / "log").open("w"))
    assert [path.stem for path in rivals.usable(rivals.RECIPES, console)] == ["asr", "lang"]
    assert "vad is left out: runs/asr/alignment.jsonl is not there" in console.export_text()


def test_a_point_that_diverges_is_the_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it shares no pass with the others, as another size of batch does not."""
    step = Learner.step

    def spoiled(self: Learner, batch: Batch) -> None:
        step(self, batch)
        if self.recipe.train.lr > 1:
            self._loss_sum *= float("nan")

    monkeypatch.setattr(Learner, "step", spoiled)
    base = tmp_path / "asr.toml"
    base.write_text(toy_recipe(toy_cache(tmp_path / "cache", 30), 4, "linear"))
    overrides = ("train.workers=0", "train.mask_taps=0.0")
    told = io.StringIO()
    for key, good in (("train.lr", "0.01"), ("train.batch_seconds", "5.0")):
        budget = Budget({"train.lr": ("1000", "0.01"), "train.batch_seconds": ("6.0", "5.0")}, (1,), overrides)
        if key == "train.lr":
            budget = replace(budget, grid={key: ("1000", good)})
        field_ = field(base, tmp_path / "cache", tmp_path / key, budget)
        [row] = rivals.compare(replace(field_, console=Console(file=told, width=500)), select(["last"]))
        assert "lr1000 diverged" in told.getvalue() or "lr1000-batch_seconds5.0 diverged" in told.getvalue()
        assert "train.lr=0.01" in row.chosen and None in row.as_json()["dev"].values()
        print_tables([row], [])
    hopeless = field(base, tmp_path / "cache", tmp_path / "none", Budget({"train.lr": ("1e3", "1e4")}, (1,), overrides))
    with pytest.raises(JobError, match="the loss is nan"):
        rivals.compare(hopeless, select(["last"]))
