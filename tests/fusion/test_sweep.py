"""Many heads from one pass: each ends as if it had been alone, and the cache is read once."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featcache import Cache
from featcache.errors import JobError, UsageError
from fusion import recipe
from fusion import train as training
from fusion.cli import app
from fusion.data import Batch
from fusion.learner import Learner
from fusion.recipe import Recipe
from tests.fusion.power import power_cut
from tests.fusion.speech import toy_cache, toy_recipe

UNLEARNABLE = ("u0001", "u0002")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, and a file of classes for the rows that transcription can use too."""
    root = tmp_path_factory.mktemp("sweep")
    cache = Cache.open(toy_cache(root / "cache", 40))
    lines = [json.dumps({"id": id_, "parity": i % 2}) for i, id_ in enumerate(cache.ids) if id_ not in UNLEARNABLE]
    (root / "classes.jsonl").write_text("\n".join(lines))
    return root


def toy(place: Path, name: str, *overrides: str, steps: int = 12) -> Recipe:
    text = toy_recipe(place / "cache", steps, "linear")
    return recipe.parse(text, [f"name={name}", "train.workers=1", "train.eval_every=5", *overrides])


def heads(place: Path) -> list[Recipe]:
    classes = ["task.kind=classify", "task.label=parity", f"task.labels_file={place / 'classes.jsonl'}"]
    unmasked = ["train.mask_time=0.0", "train.mask_taps=0.0"]
    return [
        toy(place, "hff"),
        toy(place, "same-view", "fuser.kind=concat"),
        toy(place, "tap", "fuser.kind=tap", "fuser.tap=1", "train.mask_taps=0.0"),
        toy(place, "short", "fuser.kind=weighted_sum", "train.mask_time=0.3", "train.eval_every=4", steps=8),
        toy(place, "classes", "fuser.kind=ladder", "decoder.kind=attentive", *classes),
        toy(place, "swapped", "fuser.kind=hconv", 'fuser.taps=["2", "0"]', *unmasked),
        toy(place, "pooled", "fuser.pool=2"),
        toy(place, "other-seed", "seed=2"),
    ]


def weights(runs: Path, names: Iterable[str]) -> dict[str, tuple[bytes, bytes]]:
    files = ("checkpoint.safetensors", "best.safetensors")
    return {name: tuple((runs / name / file).read_bytes() for file in files) for name in names}  # type: ignore[misc]


@pytest.fixture(scope="module")
def alone(place: Path) -> dict[str, tuple[bytes, bytes]]:
    made = heads(place)
    for one in made:
        training.fit(one, runs=place / "alone")
    return weights(place / "alone", [one.name for one in made])


def test_every_head_ends_in_the_bits_that_it_has_alone(place: Path, alone: dict[str, tuple[bytes, bytes]]) -> None:
    runs = training.fit_together(heads(place), runs=place / "together")
    assert [run.recipe.name for run in runs] == list(alone)
    assert weights(place / "together", alone) == alone
    for name in alone:
        one, other = (
            json.loads((place / where / name / "metrics.json").read_text()) for where in ("alone", "together")
        )
        del one["seconds"], other["seconds"]
        assert one == other


