"""The command `fusion`: what it prints where, and how it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.table import Table
from typer.testing import CliRunner, Result

from fusion.cli import app
from fusion.console import plain_console
from fusion.run import Run
from fusion.stream import Stream
from tests.fusion.speech import toy_cache, toy_recipe


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cache, a recipe, and two finished runs."""
    root = tmp_path_factory.mktemp("cli")
    cache = toy_cache(root / "cache")
    (root / "toy.toml").write_text(toy_recipe(cache, 10))
    for name, steps in (("a", 10), ("b", 40)):
        done = call(
            "train",
            root / "toy.toml",
            "--set",
            f"name={name}",
            "--set",
            f"train.steps={steps}",
            "--runs",
            root / "runs",
        )
        assert done.exit_code == 0, done.output
    return root


def test_train_prints_scores_and_the_folder_last(place: Path) -> None:
    done = call("train", place / "toy.toml", "--set", "name=a", "--runs", place / "runs")
    lines = done.stdout.splitlines()
    assert lines[-1] == str(place / "runs" / "a")
    assert "WER" in done.stdout and "CER" in done.stdout and " to " in done.stdout and "basic" in done.stdout
    assert "is finished" in done.stderr and "is finished" not in done.stdout


@pytest.mark.parametrize(("command", "said"), [("align", "[name, start, end]"), ("decode", "speech-featcache[beam]")])
def test_what_stands_in_brackets_is_in_the_help(command: str, said: str) -> None:
    """Rich takes brackets for markup, and leaves out what it does not know."""
    text = " ".join(call(command, "--help").stdout.split())
    assert said in text


def test_eval_prints_json_that_can_be_quoted(place: Path) -> None:
    done = call("eval", "--json", place / "runs/a")
    metrics = json.loads(done.stdout)
    for key in ("wer", "cer", "wer_ci95", "cer_ci95", "utterances", "fuser", "fusion_parameters", "decoder_parameters"):
        assert key in metrics
    assert metrics["fuser"] == "hff" and metrics["utterances"] == 6 and metrics["best_step"] == 10
    assert json.loads((place / "runs/a/metrics.json").read_text()) == metrics


def test_eval_of_dev_leaves_the_scores_of_test_alone(place: Path) -> None:
    before = (place / "runs/a/metrics.json").read_bytes()
    assert json.loads(call("eval", place / "runs/a", "--split", "dev", "--json").stdout)["split"] == "dev"
    assert "dev" in call("eval", place / "runs/a", "--split", "dev").stdout
    assert (place / "runs/a/metrics.json").read_bytes() == before


def test_eval_leaves_the_metrics_of_a_finished_run_as_training_wrote_them(place: Path) -> None:
    trained = (place / "runs/b/metrics.json").read_bytes()
    assert json.loads(trained)["skipped"]["more labels than frames"] == 1  # a row of train
    assert "skipped, any split: more" in call("eval", place / "runs/b").stdout
    assert (place / "runs/b/metrics.json").read_bytes() == trained


def stopped(_: object) -> None:
    raise KeyboardInterrupt


def test_eval_does_not_finish_an_interrupted_run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", place / "toy.toml", "--set", "name=deep/run", "--runs", tmp_path / "own"]
    run = tmp_path / "own/deep/run"
    with monkeypatch.context() as patch:
        patch.setattr(Stream, "finish", stopped)
        call(*arguments)
    done = call("eval", run)
    assert done.exit_code == 0 and "WER" in done.stdout
    way = f"`fusion train {run}/recipe.toml --runs {tmp_path}/own` goes on with it"
    assert "are not stored" in done.stderr and way in done.stderr
    assert not (run / "metrics.json").exists() and not (run / "utterances.jsonl").exists()
    assert way in call("compare", run).stderr
    scores = call("eval", run, "--json").stdout
    (run / "metrics.json").write_text(scores)  # as earlier versions did
    assert way in call("compare", run).stderr
    assert "is finished" not in call("train", run / "recipe.toml", "--runs", tmp_path / "own").stderr
    assert json.loads((run / "metrics.json").read_text())["dev"]


def test_the_way_on_with_a_run_is_one_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x/deep/run").mkdir(parents=True)
    (tmp_path / "x/deep/run/recipe.toml").write_text('cache = "c"\nname = "deep/run"\n')
    monkeypatch.chdir(tmp_path / "x/deep/run")
    assert Run.way_on(".") == f"`fusion train recipe.toml --runs {tmp_path}/x` goes on with it"
    monkeypatch.chdir(tmp_path / "x")
    assert Run.way_on("deep/run") == "`fusion train deep/run/recipe.toml --runs .` goes on with it"
    Path("deep/run").rename("moved")
    assert "has the name 'deep/run'; move the folder back" in Run.way_on("moved")
    Path("moved/order.json").write_text("{}")
    assert "`pipelines reproduce`" in Run.way_on("moved")


def test_a_run_goes_on_where_its_cache_was_moved(tmp_path: Path) -> None:
    old, new, runs = tmp_path / "old", tmp_path / "new", tmp_path / "runs"
    (tmp_path / "r.toml").write_text(toy_recipe(toy_cache(old), 10))
    arguments = ["train", tmp_path / "r.toml", "--set", "name=a", "--runs", runs]
    assert call(*arguments).exit_code == 0
    old.rename(new)
    arguments += ["--set", f"cache={new}"]
    what = f"the cache of run {runs}/a is not at {old}: work in the folder where it is, or write its new place"
    for command in (["eval", runs / "a"], ["align", runs / "a", "-o", tmp_path / "x"], arguments):
        done = call(*command)
        assert done.exit_code == 2 and what in done.stderr, done.stderr
    recipe = runs / "a/recipe.toml"
    recipe.write_text(recipe.read_text().replace(str(old), str(new)))
    assert call("eval", runs / "a").exit_code == 0
    assert "is finished" in call(*arguments).stderr


