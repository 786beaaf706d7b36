"""How little speech is enough: the same recipes trained on 1 minute, 10 minutes, ... of the training speech.

Subsets are nested, drawn with a seed, and hold each language's share: within a language rows are shuffled, and
languages are laid side by side by how much of each is used up. A subset is a labels file that leaves the other
training rows out of the split, so that dev and test stay as they are.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from featcache.console import table_console
from featcache.errors import UsageError
from featcache.store import Cache
from fusion import checkpoint, intervals, labels
from fusion.recipe import Recipe
from fusion.tasks import Measure
from pipelines import studies
from pipelines.studies import Score

MINUTES = ("1", "10", "all")
BY = "lang"
LEFT_OUT = "(not in this subset)"


@dataclass(frozen=True)
class Size:
    """What a head learns from one subset. `scores` are keyed by measure; `minutes` are those of the subset."""

    task: str
    asked: str
    minutes: float
    utterances: int
    scores: Mapping[str, Score]
    measures: tuple[Measure, ...]

    def as_json(self) -> dict[str, Any]:
        values = {key: getattr(self, key) for key in ("task", "asked", "minutes", "utterances")}
        for name, score in self.scores.items():
            values |= score.as_json(name)
        return values


def curves(
    cache: Path,
    recipes: Sequence[Path],
    *,
    minutes: Sequence[str] = MINUTES,
    seeds: Sequence[int] = (1,),
    by: str = BY,
    steps: int = 0,
    runs: Path = Path("runs"),
    overrides: Sequence[str] = (),
    console: Console,
) -> list[Size]:
    """Train every recipe on every subset for every seed, which also draws the subset; what is there is kept.

    Args:
        minutes: numbers, or `all`.
        by: the label whose values keep their shares; one that the cache lacks is ignored.

    Raises:
        UsageError: a number that is none, or a recipe that does not fit the cache.
    """
    asked = [(text, _minutes(text)) for text in minutes]
    if not asked:
        raise UsageError("no amount of speech is given: use --minutes 1,10,all for example")
    shares = "" if by == BY else "-by-" + re.sub(r"[^\w.+-]", "_", by)
    studies.unique_stems(recipes)
    found = []
    for path in recipes:
        for text, amount in asked:
            wanted = []
            drawn: list[tuple[float, int]] = []
            for seed in seeds:
                name = f"fewshot/{path.stem}-{text}min{'' if math.isinf(amount) else shares}-seed{seed}"
                recipe = studies.read(path, name, cache, seed, overrides, steps)
                recipe, size = within(recipe, amount, by, runs / f"{name}.jsonl")
                wanted.append(recipe)
                drawn.append(size)
            done = studies.train(wanted, runs=runs, console=console)
            measures = done[0].measures
            scores = {measure.name: studies.score(measure, [run.table for run in done]) for measure in measures}
            spoken, count = (float(np.mean(column)) for column in zip(*drawn, strict=True))
            found.append(Size(path.stem, text, round(spoken, 2), round(count), scores, measures))
    return found


def within(recipe: Recipe, minutes: float, by: str, file: Path) -> tuple[Recipe, tuple[float, int]]:
    """The recipe with at most so many minutes of its training speech, at least one utterance.

    Args:
        file: where the subset goes; beside it, where a file of another subset is there, which a run may be of.

    Returns:
        The recipe, and the minutes and utterances that it learns from.
    """
    cache = Cache.open(recipe.cache)
    rows = _rows_of_train(cache, recipe)
    columns = labels.Columns(cache, recipe.task.labels_file)
    groups = columns.column(by, "by") if by in columns.names else [None] * len(cache)
    seconds = np.asarray(cache.seconds)[rows]
    order = nested(seconds, [groups[row] for row in rows], recipe.seed)
    taken = max(1, int(np.searchsorted(np.cumsum(seconds[order]), 60 * minutes * (1 + 1e-9), side="right")))
    inside = order[:taken]
    size = (float(seconds[inside].sum()) / 60, taken)
    if taken == len(rows):
        return recipe, size
    # Also those that `limit` leaves out of `rows`: among fewer rows it would not.
    out = set(_rows_of_train(cache, recipe.model_copy(update={"limit": 0}))) - set(rows[inside].tolist())
    # The file stands in for the recipe's own, whose other columns may be in task.where.
    kept = dict.fromkeys([recipe.task.label, recipe.split.column, *columns.of_file])
    values = {name: columns.column(name, "task.labels_file") for name in kept}
    split = values[recipe.split.column]
    values[recipe.split.column] = [LEFT_OUT if row in out else value for row, value in enumerate(split)]
    lines = [{"id": id_, **{name: column[row] for name, column in values.items()}} for row, id_ in enumerate(cache.ids)]
    place = _store(checkpoint.json_lines(lines), file)
    task = recipe.task.model_copy(update={"labels_file": str(place)})
    # A run of another subset keeps its name.
    name = recipe.name + place.stem.removeprefix(file.stem)
    return recipe.model_copy(update={"task": task, "name": name}), size


def _rows_of_train(cache: Cache, recipe: Recipe) -> np.ndarray:
    """int64 (utterances,), rows of the cache."""
    return np.array([example.row for example in labels.select(cache, recipe).splits["train"]], dtype=np.int64)


def _store(data: bytes, file: Path) -> Path:
    """Write a file that is not there yet, or one of a name of its own where another content has the name."""
    own = file.with_name(f"{file.stem}-{hashlib.sha256(data).hexdigest()[:8]}{file.suffix}")
    if own.exists() or (file.exists() and file.read_bytes() != data):
        file = own
    if not file.exists():
        checkpoint.write_bytes(file, data)
    return file


def nested(seconds: np.ndarray, groups: Sequence[str | None], seed: int) -> np.ndarray:
    """An order of utterances, int64 (utterances,), of which every beginning has about each group's share of time.

    Args:
        seconds: float (utterances,).
    """
    generator = np.random.default_rng(seed)
    places = np.zeros(len(seconds))
    names = np.array([name or "" for name in groups])
    for name in sorted(set(names.tolist())):
        members = generator.permutation(np.flatnonzero(names == name))
        used = np.cumsum(seconds[members])
        places[members] = (used - seconds[members] / 2) / used[-1]
    return np.argsort(places, kind="stable")


def print_table(sizes: Sequence[Size]) -> None:
    """One table a task: a line a subset."""
    console = table_console()
    for task in dict.fromkeys(size.task for size in sizes):
        of_task = [size for size in sizes if size.task == task]
        table = Table(box=box.SIMPLE_HEAD, title=task, title_justify="left")
        for column in ("asked, min", "minutes", "utterances"):
            table.add_column(column, justify="right")
        for measure in of_task[0].measures:
            table.add_column(measure.title, justify="right")
            table.add_column("95 %", justify="right")
        for size in of_task:
            cells = [size.asked, f"{size.minutes:.1f}", f"{size.utterances:,}"]
            for score in size.scores.values():
                cells += [intervals.figure(score.value), intervals.span(score.ci95)]
            table.add_row(*cells)
        console.print(table)


def _minutes(text: str) -> float:
    if text == "all":
        return float("inf")
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise UsageError(f"--minutes {text!r} is neither a number above 0 nor `all`")
    return value
