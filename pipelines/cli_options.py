"""Options that several commands share, and how their lists are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featcache.errors import UsageError
from fusion.console import plain_console

messages = plain_console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Seeds = Annotated[str, typer.Option(help="Seeds, comma separated.")]
Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Recipe override for every run, as in train.steps=100.")
]
Steps = Annotated[int, typer.Option(min=0, help="Steps of every run; 0 is what the recipe says.")]
Only = Annotated[str, typer.Option(help="Names of rows to train, comma separated; all if empty.")]
Restart = Annotated[bool, typer.Option("--restart", help="Train again what is there.")]
UpstreamCache = Annotated[Path, typer.Option("--cache", help="The upstream's cache.")]
MelCache = Annotated[Path, typer.Option(help="The log-mel cache; made where it is absent.")]
Manifest = Annotated[Path, typer.Option(help="The manifest of the cache's speech.")]
DEMO_CACHE, DEMO_MEL = Path("caches/demo"), Path("caches/demo-mel")
DEMO_MANIFEST = Path("data/demo/manifest.jsonl")


def split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def seed_list(text: str) -> list[int]:
    """Whole numbers, comma separated.

    Raises:
        UsageError: there is none, one twice, or something else.
    """
    try:
        seeds = [int(part) for part in split_list(text)]
    except ValueError:
        raise UsageError(f"seeds {text!r} are not whole numbers separated by commas") from None
    if not seeds:
        raise UsageError("no seed given: use --seeds 1 or --seeds 1,2,3")
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds {text!r} have one twice, which would count one run as two; give each once")
    return seeds