def test_align_looks_first_where_it_is_to_write(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusion.align.emissions", stopped)
    done = call("align", place / "runs/a", "-o", tmp_path)
    assert done.exit_code == 2 and "is a folder; give the name of a file" in done.stderr


def test_eval_takes_another_encoding_but_no_other_features(place: Path, tmp_path: Path) -> None:
    other = toy_cache(tmp_path / "int8", profile="int8")
    metrics = json.loads(call("eval", place / "runs/b", "--cache", other, "--json").stdout)
    assert metrics["profile"] == "int8"
    assert json.loads((place / "runs/b/metrics.json").read_text())["profile"] == "fp16"
    foreign = toy_cache(tmp_path / "foreign", taps=2)
    done = call("eval", place / "runs/b", "--cache", foreign)
    assert done.exit_code == 1 and "was trained on features" in done.stderr


def test_compare_shows_runs_with_the_paired_difference_to_the_first(place: Path) -> None:
    rows = json.loads(call("compare", "--json", place / "runs/a", place / "runs/b").stdout)
    assert [row["name"] for row in rows] == ["a", "b"] and "wer_difference" not in rows[0]
    difference, low, high = rows[1]["cer_difference"]
    assert difference == pytest.approx(rows[1]["cer"] - rows[0]["cer"]) and low <= difference <= high
    printed = call("compare", place / "runs/a", place / "runs/b")
    assert printed.exit_code == 0 and "paired bootstrap" in printed.stdout


def test_compare_pools_runs_that_are_joined_by_commas(place: Path) -> None:
    a, b = place / "runs/a", place / "runs/b"
    alone = json.loads(call("compare", "--json", a, b).stdout)
    first, both, same = json.loads(call("compare", "--json", a, f"{a},{b}", f"{b},{b}").stdout)
    assert first == alone[0]
    assert both["run"] == f"{a},{b}" and both["cer_by_seed"] == pytest.approx([row["cer"] for row in alone])
    assert both["cer"] == pytest.approx((alone[0]["cer"] + alone[1]["cer"]) / 2)
    np.testing.assert_allclose(both["cer_difference"], np.divide(alone[1]["cer_difference"], 2), atol=1e-12)
    assert same["cer_difference"] == pytest.approx(alone[1]["cer_difference"])
    assert "and 1 more" in call("compare", a, f"{a},{b}").stdout.replace("\n", " ")


def test_compare_refuses_other_utterances(place: Path, tmp_path: Path) -> None:
    done = call(
        "train", place / "toy.toml", "--limit", 3, "--set", "name=small", "--set", "train.steps=1", "--runs", tmp_path
    )
    assert done.exit_code == 0, done.output
    done = call("compare", place / "runs/a", tmp_path / "small-limit3")
    assert done.exit_code == 2 and "different utterances (3 are in one only)" in done.stderr


def test_compare_names_the_splits_that_differ(place: Path, tmp_path: Path) -> None:
    done = call(
        "train", place / "toy.toml", "--set", "name=dev", "--set", "split.test=none", "--set", "train.steps=1",
        "--runs", tmp_path,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    done = call("compare", place / "runs/a", tmp_path / "dev")
    assert done.exit_code == 2 and "dev was scored on dev" in done.stderr and "a on test" in done.stderr
    assert "a test split that they have in common" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["train", "none.toml"], 2, "none.toml cannot be read"),
        (["train", "{toml}", "--set", "train.step=1"], 2, "unknown key train.step"),
        (["train", "{toml}", "--set", "cache=nowhere"], 2, "key cache: there is no cache at nowhere"),
        (["train", "{toml}", "--set", "train.device=tpu"], 2, "key train.device"),
        (["train", "{toml}", "--set", "task.kind=guess"], 2, "key task.kind"),
        (["train", "{toml}", "--set", "train.metric=bleu"], 2, "key train.metric"),
        (["train", "{toml}", "--set", "fuser.taps=[9]"], 2, "key fuser.taps"),
        (["train", "{toml}", "--resume", "--restart"], 2, "exclude each other"),
        (["train", "{toml}", "--resume", "--set", "name=new"], 2, "no run"),
        (["eval", "nowhere", "--device", "tpu"], 2, "--device: 'tpu'"),
        (["eval", "nowhere"], 2, "head.json is not there"),
        (["compare", "nowhere"], 2, "not the folder of a run"),
        (["train", "{toml}", "--bad"], 2, "No such option"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(
    place: Path, tmp_path: Path, arguments: list[str], status: int, words: str
) -> None:
    filled = [argument.replace("{toml}", str(place / "toy.toml")) for argument in arguments]
    done = call(*filled, *(["--runs", tmp_path] if filled[0] == "train" else []))
    assert done.exit_code == status and words in done.stderr and not done.stdout
    if "No such option" not in words:
        assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


def test_what_looks_like_markup_is_printed_as_it_is() -> None:
    done = call("train", "[/red]:smile:.toml")
    assert done.exit_code == 2 and done.stderr.startswith("error: recipe [/red]:smile:.toml cannot be read")


def test_a_table_may_hold_what_looks_like_markup(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("[b]", title=":smile:")
    table.add_row("and [/laugh]")
    plain_console().print(table)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[b]", ":smile:", "and [/laugh]"))
