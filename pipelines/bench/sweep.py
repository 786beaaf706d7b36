"""Many heads from one pass over a cache against the same heads one after the other.

Both ways are whole runs of `fusion.train`, with the look at dev and test that every run ends with, and they end in the
same weights. What sharing saves is reading and decoding, so it says little of heads whose arithmetic takes longer than
those, and much of small ones: both kinds are measured.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from featcache.console import table_console
from featcache.errors import UsageError
from featcache.store import Cache
from fusion import recipe as recipes
from fusion.recipe import Recipe
from fusion.train import fit, fit_together
from pipelines.bench.machine import stamp

RECIPES = Path(__file__).parents[1] / "recipes"
HFF, PROBES, SUMS = "HFF, searched rates", "a probe for each tap", "weighted sums, searched rates"
# What SUPERB does with a frozen model: hardly any arithmetic, on all taps.
_SUM = ('fuser.kind="weighted_sum"', "fuser.width=128")
quiet = Console(quiet=True)


def measure(cache: str, heads: int, steps: int, utterances: int, turns: int) -> dict[str, Any]:
    """`rows[]` with `name`, `heads`, `alone_s`, `together_s` and `speedup`, the median over turns of their ratio.

    Args:
        heads: of each kind; a probe reads one tap, so that there are as many of those as the cache has taps at most.
        steps: of every head, in one look at dev.
        utterances: of training, of dev and of test.

    Raises:
        UsageError: the cache has fewer taps than heads are wanted.
    """
    taps = Cache.open(cache).taps
    if heads > len(taps):
        raise UsageError(f"{cache} has {len(taps)} taps, one for each probe: give --heads {len(taps)}")
    given = {"cache": json.dumps(cache), "limit": utterances, "train.steps": steps, "train.eval_every": steps}
    shared = [f"{key}={value}" for key, value in given.items()]

    def head(recipe: str, *changes: str) -> Recipe:
        return recipes.read(RECIPES / recipe, [*shared, *changes])

    kinds = {
        HFF: [head("asr.toml", f'name="hff-{i}"', f"train.lr={1e-3 * 1.2**i}") for i in range(heads)],
        SUMS: [head("lang.toml", f'name="sum-{i}"', *_SUM, f"train.lr={5e-4 * 1.3**i}") for i in range(heads)],
        PROBES: [head("lang.toml", f'name="{tap}"', 'fuser.kind="tap"', f'fuser.tap="{tap}"') for tap in taps[:heads]],
    }
    return {
        "rows": [_compare(name, of, turns) for name, of in kinds.items()],
        "steps": steps,
        "cache": cache,
        **stamp(),
    }


def _compare(name: str, heads: list[Recipe], turns: int) -> dict[str, Any]:
    def alone(runs: str) -> None:
        for recipe in heads:
            fit(recipe, runs=runs, console=quiet)

    def together(runs: str) -> None:
        fit_together(heads, runs=runs, console=quiet)

    with tempfile.TemporaryDirectory() as runs:
        fit(heads[0], runs=runs, console=quiet)  # the first run of a process loads what the others find loaded
    found = [(_seconds(alone), _seconds(together)) for _ in range(turns)]
    return {
        "name": name,
        "heads": len(heads),
        "alone_s": round(statistics.median(one for one, _ in found), 2),
        "together_s": round(statistics.median(both for _, both in found), 2),
        "speedup": round(statistics.median(one / both for one, both in found), 2),
    }


def _seconds(train: Callable[[str], None]) -> float:
    with tempfile.TemporaryDirectory() as runs:
        began = time.perf_counter()
        train(runs)
        return time.perf_counter() - began


def print_table(result: dict[str, Any]) -> None:
    """The result for people, on standard output."""
    table = Table(box=None)
    for column in ("heads", "of them", "one by one", "together", "ratio"):
        table.add_column(column, justify="left" if column == "heads" else "right")
    for row in result["rows"]:
        times = (f"{row[key]:.1f} s" for key in ("alone_s", "together_s"))
        table.add_row(row["name"], str(row["heads"]), *times, f"{row['speedup']:.2f}")
    table_console().print(table)
