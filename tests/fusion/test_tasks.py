"""What is learned besides text: classes of utterances and of frames."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from featcache.errors import UsageError
from fusion import Run, checkpoint, compare, comparison, intervals, recipe, tasks
from fusion import train as training
from fusion.cli import app
from fusion.labels import Unusable
from fusion.learner import Learner
from fusion.recipe import TaskRecipe
from fusion.state import State
from fusion.tasks import ClassifyTask, Measure, TagTask
from fusion.tasks.tag import BACKGROUND, read_spans
from tests.fusion.speech import toy_recipe
from tests.helpers import make_cache

CLASSIFY = ("task.kind=classify", "task.label=lang", "decoder.kind=attentive", "decoder.hidden=8")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three languages that differ in their mean, one in test that train lacks, one row without a label."""
    rng = np.random.default_rng(0)
    means = rng.standard_normal((4, 3, 8))
    features, labels = {}, {}
    for i in range(90):
        lang = 3 if i == 9 else i % 3
        noise = rng.standard_normal((rng.integers(4, 30), 3, 8))
        features[f"u{i:02d}"] = (means[lang] + noise).astype(np.float32)
        split = {8: "dev", 9: "test"}.get(i % 10, "train")
        labels[f"u{i:02d}"] = {"lang": None if i == 5 else "xyzw"[lang], "split": split}
    return make_cache(tmp_path_factory.mktemp("tasks") / "cache", features, labels)


def train(cache: Path, runs: Path, *overrides: str, steps: int = 60) -> Run:
    return training.fit(recipe.parse(toy_recipe(cache, steps, "linear"), [*CLASSIFY, *overrides]), runs=runs)


def test_a_split_of_which_nothing_is_learned_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Learner, "step", None)
    rng = np.random.default_rng(0)
    features = {f"u{i}": rng.standard_normal((9, 3, 8)).astype(np.float32) for i in range(8)}
    split = ["train"] * 4 + ["dev"] * 2 + ["test"] * 2
    labels = {f"u{i}": {"lang": "xyxyxyvw"[i], "text": "a" if i < 4 else "  ", "split": split[i]} for i in range(8)}
    place = make_cache(tmp_path / "cache", features, labels)
    with pytest.raises(UsageError, match=r"no class of test \('v', 'w', ...\) is one of train \('x', 'y', ...\)"):
        train(place, tmp_path)
    spoken = ["task.kind=ctc", "task.label=text", "task.normalise=none", "decoder.kind=linear"]
    with pytest.raises(UsageError, match="none of the 2 references of dev has words"):
        training.fit(recipe.parse(toy_recipe(place, 5, "linear"), spoken), runs=tmp_path)
    spoken[1] = "task.label=spans"
    (tmp_path / "own.jsonl").write_text("".join(f'{{"id": "u{i}", "spans": [["a", 0, 1]]}}\n' for i in range(8)))
    with pytest.raises(UsageError, match="'spans' holds lists such as .*, and task 'ctc' learns text"):
        training.fit(
            recipe.parse(toy_recipe(place, 5, "linear"), [*spoken, f"task.labels_file={tmp_path}/own.jsonl"]),
            runs=tmp_path,
        )
    brackets = "[" * 100_000  # JSON that is nested deeper than Python reads
    (tmp_path / "own.jsonl").write_text("".join(f'{{"id": "u{i}", "spans": "{brackets}"}}\n' for i in range(8)))
    with pytest.raises(UsageError, match=r"train has no usable row: more labels than frames \(4\); use another task"):
        training.fit(
            recipe.parse(toy_recipe(place, 5, "linear"), [*spoken, f"task.labels_file={tmp_path}/own.jsonl"]),
            runs=tmp_path,
        )


