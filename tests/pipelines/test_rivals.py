"""The table of fusers: the same recipe but for the fuser, and differences that are paired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache.errors import JobError, UsageError
from fusion import recipe
from pipelines import figures, fusers
from pipelines.fusers import ENTRIES, read_errors, row_of, select, settings_of


def run_folder(path: Path, errors: dict[str, int], words: int = 4) -> Path:
    """A finished run as `fusion` leaves it, as far as the table reads it."""
    path.mkdir(parents=True)
    rows = [
        {"id": key, "words": words, "word_errors": n, "characters": 5 * words, "character_errors": 2 * n}
        for key, n in errors.items()
    ]
    (path / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "metrics.json").write_text(json.dumps({"fusion_parameters": 10, "decoder_parameters": 20}))
    return path


def test_only_the_fuser_differs() -> None:
    cache = Path("caches/demo")
    upstream = [entry for entry in ENTRIES if entry.features == "upstream"]
    made = [settings_of(entry, 1, cache, Path("unused"), fusers.BASE_RECIPE, ["train.steps=7"]) for entry in upstream]
    for settings in made:
        assert settings.train.steps == 7
        assert str(settings.cache) == "caches/demo"
        changed = recipe.differences(made[-1], settings)
        assert [key for key in changed if key != "name" and not key.startswith("fuser.")] == []
    assert len({settings.name for settings in made}) == len(made)
    assert {settings.fuser.kind for settings in made} == {"last", "weighted_sum", "concat", "hff"}


def test_select() -> None:
    assert [entry.name for entry in select([])] == ["mel", "last", "weighted_sum", "concat", "hff"]
    assert [entry.name for entry in select(["hff", "last"])] == ["last", "hff"]
    with pytest.raises(UsageError, match="no row best in the table: choose from mel, last"):
        select(["best"])


def test_seeds_are_averaged_and_differences_are_paired(tmp_path: Path) -> None:
    last, hff = ENTRIES[1], ENTRIES[-1]
    ids = [f"u{i}" for i in range(50)]
    # Utterances differ much in difficulty; on each, "last" makes one error more than HFF.
    hard = np.random.default_rng(0).integers(0, 3, len(ids))
    better = [run_folder(tmp_path / f"hff{s}", {u: int(h) + s for u, h in zip(ids, hard, strict=True)}) for s in (0, 1)]
    worse = [
        run_folder(tmp_path / f"last{s}", {u: int(h) + 1 + s for u, h in zip(ids, hard, strict=True)}) for s in (0, 1)
    ]
    reference = read_errors(better)
    row = row_of(last, (1, 2), worse, read_errors(worse), reference)
    assert row.wer == pytest.approx((hard.mean() + 1.5) / 4)
    assert row.wer_by_seed == pytest.approx([(hard.mean() + 1) / 4, (hard.mean() + 2) / 4])
    assert row.wer_ci95[0] < row.wer < row.wer_ci95[1]
    # The rate depends on the draw of utterances. The difference does not: its interval is a point.
    assert row.wer_difference == pytest.approx((0.25, 0.25, 0.25))
    assert row.cer_difference == pytest.approx((0.1, 0.1, 0.1))
    assert row.wer_ci95[1] - row.wer_ci95[0] > 0.05
    assert row_of(hff, (1, 2), better, reference, reference).wer_difference is None
    assert json.loads(json.dumps(row.as_json()))["fusion_parameters"] == 10


def test_utterances_are_matched_by_id(tmp_path: Path) -> None:
    reference = read_errors([run_folder(tmp_path / "hff", {"c": 0, "a": 2, "b": 1})])
    mine = [run_folder(tmp_path / "last", {"a": 2, "b": 2})]
    row = row_of(ENTRIES[1], (1,), mine, read_errors(mine), reference)
    assert row.wer_difference is not None
    assert row.wer_difference[0] == pytest.approx(1 / 8)


def test_seeds_of_other_utterances_are_refused(tmp_path: Path) -> None:
    runs = [run_folder(tmp_path / "1", {"a": 1}), run_folder(tmp_path / "2", {"b": 1})]
    with pytest.raises(JobError, match="tested on different utterances"):
        read_errors(runs)


def test_table_is_printed_on_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    runs = [run_folder(tmp_path / "hff", {"a": 1, "b": 0})]
    errors = read_errors(runs)
    fusers.print_table([row_of(ENTRIES[-1], (3,), runs, errors, errors)])
    out = capsys.readouterr().out
    assert "HFF" in out
    assert "0.125" in out
    assert "Test utterances: 2. Seeds: 3" in out


def test_plot_draws_every_row_and_refuses_an_unknown_format(tmp_path: Path) -> None:
    errors = read_errors([run_folder(tmp_path / "1", {"a": 1, "b": 0})])
    rows = [row_of(entry, (1,), [tmp_path / "1"], errors, errors) for entry in ENTRIES]
    figures.error_rates(rows, tmp_path / "plots" / "rates.svg")
    drawn = (tmp_path / "plots" / "rates.svg").read_text()
    assert all(f"<!-- {entry.title} -->" in drawn for entry in ENTRIES)
    with pytest.raises(UsageError, match="rates.txt.*png"):
        figures.error_rates(rows, tmp_path / "rates.txt")
