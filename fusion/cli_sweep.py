"""`fusion sweep`: many heads from one pass over the cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusion.cli_options import AsJson, DryRun, Limit, Overrides, Restart, Runs
from fusion.console import plain_console

if TYPE_CHECKING:
    from fusion.run import Run
    from fusion.train import Outlook


def sweep(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="TOML files, one a head.", show_default=False)
    ],
    set_: Overrides = None,
    restart: Restart = False,
    limit: Limit = 0,
    runs: Runs = Path("runs"),
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train a head a recipe, all from the same batches, and show them side by side.

    Recipes with the same cache, training rows, train.batch_seconds and seed share one pass over the cache; each
    head ends in the same weights as by `fusion train` alone with the same train.threads, and its run goes on where
    it stood. A head whose loss is no number fails alone: the others are finished and shown.
    """
    from fusion import recipe as recipes_
    from fusion.train import Diverged, fit_together, outlook

    wanted = [recipes_.read(path, set_ or ()) for path in recipes]
    if limit:
        wanted = [recipe.limited(limit) for recipe in wanted]
    mode = "restart" if restart else "auto"
    if dry_run:
        _print_outlook(outlook(wanted, runs=runs, mode=mode), as_json)
        return
    try:
        _print_runs(fit_together(wanted, runs=runs, mode=mode), as_json)
    except Diverged as error:
        _print_runs(error.finished.values(), as_json)
        raise


def _print_runs(done: Iterable[Run], as_json: bool) -> None:
    from fusion import checkpoint, comparison

    if os.environ.get("RANK", "0") != "0":
        return
    rows = [{"run": str(run.path), **run.metrics()} for run in done]
    if as_json:
        print(json.dumps(checkpoint.defined(rows), ensure_ascii=False))
        return
    for task in dict.fromkeys(row["task"] for row in rows):
        plain_console().print(*comparison.tables([row for row in rows if row["task"] == task]))


def _print_outlook(found: Outlook, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(found), ensure_ascii=False, default=str))
        return
    for number, together in enumerate(found.passes, 1):
        what = "1 run" if len(together) == 1 else f"{len(together)} runs from the same batches"
        print(f"pass {number}: {what}")
        for run in together:
            how = f"from step {run.step} on" if run.step else "replacing what is there" if run.replaces else "new"
            print(f"  would write {run.path}, {run.steps} steps, {how}")
    for path in found.finished:
        print(f"finished already: {path}")