def test_an_undefined_score_is_the_worst_and_null_on_disk(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undefined = Measure("eer", "EER", lambda rows: intervals.ratio([0.0] * len(rows), [0.0] * len(rows)))
    monkeypatch.setattr(ClassifyTask, "measures", (*ClassifyTask.measures[:2], undefined))
    run = train(cache, tmp_path, "train.metric=eer", steps=20)
    assert "NaN" not in run.files.metrics.read_text() and "NaN" not in run.files.state.read_text()
    metrics = run.metrics()
    assert np.isnan([metrics["eer"], *metrics["eer_ci95"], metrics["dev"]["eer"]]).all() and metrics["best_step"]
    assert np.isnan(State.from_json(checkpoint.load(run.files.checkpoint)[1]).best_dev["eer"])
    shown = CliRunner().invoke(app, ["eval", str(run.path)])
    assert re.search(r"EER +│ - +│ - +│", shown.stdout)
    assert json.loads(CliRunner().invoke(app, ["eval", str(run.path), "--json"]).stdout)["eer_ci95"] == [None, None]
    assert CliRunner().invoke(app, ["compare", str(run.path), str(run.path)]).exit_code == 0


def test_a_class_of_any_column_is_learnt_and_measured(cache: Path, tmp_path: Path) -> None:
    run = train(cache, tmp_path)
    metrics = run.metrics()
    assert metrics["task"] == "classify" and metrics["classes"] == ["x", "y", "z"] and metrics["utterances"] == 9
    assert metrics["of_unseen_classes"] == 1 and metrics["accuracy"] == pytest.approx(8 / 9)
    assert metrics["macro_f1"] < 8 / 9  # the class that cannot be predicted has an F1 of zero
    for name in ("accuracy", "macro_f1", "eer"):
        low, high = metrics[f"{name}_ci95"]
        assert low <= metrics[name] <= high
    assert metrics["skipped"] == {"no label 'lang'": 1}
    assert sum(metrics["confusion"]["w"].values()) == 1 and metrics["confusion"]["x"]["x"] == 2
    rows = [json.loads(line) for line in run.files.utterances.read_text().splitlines()]
    assert sum(row["correct"] for row in rows) == 8 and {row["id"] for row in rows} == {f"u{i}9" for i in range(9)}
    for row in rows:
        assert max(row["log_posteriors"], key=row["log_posteriors"].get) == row["hypothesis"]
    again = Run.open(run.path)
    assert again.evaluate().metrics["accuracy"] == metrics["accuracy"]
    assert again.evaluate("dev").metrics["accuracy"] == run.metrics()["dev"]["accuracy"] == 1.0
    assert again.transcribe([np.zeros((5, 3, 8), np.float32)])[0] in "xyz"


def test_the_best_checkpoint_has_the_most_accuracy_or_the_least_error_rate(cache: Path, tmp_path: Path) -> None:
    for metric in ("accuracy", "macro_f1", "eer"):
        run = train(cache, tmp_path / metric, f"train.metric={metric}")
        state = json.loads(run.files.state.read_text())
        sign = 1 if metric == "eer" else -1
        assert state["best"][0] == sign * state["best_dev"][metric]
        assert state["best_dev"]["accuracy"] == 1.0


def test_any_decoder_votes_frame_by_frame(cache: Path, tmp_path: Path) -> None:
    run = training.fit(recipe.parse(toy_recipe(cache, 60, "linear"), CLASSIFY[:2]), runs=tmp_path)
    assert run.metrics()["decoder"] == "linear" and run.metrics()["accuracy"] > 0.7


def test_compare_shows_the_measures_of_the_task(cache: Path, tmp_path: Path) -> None:
    a, b = train(cache, tmp_path, "name=a"), train(cache, tmp_path, "name=b", steps=1)
    rows = compare([a.path, b.path])
    for name in ("accuracy", "macro_f1", "eer"):
        difference, low, high = rows[1][f"{name}_difference"]
        assert difference == pytest.approx(rows[1][name] - rows[0][name]) and low <= difference <= high
    assert [table.columns[2].header for table in comparison.tables(rows)] == ["accuracy", "macro F1", "EER"]


def test_classification_pools_over_the_valid_frames_only() -> None:
    task = ClassifyTask(["x", "y"])
    logits = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [-99.0, 9.0]], [[0.0, 1.0], [-99.0, 9.0], [-99.0, 9.0]]])
    lengths = torch.tensor([2, 1])
    [first, second] = task.predict(logits, lengths)
    assert first == pytest.approx(torch.tensor([2.0, 0.0]).log_softmax(0).tolist(), abs=1e-5)
    assert task.text(first) == "x" and task.text(second) == "y"
    loss = task.loss(logits, lengths, [(0,), (1,)])
    assert float(loss) == pytest.approx(-(first[0] + second[1]) / 2, abs=1e-5)
    assert float(task.loss(logits, lengths, [(0,), ()])) == pytest.approx(-first[0], abs=1e-5)
    assert float(task.loss(logits, lengths, [(), ()])) == 0.0