def test_a_sweep_that_died_goes_on_and_those_behind_catch_up(
    place: Path, alone: dict[str, tuple[bytes, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [one for one in heads(place) if one.name in ("hff", "short", "classes")]
    with power_cut(9):
        training.fit_together(chosen, runs=tmp_path)
    states = {one.name: json.loads((tmp_path / one.name / "state.json").read_text())["step"] for one in chosen}
    assert states == {"hff": 5, "short": 8, "classes": 5}
    monkeypatch.setattr(training.Files, "clear", None)  # nothing is begun anew
    training.fit_together(chosen, runs=tmp_path)
    assert weights(tmp_path, states) == {name: alone[name] for name in states}


def test_one_pass_reads_what_one_head_reads(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = Cache.read_encoded

    def counting(self: Cache, *arguments: object) -> object:
        reads.append(1)
        return read(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Cache, "read_encoded", counting)
    training.fit(toy(place, "one", "train.workers=0"), runs=tmp_path)
    once = len(reads)
    reads.clear()
    training.fit_together(
        [toy(place, f"many{i}", f"fuser.width={i}", "train.workers=0") for i in (4, 8, 12)], runs=tmp_path
    )
    assert len(reads) == once


def test_a_head_whose_loss_is_no_number_fails_alone(
    place: Path, alone: dict[str, tuple[bytes, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def spoiled(self: Learner, batch: Batch) -> None:
        step(self, batch)
        if self.recipe.name == "same-view":
            self._loss_sum *= float("nan")

    monkeypatch.setattr(Learner, "step", spoiled)
    chosen = [one for one in heads(place) if one.name in ("hff", "same-view")]
    with pytest.raises(JobError, match=r"^same-view: the loss is nan around step 5"):
        training.fit_together(chosen, runs=tmp_path)
    assert weights(tmp_path, ["hff"])["hff"] == alone["hff"]
    assert (tmp_path / "hff/metrics.json").exists() and not (tmp_path / "same-view/metrics.json").exists()
    paths = [tmp_path / f"{one.name}.toml" for one in chosen]
    for path, one in zip(paths, chosen, strict=True):
        path.write_text(one.to_toml())
    arguments = ["sweep", *map(str, paths), "--runs", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 1 and [row["run"] for row in json.loads(done.stdout)] == [str(tmp_path / "hff")]
    assert "no state was saved before, lower train.lr or train.clip in its recipe" in done.stderr
    shown = CliRunner(env={"COLUMNS": "250"}).invoke(app, arguments)
    assert shown.exit_code == 1 and "WER" in shown.stdout and "same-view: the loss is nan" in shown.stderr


def test_a_mistake_in_one_recipe_throws_no_run_away(place: Path, tmp_path: Path) -> None:
    training.fit(toy(place, "good", steps=1), runs=tmp_path)
    with pytest.raises(UsageError, match=r"key fuser\.taps"):
        training.fit_together(
            [toy(place, "good", steps=1), toy(place, "bad", "fuser.taps=[7]")], runs=tmp_path, mode="restart"
        )
    assert (tmp_path / "good/metrics.json").exists()


def test_the_command_shows_heads_side_by_side(place: Path, tmp_path: Path) -> None:
    paths = []
    for one in heads(place)[:1] + heads(place)[4:5]:
        path = tmp_path / f"{one.name}.toml"
        path.write_text(one.to_toml())
        paths.append(str(path))
    arguments = ["sweep", *paths, "--set", "train.steps=2", "--runs", str(tmp_path / "runs")]
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["task"] for row in rows] == ["ctc", "classify"] and "wer" in rows[0] and "accuracy" in rows[1]
    assert [row["run"] for row in rows] == [str(tmp_path / "runs" / name) for name in ("hff", "classes")]
    again = CliRunner(env={"COLUMNS": "250"}).invoke(app, arguments)
    assert again.exit_code == 0 and again.stderr.count("is finished") == 2
    assert "WER" in again.stdout and "accuracy" in again.stdout
    twice = CliRunner().invoke(app, ["sweep", paths[0], paths[0]])
    assert twice.exit_code == 2 and "2 recipes have the name 'hff'" in twice.stderr
    (tmp_path / "upper.toml").write_text(Path(paths[0]).read_text().replace('name = "hff"', 'name = "HFF"'))
    by_case = CliRunner().invoke(app, ["sweep", paths[0], str(tmp_path / "upper.toml")])
    assert by_case.exit_code == 2 and "2 recipes have the name 'hff' or 'HFF'" in by_case.stderr


def test_a_dry_run_says_what_shares_a_pass_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    paths, runs = [], tmp_path / "runs"
    made = [toy(place, "hff"), toy(place, "concat", "fuser.kind=concat"), toy(place, "other-seed", "seed=2")]
    for one in made:
        path = tmp_path / f"{one.name}.toml"
        path.write_text(one.to_toml())
        paths.append(str(path))
    arguments = ["sweep", *paths, "--set", "train.steps=2", "--runs", str(runs), "--dry-run"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == [
        "pass 1: 2 runs from the same batches",
        f"  would write {runs / 'hff'}, 2 steps, new",
        f"  would write {runs / 'concat'}, 2 steps, new",
        "pass 2: 1 run",
        f"  would write {runs / 'other-seed'}, 2 steps, new",
    ]
    assert not runs.exists()
    training.fit(recipe.read(paths[0], ["train.steps=2"]), runs=runs)
    before = {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["finished"] == [str(runs / "hff")] and [len(together) for together in found["passes"]] == [1, 1]
    again = CliRunner().invoke(app, [*arguments, "--restart"])
    assert f"would write {runs / 'hff'}, 2 steps, replacing what is there" in again.stdout
    assert before == {path: path.read_bytes() for path in runs.rglob("*") if path.is_file()}
