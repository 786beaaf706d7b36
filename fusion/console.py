"""Where tables and messages are printed."""

from __future__ import annotations

from rich.console import Console


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: a label may look like Rich's markup, or like the name of an emoji."""
    return Console(stderr=stderr, markup=False, emoji=False)