def test_every_task_comes_back_from_json() -> None:
    labels = {"ctc": ["ab", "b"], "classify": ["b", "a", "b"], "tag": ['[["x", 0, 1.5]]', "[]"]}
    assert labels.keys() == tasks.TASKS.keys()
    for kind, values in labels.items():
        task = tasks.fit(TaskRecipe(kind=kind), values, 25.0)
        described = json.loads(json.dumps(task.describe()))
        again = tasks.from_json(described)
        assert again.describe() == described and again.outputs == task.outputs
        assert task.chosen_by in {measure.name for measure in task.measures}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task.kind=classify", "task.label=split"], "has 1 value .'train'. in train"),
        (
            ["task.label=lang", "decoder.kind=attentive"],
            "'attentive' pools over time.*use blstm or conformer or linear",
        ),
        ([*CLASSIFY, "train.metric=wer"], "use accuracy or macro_f1 or eer"),
    ],
)
def test_what_does_not_suit_a_task_is_said(cache: Path, tmp_path: Path, overrides: list[str], words: str) -> None:
    made = recipe.parse(toy_recipe(cache, 1, "linear"), overrides)
    with pytest.raises(UsageError, match=words):
        training.fit(made, runs=tmp_path)


def test_a_frame_has_the_class_of_the_span_over_its_middle() -> None:
    task = TagTask.fit(TaskRecipe(kind="tag"), ['[["b", 0.5, 1], ["a", 0, 0.5]]', "not json"], 10.0)
    assert task.classes == (BACKGROUND, "a", "b")
    reference = task.reference('[["b", 0.33, 0.5], ["a", 0.1, 0.25], ["z", 0.6, 0.7]]')
    assert reference == '[["a", 0.1, 0.25], ["b", 0.33, 0.5], ["z", 0.6, 0.7]]'
    assert task.target(reference, 9) == [0, 1, 0, 2, 2, 0, -1, 0, 0]
    [row] = task.table(["u"], [reference], [[0, 1, 1, 2, 2, 2, 2, 0, 0]])
    assert row["frames"] == 9 and row["correct"] == 6 and row["hypothesis"] == '[["a", 0.1, 0.3], ["b", 0.3, 0.7]]'
    assert row["counts"] == {"<none>": [3, 5, 3], "a": [1, 1, 2], "b": [2, 2, 4], "z": [0, 1, 0]}
    metrics, _ = task.report(["u"], [reference], [[0, 1, 1, 2, 2, 2, 2, 0, 0]])
    assert metrics["frame_accuracy"] == pytest.approx(6 / 9)
    assert metrics["macro_f1"] == pytest.approx((6 / 8 + 2 / 3 + 4 / 6 + 0) / 4)


@given(st.lists(st.sampled_from([0, 0, 1, 2]), max_size=60), st.sampled_from([1.0, 12.5, 25.0, 49.95]))
def test_spans_of_frames_are_those_frames_again(classes: list[int], rate: float) -> None:
    task = TagTask([BACKGROUND, "a", "b"], rate)
    assert task.target(task.text(classes), len(classes)) == classes


def test_the_loss_of_tags_is_over_valid_frames_of_known_classes() -> None:
    task = TagTask([BACKGROUND, "a"], 10.0)
    logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [5.0, 5.0]], [[1.0, 3.0], [9.0, 9.0], [9.0, 9.0]]])
    log_probs = logits.log_softmax(-1)
    loss = task.loss(logits, torch.tensor([3, 1]), [(0, 1, -1), (1,)])
    expected = -(log_probs[0, 0, 0] + log_probs[0, 1, 1] + log_probs[1, 0, 1]) / 3
    torch.testing.assert_close(loss, expected)
    assert task.predict(logits, torch.tensor([2, 1])) == [[0, 1], [1]]


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("speech", "not a list of"),
        ("[[1, 2]]", "not a list of"),
        ("[" * 100_000, "not a list of"),
        ('[["a", 2, 1]]', "ends before it starts"),
        ('[["a", 0, 1], ["b", 0.5, 2]]', "overlap"),
    ],
)
def test_spans_that_make_no_sense_are_refused(label: str, words: str) -> None:
    with pytest.raises(Unusable, match=words):
        read_spans(label)
    with pytest.raises(UsageError, match=words):
        TagTask.fit(TaskRecipe(kind="tag"), [label], 10.0)
