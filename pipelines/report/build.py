"""Runs and their figures into one page."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from featcache.errors import UsageError
from fusion import comparison, intervals, outputs
from fusion.tasks import Measure
from pipelines import figures, rate, studies
from pipelines.layers import Layers
from pipelines.report import curves
from pipelines.report.examples import Example, worst
from pipelines.report.recordings import Recordings
from pipelines.studies import Finished

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {"ctc": "Transcription", "classify": "Classification", "tag": "Frame tagging"}
MOST_GROUPS = 12
T = TypeVar("T")


@dataclass(frozen=True)
class Sources:
    """What a page is made from beside the runs; what is None is not in it.

    Args:
        rate: what `pipelines rate --json` printed.
        layers: what `pipelines layers --out` left.
        by: the label of the manifest whose values get a column each.
        examples: utterances with errors, at most, a task.
    """

    manifest: Path | None = None
    rate: Path | None = None
    layers: Path | None = None
    by: str = "lang"
    examples: int = 24


@dataclass(frozen=True)
class Cell:
    """A measure of a run: its value, interval, and paired difference to the first run; positions are in percent of
    the span that all runs' intervals cover."""

    value: float
    low: float
    high: float
    at: float
    start: float
    width: float
    difference: tuple[float, float, float] | None
    better: bool | None
    """Than the first run, outside the interval; None where that cannot be said."""


@dataclass(frozen=True)
class Line:
    """A run in the table of its task."""

    name: str
    metrics: Mapping[str, Any]
    cells: tuple[Cell, ...]
    groups: tuple[float | None, ...]


@dataclass(frozen=True)
class Section:
    """The runs of one task."""

    kind: str
    title: str
    measures: tuple[Measure, ...]
    lines: tuple[Line, ...]
    groups: tuple[str, ...]
    by: str
    figures: tuple[str, ...]
    examples: tuple[Example, ...]
    note: str


@dataclass(frozen=True)
class Page:
    """All that the template shows."""

    sections: tuple[Section, ...]
    points: tuple[rate.Point, ...]
    rate_figures: tuple[str, ...]
    layers: Layers | None
    layer_figures: tuple[str, ...]
    listens: bool


def build(runs: Sequence[Path], sources: Sources) -> Page:
    """Read all that the page shows.

    Raises:
        UsageError: there is no run, a folder is no finished run, or a JSON file is not what it should be.
    """
    if not runs:
        raise UsageError("nothing to report; give the folders of finished runs")
    done = [studies.finished(path) for path in dict.fromkeys(runs)]
    recordings = Recordings(sources.manifest) if sources.manifest else None
    points: tuple[rate.Point, ...] = _read_json(sources.rate, _points, ())
    layers = _read_json(sources.layers, Layers.from_json, None)
    kinds = dict.fromkeys(str(run.metrics["task"]) for run in done)
    sections = [_section([run for run in done if run.metrics["task"] == kind], sources, recordings) for kind in kinds]
    drawn = itertools.count()

    def draw(*made: Figure) -> tuple[str, ...]:
        return tuple(figures.inline_svg(one, f"extra{next(drawn)}") for one in made)

    of_rate = [figures.values_by_rate(points), figures.losses_by_rate(points)] if len(points) > 1 else []
    of_layers = [figures.by_tap(layers), figures.similarity(layers)] if layers else []
    if layers and layers.attention:
        of_layers.append(figures.attention(layers))
    listens = recordings is not None
    return Page(tuple(sections), points, draw(*of_rate), layers, draw(*of_layers), listens)


def write(page: Page, out: Path) -> None:
    """Write the page, which needs no other file and asks nothing of the network.

    Raises:
        JobError: it cannot be written.
    """
    from jinja2 import Environment, PackageLoader

    loader = PackageLoader("pipelines", "report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("page.html.j2").render(page=page)
    outputs.write(out, text.encode())


def _section(runs: Sequence[Finished], sources: Sources, recordings: Recordings | None) -> Section:
    """The part about runs of one task; they are compared where they were tested on the same utterances."""
    named = {str(run.path): run for run in runs}
    measures = runs[0].measures
    note = ""
    try:
        rows = comparison.compare([run.path for run in runs])
    except UsageError as error:
        rows, note = [{"run": name, **run.metrics} for name, run in named.items()], str(error)
    cells = [_cells(measure, rows) for measure in measures]
    groups, by = _groups(runs[0], recordings, sources.by), sources.by
    lines = tuple(
        Line(name, run.metrics, tuple(column[i] for column in cells), _by_group(run, measures[0], groups))
        for i, (name, run) in enumerate(named.items())
    )
    kind = str(runs[0].metrics["task"])
    learnt = {name: found for name, run in named.items() if (found := curves.read(run.path))}
    drawn = (figures.inline_svg(figures.training(learnt, measures[0]), f"training-{kind}"),) if learnt else ()
    examples = worst(named, sources.examples, recordings)
    return Section(
        kind, TITLES.get(kind, kind), measures, lines, tuple(groups), by, drawn, tuple(examples), note
    )  # fmt: skip


def _cells(measure: Measure, rows: Sequence[Mapping[str, Any]]) -> list[Cell]:
    ends = [end for row in rows for end in row[f"{measure.name}_ci95"] if math.isfinite(end)] or [0.0]
    first, span = min(ends), max(max(ends) - min(ends), 1e-9)
    cells = []
    for row in rows:
        value, (low, high) = row[measure.name], row[f"{measure.name}_ci95"]
        difference = row.get(f"{measure.name}_difference")
        better = None
        # Zero at either end is inside the interval, and an interval that is undefined says nothing.
        if difference is not None and (difference[1] > 0 or difference[2] < 0):
            better = measure.cost(difference[0]) < 0
        place = [100 * (point - first) / span for point in (value, low, high)]
        cells.append(
            Cell(value, low, high, place[0], place[1], place[2] - place[1], difference and tuple(difference), better)
        )
    return cells


def _groups(run: Finished, recordings: Recordings | None, by: str) -> dict[str, list[str]]:
    """Test utterances by the value of a label; empty where there is no such label, or one value, or very many."""
    groups: dict[str, list[str]] = {}
    for id_ in run.table if recordings else ():
        value = recordings.labels(id_).get(by) if recordings else None
        if value is not None:
            groups.setdefault(value, []).append(id_)
    return dict(sorted(groups.items())) if 1 < len(groups) <= MOST_GROUPS else {}


def _by_group(run: Finished, measure: Measure, groups: Mapping[str, Sequence[str]]) -> tuple[float | None, ...]:
    found: list[float | None] = []
    for ids in groups.values():
        rows = [run.table[id_] for id_ in ids if id_ in run.table]
        found.append(intervals.value(measure.statistic(rows), len(rows)) if rows else None)
    return tuple(found)


def _points(value: Any) -> tuple[rate.Point, ...]:
    return tuple(rate.Point.from_json(one) for one in value)


def _read_json(path: Path | None, read: Callable[[Any], T], absent: T) -> T:
    """What a JSON file holds.

    Raises:
        UsageError: it is not there, no JSON, or of something else.
    """
    if path is None:
        return absent
    try:
        return read(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not what it should be ({error}); make it anew with --json") from error
