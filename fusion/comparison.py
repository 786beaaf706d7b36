"""Runs side by side: scores with intervals, and the paired difference of each to the first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from featcache.errors import UsageError
from fusion import intervals, tasks
from fusion.run import Run
from fusion.tasks import Measure

NOTE = "- first: the value minus that of the first run, paired bootstrap over utterances, 95 % interval"


def compare(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One JSON-able row a run: its metrics, and for each measure `NAME_difference` as [value, low, high].

    The first run, with which the others are compared, has no differences.

    Raises:
        UsageError: a run is not finished, has another task than the first, or was scored on other utterances.
    """
    if not paths:
        raise UsageError("nothing to compare; give the folders of two runs or more")
    rows: list[dict[str, Any]] = []
    first: dict[str, dict[str, Any]] = {}
    for path in paths:
        metrics, table = Run.read_metrics(path), Run.read_table(path)
        row = {"run": str(path), **metrics}
        if not rows:
            first = table
        elif metrics["task"] != rows[0]["task"]:
            raise UsageError(
                f"{path} is of task {metrics['task']}, {paths[0]} of task {rows[0]['task']}; compare one task"
            )
        elif table.keys() != first.keys():
            missing = len(first.keys() ^ table.keys())
            raise UsageError(
                f"{path} and {paths[0]} were scored on different utterances ({missing} are in one only): "
                "`fusion eval` both on the same split of the same cache"
            )
        elif [table[id_]["reference"] for id_ in first] != [first[id_]["reference"] for id_ in first]:
            raise UsageError(f"{path} and {paths[0]} have other references; use the same task and label in both")
        else:
            here, there = [table[id_] for id_ in first], list(first.values())
            for measure in measures_of(metrics):
                difference = intervals.difference(measure.statistic(here), measure.statistic(there), len(first))
                row[f"{measure.name}_difference"] = list(difference)
        rows.append(row)
    return rows


def measures_of(metrics: Mapping[str, Any]) -> tuple[Measure, ...]:
    """The measures of the task that metrics are of."""
    return tasks.of_kind(metrics["task"]).measures


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Runs of one task, as the rows of `compare` or their metrics: one table a measure, for a terminal."""
    compared = len(rows) > 1 and any(key.endswith("_difference") for key in rows[1])
    found = []
    for measure in measures_of(rows[0]):
        result = Table(box=box.SIMPLE_HEAD)
        result.add_column("run", overflow="fold")
        for column in ("fuser", measure.title, "95 %", *(["- first", "95 %"] if compared else [])):
            result.add_column(column, justify="right")
        for row in rows:
            difference = row.get(f"{measure.name}_difference")
            cells = [f"{row['fusion_parameters'] / 1e3:.0f} k", f"{row[measure.name]:.3f}"]
            cells.append("{:.3f}, {:.3f}".format(*row[f"{measure.name}_ci95"]))
            if difference is not None:
                cells += [f"{difference[0]:+.3f}", f"{difference[1]:+.3f}, {difference[2]:+.3f}"]
            result.add_row(row["run"], *cells)
        found.append(result)
    return found
