"""Options and arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Manifest = Annotated[Path, typer.Argument(help="JSON Lines manifest.", show_default=False)]
CachePath = Annotated[
    str, typer.Argument(metavar="CACHE", help="Folder of the cache, or s3://bucket/prefix.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU where there is one.", show_default=False)]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes of this machine to share the work.", show_default=False)
]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a dask cluster to do the work, as tcp://HOST:8786.", show_default=False)
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
