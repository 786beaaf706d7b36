"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(help="The folder of a run, such as runs/hff.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Restart = Annotated[bool, typer.Option("--restart", help="Throw away the run that is there.")]
Limit = Annotated[
    int,
    typer.Option(
        min=0, help="Try on this many utterances of each split, spread over it, for 50 steps at most; 0 is all."
    ),
]
Runs = Annotated[Path, typer.Option(help="The folder of all runs.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key of the recipe, or of all: train.steps=100."),
]
