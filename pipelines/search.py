"""The search that every rival gets: the same small grid, judged on dev by the score that chooses checkpoints.

A run of the search has no test split: its recipe names one that no row has, so that test is not read.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console

from featcache.errors import UsageError
from fusion import tasks
from fusion.recipe import Recipe
from fusion.tasks import Measure
from fusion.train import Diverged
from pipelines.studies import Finished, finished

Point = tuple[str, ...]
"""Recipe overrides, as in ("train.lr=0.001", "decoder.dropout=0.1")."""
GRID: Mapping[str, tuple[str, ...]] = {"train.lr": ("0.001", "0.002", "0.004"), "decoder.dropout": ("0.1", "0.3")}
NO_TEST = "(none while searching)"


def parse_grid(texts: Sequence[str], steps: int = 0) -> dict[str, tuple[str, ...]]:
    """`KEY=V,V` texts; GRID where there is none.

    Args:
        steps: of every run, as options say; 0 where they say nothing.

    Raises:
        UsageError: a text is of another form, or a key is not one that every rival has, or one that `steps` decides.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        found = tuple(part.strip() for part in values.split(",") if part.strip())
        if not equals or not found:
            raise UsageError(f"--grid {text!r} is not KEY=VALUE,VALUE; write for example --grid train.lr=1e-3,2e-3")
        if not key.startswith(("train.", "decoder.")):
            raise UsageError(f"--grid {key}: every rival is searched over the same keys, which are train. or decoder.")
        if key == "train.steps" and steps:
            raise UsageError("--grid train.steps has no effect beside --steps or --search-steps; leave one of them out")
        grid[key] = found
    return grid or dict(GRID)


def points(grid: Mapping[str, Sequence[str]]) -> list[Point]:
    """Every combination; an empty grid has one point, which changes nothing."""
    columns = [[f"{key}={value}" for value in values] for key, values in grid.items()]
    return [tuple(point) for point in itertools.product(*columns)]


def slug(point: Point) -> str:
    """A folder's name for a point: lr0.001-dropout0.1."""
    parts = []
    for override in point:
        key, _, value = override.partition("=")
        parts.append(key.rpartition(".")[2] + re.sub(r"[^\w.+-]", "_", value))
    return "-".join(parts) or "own"


def without_test(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"split": recipe.split.model_copy(update={"test": NO_TEST})})


def judge(recipe: Recipe) -> Measure:
    """The measure that chooses on dev: the one that chooses the recipe's best checkpoint."""
    task = tasks.of_kind(recipe.task.kind)
    name = recipe.train.metric or task.chosen_by
    return next(measure for measure in task.measures if measure.name == name)


def choose(
    candidates: Mapping[str, Recipe],
    train: Callable[[Sequence[Recipe]], Sequence[Finished]],
    console: Console,
) -> tuple[str, dict[str, float]]:
    """The key of the best candidate on dev, and the scores of all; the first of equals.

    A candidate whose training diverges is worse than all others, and its score is NaN.

    Args:
        candidates: recipes; they are trained without their test split.

    Raises:
        Diverged: all candidates diverge.
    """
    recipes = [without_test(recipe) for recipe in candidates.values()]
    measure = judge(recipes[0])
    try:
        found = {recipe.name: run for recipe, run in zip(recipes, train(recipes), strict=True)}
    except Diverged as error:
        if not error.finished:
            raise
        found = {name: finished(run.path) for name, run in error.finished.items()}
    scores = {
        key: found[recipe.name].on_dev(measure) if recipe.name in found else math.nan
        for key, recipe in zip(candidates, recipes, strict=True)
    }
    best = min(scores, key=lambda key: measure.cost(scores[key]))
    told = ", ".join(
        f"{key} {scores[key]:.4f}" if recipe.name in found else f"{key} diverged"
        for key, recipe in zip(candidates, recipes, strict=True)
    )
    console.print(f"dev {measure.title}: {told}; chosen {best}", highlight=False, soft_wrap=True, markup=False)
    return best, scores
