"""Runs side by side: scores with intervals, and the paired difference of each to the first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from featcache.errors import UsageError
from fusion import intervals, tasks
from fusion.run import Run
from fusion.tasks import Measure

NOTE = (
    "- first: the value minus that of the first, paired bootstrap over utterances, 95 % interval. "
    "Of several runs, which differ in their seeds, values are means"
)
Runs = str | Path | Sequence[str | Path]


def compare(heads: Sequence[Runs]) -> list[dict[str, Any]]:
    """One JSON-able row a head: its metrics, and for each measure `NAME_difference` as [value, low, high].

    The first, with which the others are compared, has no differences.

    Args:
        heads: the folder of a run, or those of several that differ in their seeds: their row has the metrics of the
            first of them with means of the measures, and `NAME_by_seed`. `runs` are the folders.

    Raises:
        UsageError: a run is not finished, has another task than the first, or was scored on other utterances.
    """
    groups = [[head] if isinstance(head, str | Path) else list(head) for head in heads]
    if not groups or not all(groups):
        raise UsageError("nothing to compare; give the folders of two runs or more")
    scored = [[_Scored.read(path) for path in group] for group in groups]
    first = scored[0][0]
    reference: dict[str, intervals.Statistic] = {}
    rows: list[dict[str, Any]] = []
    for read in scored:
        runs = [run.like(first) for run in read]
        folders = [str(run.path) for run in runs]
        row = {"run": ",".join(folders), "runs": folders, **runs[0].metrics}
        for measure in measures_of(first.metrics):
            here = [measure.statistic(run.of(first.table)) for run in runs]
            pooled = intervals.mean_of(here)
            if len(runs) > 1:
                row[measure.name] = intervals.value(pooled, len(first.table))
                row[f"{measure.name}_ci95"] = list(intervals.interval(pooled, len(first.table)))
                row[f"{measure.name}_by_seed"] = [intervals.value(one, len(first.table)) for one in here]
            if rows:
                difference = intervals.difference(pooled, reference[measure.name], len(first.table))
                row[f"{measure.name}_difference"] = list(difference)
            else:
                reference[measure.name] = pooled
        rows.append(row)
    return rows


@dataclass(frozen=True)
class _Scored:
    """A finished run: its metrics, and its table of utterances by id."""

    path: str | Path
    metrics: Mapping[str, Any]
    table: Mapping[str, Mapping[str, Any]]

    @classmethod
    def read(cls, path: str | Path) -> _Scored:
        return cls(path, Run.read_metrics(path), Run.read_table(path))

    def like(self, first: _Scored) -> _Scored:
        """The run itself, which can be compared with the first."""
        here, there = self.metrics["task"], first.metrics["task"]
        if here != there:
            raise UsageError(f"{self.path} is of task {here}, {first.path} of task {there}; compare one task")
        if self.table.keys() != first.table.keys():
            splits = self.metrics["split"], first.metrics["split"]
            if splits[0] != splits[1]:
                raise UsageError(
                    f"{self.path} was scored on {splits[0]}, {first.path} on {splits[1]}: runs are compared on a test "
                    "split that they have in common; name one in section split of both recipes"
                )
            missing = len(first.table.keys() ^ self.table.keys())
            raise UsageError(
                f"{self.path} and {first.path} were scored on different utterances ({missing} are in one only): "
                "`fusion eval` both on the same split of the same cache"
            )
        if any(self.table[id_]["reference"] != row["reference"] for id_, row in first.table.items()):
            raise UsageError(f"{self.path} and {first.path} have other references; use the same task and label in both")
        return self

    def of(self, ids: Iterable[str]) -> list[Mapping[str, Any]]:
        return [self.table[id_] for id_ in ids]


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
            cells = [f"{row['fusion_parameters'] / 1e3:.0f} k", intervals.figure(row[measure.name])]
            cells.append(intervals.span(row[f"{measure.name}_ci95"]))
            if difference is not None:
                cells += [intervals.figure(difference[0], "+.3f"), intervals.span(difference[1:], "+.3f")]
            run, *others = row.get("runs", [row["run"]])
            result.add_row(f"{run} and {len(others)} more" if others else run, *cells)
        found.append(result)
    return found
