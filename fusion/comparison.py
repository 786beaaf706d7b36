"""Runs side by side: scores with intervals, and the paired difference of each to the first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from featcache.errors import FeatcacheError, UsageError
from fusion import evaluate
from fusion.run import Run

NOTE = "difference: error rate minus that of the first run, paired bootstrap over utterances, 95 % interval"
MEASURES = {"wer": ("word_errors", "words"), "cer": ("character_errors", "characters")}


def compare(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One JSON-able row a run: its metrics, and `wer_difference`, `cer_difference` as [value, low, high].

    The first run, with which the others are compared, has no differences.

    Raises:
        UsageError: a run is not finished, or was scored on other utterances than the first.
    """
    if not paths:
        raise UsageError("nothing to compare; give the folders of two runs or more")
    rows: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}
    for path in paths:
        metrics, table = _read(Path(path))
        row = {"run": str(path), **metrics}
        if not rows:
            first = table
        elif table.keys() != first.keys():
            missing = len(first.keys() ^ table.keys())
            raise UsageError(
                f"{path} and {paths[0]} were scored on different utterances ({missing} are in one only): "
                "`fusion eval` both on the same split of the same cache"
            )
        elif [table[id_]["reference"] for id_ in first] != [first[id_]["reference"] for id_ in first]:
            raise UsageError(f"{path} and {paths[0]} have other references; use the same task.normalise in both")
        else:
            for measure, (errors, units) in MEASURES.items():
                difference = evaluate.paired_difference(
                    [table[id_][errors] for id_ in first],
                    [first[id_][errors] for id_ in first],
                    [first[id_][units] for id_ in first],
                )
                row[f"{measure}_difference"] = list(difference)
        rows.append(row)
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `compare` for a terminal."""
    result = Table("run", "fuser", "parameters", "WER", "95 %", "difference", "CER", "95 %", "difference")
    for row in rows:
        cells = [row["run"], row["fuser"], f"{row['fusion_parameters']:,} + {row['decoder_parameters']:,}"]
        for measure in MEASURES:
            low, high = row[f"{measure}_ci95"]
            cells += [
                f"{row[measure]:.3f}",
                f"{low:.3f} to {high:.3f}",
                _difference(row.get(f"{measure}_difference")),
            ]
        result.add_row(*cells)
    return result


def _difference(value: Sequence[float] | None) -> str:
    return "" if value is None else f"{value[0]:+.3f} ({value[1]:+.3f} to {value[2]:+.3f})"


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    metrics = Run.read_metrics(path)
    place = path / "utterances.jsonl"
    try:
        lines = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise FeatcacheError(f"{place} cannot be read ({error}); `fusion eval {path}` writes it again") from error
    return metrics, {line["id"]: line for line in lines}
