"""The command `pipelines reproduce`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    scale: Annotated[str, typer.Option(help="smoke, overnight or full (a GPU).")] = "smoke",
    model: Annotated[str, typer.Option(help="Id of the model, as featcache takes it.")] = "package:whisper-base",
    data: Annotated[Path, typer.Option(help="Manifest of the speech.")] = Path("data/demo/manifest.jsonl"),
    cache: Annotated[
        Path | None,
        typer.Option(help="Cache of the two, made where it is absent. Default: the demo's, or below caches/reproduce."),
    ] = None,
    only: Annotated[str, typer.Option(help="Names of rows to train, comma separated; all if empty.")] = "",
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe that every row is made from; reproduce.toml if not given.")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of the runs.")] = Path("runs"),
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Recipe override for every row, as in train.steps=100.")
    ] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Train again what is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train the paper's table and answer its claims; finished rows are kept, and a row goes on where it stopped."""
    from fusion.console import plain_console
    from pipelines.reproduce import claims, report, table
    from pipelines.reproduce.entries import BASE_RECIPE

    result = table.reproduce(
        scale,
        model,
        data,
        cache,
        only=[name.strip() for name in only.split(",") if name.strip()],
        base=recipe or BASE_RECIPE,
        runs=runs,
        overrides=overrides or [],
        restart=restart,
        console=plain_console(stderr=True),
    )
    answers = claims.answer({row.name: row for row in result.rows}, judges=result.scale.judges)
    if as_json:
        print(json.dumps(report.as_json(result, answers), indent=2, ensure_ascii=False))
    else:
        report.print_table(result, answers)
