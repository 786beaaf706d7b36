"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFolder = Annotated[Path, typer.Argument(help="The folder of a run, such as runs/hff.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
