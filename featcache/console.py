"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH = 100_000
"""Columns of what is no terminal, more than a table has: `grep` does not find an id that was cut or folded."""


def table_console() -> Console:
    """Standard output; where it is no terminal, a row of a table is one line and nothing of it is left out.

    Prints text as it is: an id, a label or a text may look like Rich's markup, or like the name of an emoji.
    """
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False, emoji=False)
