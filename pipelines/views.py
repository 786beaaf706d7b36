"""What augmented copies of the audio buy: the same recipe with masking, with views, with both and with neither.

The cache holds views of its training speech (`featcache manifest views`); every arm sees as many utterances.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from featcache.console import table_console
from featcache.errors import UsageError
from fusion import intervals
from fusion.tasks import Measure
from pipelines import studies
from pipelines.studies import Score

SHARE = 0.5
MASKS = ("mask_time", "mask_channels", "mask_taps")
REFERENCE = "masking"


@dataclass(frozen=True)
class Arm:
    """One way to train; `scores` are keyed by the task's measures, with the difference from masking alone."""

    name: str
    measures: tuple[Measure, ...]
    scores: Mapping[str, Score]

    @property
    def title(self) -> str:
        return self.name

    @property
    def marked(self) -> bool:
        return self.name == REFERENCE

    def as_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {"name": self.name}
        for name, score in self.scores.items():
            values |= score.as_json(name)
        return values


def compare(
    cache: Path,
    recipe: Path,
    *,
    seeds: Sequence[int],
    share: float = SHARE,
    steps: int = 0,
    runs: Path = Path("runs"),
    overrides: Sequence[str] = (),
    console: Console,
) -> list[Arm]:
    """Train what is absent of the four arms, and score them on test.

    Args:
        share: how often a view is drawn where there is one (`train.views`).

    Raises:
        UsageError: the recipe masks nothing, or the cache holds no views of its training speech.
    """
    settings = studies.read(recipe, "none", cache, seeds[0], overrides, steps).train
    if not any(getattr(settings, name) for name in MASKS):
        raise UsageError(f"{recipe} masks nothing: views are compared with masking; set train.mask_time for example")
    bare = [f"train.{name}=0" for name in MASKS]
    alone, drawn = ["train.views=0"], [f"train.views={share}"]
    arms = {"neither": [*bare, *alone], REFERENCE: alone, "views": [*bare, *drawn], "both": drawn}
    tables: dict[str, list[studies.Table]] = {}
    measures: tuple[Measure, ...] = ()
    for arm, changes in arms.items():
        name = f"views/{recipe.stem}-{arm}"
        wanted = [studies.read(recipe, f"{name}-seed{s}", cache, s, [*overrides, *changes], steps) for s in seeds]
        done = studies.train(wanted, runs=runs, console=console)
        tables[arm], measures = [run.table for run in done], done[0].measures
    return [
        Arm(arm, measures, {m.name: studies.score(m, found, tables[REFERENCE]) for m in measures})
        for arm, found in tables.items()
    ]


def print_table(arms: Sequence[Arm]) -> None:
    """One table a measure: each arm, and its difference from masking alone."""
    console = table_console()
    for measure in arms[0].measures:
        table = Table("training with", measure.title, "95 %", f"- {REFERENCE}", "95 %", box=box.SIMPLE_HEAD)
        for arm in arms:
            score, gap = arm.scores[measure.name], arm.scores[measure.name].difference
            cells = ("", "") if gap is None else (f"{gap[0]:+.4f}", f"{gap[1]:+.4f}, {gap[2]:+.4f}")
            table.add_row(arm.title, intervals.figure(score.value, ".4f"), intervals.span(score.ci95, ".4f"), *cells)
        console.print(table)
    console.print(
        "Means over seeds on test, intervals over utterances; differences are paired on the same utterances.",
        highlight=False,
    )
