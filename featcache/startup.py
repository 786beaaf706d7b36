"""What a command does before its work: most of it before it imports numpy, torch and models."""

from __future__ import annotations

import atexit
import gc
import os
from typing import TYPE_CHECKING

import featcache
from featcache.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from typer import Typer

# Python's own is 700 (2,000 since 3.13).
NEW_OBJECTS = 10_000


def sleep_while_waiting() -> None:
    """Let threads that wait spin for some microseconds, then sleep. It is read once, when numpy or torch are imported.

    Where another job wants the same cores, OpenMP's and OpenBLAS' threads take from each other what they spend on
    waiting: fitting the codec was 8 times slower, training a head 25 times. But to sleep at once takes longer than
    most of what an LSTM's threads wait for: two of them were three times slower than one
    (docs/decisions/0029-how-long-threads-spin.md). What the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # It has no such policy. Its systems of equations are small, and the codec's products are torch's.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def collect_rarely() -> None:
    """Look for garbage after so many new objects, and not at all at exit.

    torch and transformers make 800,000 objects that stay. To look through them took 0.6 s while they were imported
    and 1.1 s at exit, where all memory goes anyway.
    """
    gc.set_threshold(NEW_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)


def check_trace(path: Path) -> None:
    """Make the folder of a trace, and refuse a path that no file can be written to, before work is lost for it.

    Raises:
        UsageError: it is such a path.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        there = path.exists()
        with path.open("ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise UsageError(
            f"--profile-trace {path}: no file can be written there ({error.strerror}): give another path"
        ) from error


def offer_version(app: Typer) -> None:
    """Give a command line the option `--version`."""
    import typer

    def tell(asked: bool) -> None:
        if asked:
            print(f"speech-featcache {featcache.__version__}")
            raise typer.Exit

    @app.callback()
    def options(
        version: bool = typer.Option(False, "--version", callback=tell, is_eager=True, help="Print the version."),
    ) -> None:
        pass
