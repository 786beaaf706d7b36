"""Task quality by rate: losses are paired, pooled over seeds, and worse is above zero."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from featcache.errors import JobError, UsageError
from fusion import tasks
from fusion.run import Run
from pipelines import figures
from pipelines.rate import Cell, Point, cell_of, sweep
from tests.fusion.speech import toy_cache, toy_recipe

IDS = [f"u{i}" for i in range(40)]


def measure_of(kind: str, name: str) -> tasks.Measure:
    return next(measure for measure in tasks.of_kind(kind).measures if measure.name == name)


def errors(extra: int, seed: int) -> dict[str, dict[str, object]]:
    drawn = np.random.default_rng(seed).integers(1, 4, len(IDS))
    return {id_: {"id": id_, "word_errors": int(n) + extra, "words": 5} for id_, n in zip(IDS, drawn, strict=True)}


def test_loss_is_paired_and_pooled_over_seeds() -> None:
    wer = measure_of("ctc", "wer")
    reference = [errors(0, 1), errors(0, 2)]
    cell = cell_of(wer, IDS, [errors(1, 1), errors(1, 2)], reference)
    base = cell_of(wer, IDS, reference, reference)
    assert base.loss is None and base.value == pytest.approx(np.mean(base.by_seed))
    assert cell.value == pytest.approx(base.value + 0.2)
    # One error more in every utterance, whichever are drawn: the difference has no spread.
    assert cell.loss == pytest.approx((0.2 / base.value,) * 3)


def test_less_accuracy_is_a_loss_too() -> None:
    accuracy = measure_of("classify", "accuracy")
    right = {id_: {"id": id_, "correct": 1} for id_ in IDS}
    some = {id_: {"id": id_, "correct": int(i % 4 != 0)} for i, id_ in enumerate(IDS)}
    loss = cell_of(accuracy, IDS, [some], [right]).loss
    assert loss is not None
    assert loss[0] == pytest.approx(0.25) and loss[1] < 0.25 < loss[2]


def test_runs_on_other_utterances_are_refused() -> None:
    wer = measure_of("ctc", "wer")
    with pytest.raises(JobError, match="different utterances"):
        cell_of(wer, IDS[1:], [errors(0, 1)], [errors(0, 2)])


def test_a_plot_and_json_of_points(tmp_path: Path) -> None:
    cell = Cell(0.5, (0.5,), (0.01, -0.01, 0.03))
    points = [
        Point("fp16", 14.2, 10, 9.0, {"asr wer": Cell(0.49, (0.49,), None)}),
        Point("residual:1.0", 1.02, 1, 0.9, {"asr wer": cell}),
    ]
    figures.save(figures.losses_by_rate(points), tmp_path / "rate.svg")
    assert "asr wer" in (tmp_path / "rate.svg").read_text()
    assert json.loads(json.dumps(points[1].as_json()))["measures"]["asr wer"]["value"] == 0.5


def test_nothing_to_do_is_said() -> None:
    with pytest.raises(UsageError, match="at least one profile"):
        sweep(Path("cache"), [], [Path("a.toml")], seeds=[1], caches=Path("caches"))
    with pytest.raises(UsageError, match="share a name"):
        sweep(Path("cache"), ["int8"], [Path("a/asr.toml"), Path("b/asr.toml")], seeds=[1], caches=Path("caches"))


@pytest.mark.parametrize("frozen", [False, True])
def test_the_whole_of_it_on_a_toy_language(tmp_path: Path, frozen: bool) -> None:
    recipe = tmp_path / "asr.toml"
    recipe.write_text(toy_recipe(toy_cache(tmp_path / "cache", 30), 10, "linear"))
    found = sweep(
        tmp_path / "cache", ["residual:1.0", "residual:0.5"], [recipe], seeds=[1, 2], caches=tmp_path / "caches",
        runs=tmp_path / "runs", overrides=("train.workers=0",), frozen=frozen, console=Console(quiet=True),
    )  # fmt: skip
    assert [point.profile for point in found] == ["fp16", "residual:1.0", "residual:0.5"]
    assert found[0].bits_per_value > found[1].bits_per_value and found[0].measures["asr cer"].loss is None
    assert all(point.measures["asr cer"].loss for point in found[1:])
    trained = sorted(path.name for path in (tmp_path / "runs/rate").iterdir())
    assert len(trained) == (2 if frozen else 6) and trained[0] == "asr-fp16-seed1"
    if frozen:
        there = Run.open(tmp_path / "runs/rate/asr-fp16-seed2").evaluate("dev", str(tmp_path / "caches/residual-0.5"))
        assert found[2].measures["asr cer"].by_seed[1] == pytest.approx(there.metrics["cer"])
