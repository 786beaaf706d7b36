"""`fusion sweep`: many heads from one pass over the cache."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fusion.cli_options import AsJson, Limit, Overrides, Restart, Runs


def sweep(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE...", help="TOML files, one a head.", show_default=False)
    ],
    set_: Overrides = None,
    restart: Restart = False,
    limit: Limit = 0,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train a head a recipe, all from the same batches, and show them side by side.

    Recipes with the same cache, training rows, train.batch_seconds and seed share one pass over the cache; each
    head ends in the same weights as if `fusion train` had trained it alone, and its run goes on where it stood.
    """
    from fusion import comparison
    from fusion import recipe as recipes_
    from fusion.train import fit_together

    wanted = [recipes_.read(path, set_ or ()) for path in recipes]
    if limit:
        wanted = [recipe.limited(limit) for recipe in wanted]
    done = fit_together(wanted, runs=runs, mode="restart" if restart else "auto")
    if os.environ.get("RANK", "0") != "0":
        return
    rows = [{"run": str(run.path), **run.metrics()} for run in done]
    if as_json:
        print(json.dumps(rows, ensure_ascii=False))
        return
    for task in dict.fromkeys(row["task"] for row in rows):
        Console().print(*comparison.tables([row for row in rows if row["task"] == task]))
