"""Task quality by rate: losses are paired, pooled over seeds, and worse is above zero."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import JobError, UsageError
from fusion import tasks
from pipelines import figures
from pipelines.rate import Cell, Point, cell_of, sweep

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
