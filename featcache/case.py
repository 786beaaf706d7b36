"""Does a folder's file system tell names apart that differ only in case? Many of macOS and Windows do not."""

from __future__ import annotations

import tempfile
from pathlib import Path


def ignores_case(folder: Path) -> bool:
    """Whether `a` and `A` are one file in a folder that is there."""
    with tempfile.NamedTemporaryFile(prefix=".case-", suffix="-x", dir=folder) as file:
        made = Path(file.name)
        return made.with_name(made.name.upper()).exists()
