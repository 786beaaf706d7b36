"""What every study of many runs shares: train what is absent, and sum up runs of one thing over their seeds.

Values are means over seeds. Intervals are bootstrapped over utterances with the seeds pooled: a resample takes
the same utterances for every seed, and for what is compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from featcache.errors import JobError, UsageError
from fusion import checkpoint, intervals, recipe, tasks
from fusion.intervals import Statistic
from fusion.recipe import Recipe
from fusion.run import Run
from fusion.tasks import Measure
from fusion.train import fit_together

Table = Mapping[str, Mapping[str, Any]]
"""The per-utterance table of a run, by id."""


@dataclass(frozen=True)
class Finished:
    """A finished run: its folder, its scores, its per-utterance table."""

    path: Path
    metrics: Mapping[str, Any]
    table: Table

    @property
    def measures(self) -> tuple[Measure, ...]:
        return tasks.of_kind(str(self.metrics["task"])).measures

    def on_dev(self, measure: Measure) -> float:
        """The measure of its best checkpoint on dev."""
        return float(self.metrics["dev"][measure.name])


@dataclass(frozen=True)
class Score:
    """One measure of runs that differ in their seeds. `difference` is (value, low, high): theirs minus the
    reference's, on the utterances that both were tested on."""

    value: float
    ci95: tuple[float, float]
    by_seed: tuple[float, ...]
    difference: tuple[float, float, float] | None = None

    def as_json(self, name: str) -> dict[str, Any]:
        values = {name: self.value, f"{name}_ci95": list(self.ci95), f"{name}_by_seed": list(self.by_seed)}
        values |= {f"{name}_difference": None if self.difference is None else list(self.difference)}
        made: dict[str, Any] = checkpoint.defined(values)
        return made


def read(path: Path, name: str, cache: Path | None, seed: int, overrides: Sequence[str] = (), steps: int = 0) -> Recipe:
    """The recipe of one run of a study.

    Args:
        cache: None leaves the recipe's own.
        overrides: as `--set` takes them; what the study sets itself goes before them.
        steps: of training, with the warmup and the looks at dev shortened to suit; 0 leaves the recipe's.
    """
    place = [f"seed={seed}", f"name={name}", *([f"cache={json.dumps(str(cache))}"] if cache else [])]
    wanted = recipe.read(path, [*overrides, *place])
    if not steps:
        return wanted
    train = wanted.train
    shorter = {
        "steps": steps,
        "warmup": min(train.warmup, steps // 10),
        "eval_every": min(train.eval_every, max(1, steps // 5)),
    }
    return wanted.model_copy(update={"train": train.model_copy(update=shorter)})


def train(recipes: Sequence[Recipe], *, runs: Path, restart: bool = False, console: Console) -> list[Finished]:
    """Train what is absent or unfinished, in shared passes over the cache; a finished run stays as it is.

    Raises:
        UsageError: a recipe does not fit, or a run of its name was made by another one.
    """
    for each in recipes:
        console.print(f"{runs / each.name}", highlight=False, soft_wrap=True, markup=False)
    made = fit_together(recipes, runs=runs, mode="restart" if restart else "auto", console=console)
    return [finished(run.path) for run in made]


def finished(path: Path) -> Finished:
    """A run that is there.

    Raises:
        UsageError: it is no run, or not finished.
    """
    return Finished(path, Run.read_metrics(path), Run.read_table(path))


def pooled(measure: Measure, ids: Sequence[str], tables: Sequence[Table]) -> Statistic:
    """The mean over tables of a measure, as a function of how often each utterance is drawn."""
    return intervals.mean_of([measure.statistic([table[key] for key in ids]) for table in tables])


def same_ids(tables: Sequence[Table]) -> list[str]:
    """The utterances of tables that are of the same ones.

    Raises:
        JobError: they are not.
    """
    first = list(tables[0])
    if any(set(table) != set(first) for table in tables):
        raise JobError("runs were tested on different utterances: train them again with --restart")
    return first


def score(measure: Measure, tables: Sequence[Table], reference: Sequence[Table] | None = None) -> Score:
    """A measure of runs (one table a seed), and what it is apart from the reference's runs.

    Raises:
        JobError: tables of one side are of different utterances, or the sides have none in common.
    """
    ids = same_ids(tables)
    here = pooled(measure, ids, tables)
    difference = None
    if reference is not None and reference is not tables:
        there = set(same_ids(reference))
        # Features at another rate may lack an utterance that is too short for a frame.
        both = [key for key in ids if key in there]
        if not both:
            raise JobError("runs that are compared have no test utterance in common: train them again with --restart")
        difference = intervals.difference(pooled(measure, both, tables), pooled(measure, both, reference), len(both))
    return Score(
        value=intervals.value(here, len(ids)),
        ci95=intervals.interval(here, len(ids)),
        by_seed=tuple(intervals.value(pooled(measure, ids, [table]), len(ids)) for table in tables),
        difference=difference,
    )


def unique_stems(recipes: Sequence[Path]) -> list[str]:
    """The names of recipes, which name the folders of their runs.

    Raises:
        UsageError: there is none, or two have one name.
    """
    names = [path.stem for path in recipes]
    if not names:
        raise UsageError("no recipe is given; give the paths of TOML files")
    if len(set(names)) < len(names):
        raise UsageError(f"recipes {', '.join(map(str, recipes))} share a name: rename one")
    return names
