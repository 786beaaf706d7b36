"""Where tables are printed."""

from __future__ import annotations

import sys

from rich.console import Console

WIDTH = 140


def table_console() -> Console:
    """Standard output; wide where it is no terminal, since tables in files need not be wrapped.

    Prints text as it is: an id, a label or a text may look like Rich's markup, or like the name of an emoji.
    """
    return Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False, markup=False, emoji=False)
