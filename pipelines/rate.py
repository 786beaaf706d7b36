"""What a rate costs a task: the same recipes trained from one cache in several profiles.

Every other profile is recoded from the reference cache, so that nothing but the codec differs. With `frozen`
nothing is trained from the others: the heads of the reference read them, on dev. That has none of the noise of
training, and tells one codec from another where a training run cannot.

A measure's loss is its paired difference from the reference, seeds pooled (the mean over seeds of the measure, on
the same resampled utterances for both), as a share of the reference's value, with a sign that makes more worse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from featcache import inspect
from featcache.console import table_console
from featcache.errors import JobError, UsageError
from featcache.geometry import PCM_RATE
from featcache.progress import AudioProgress
from featcache.recode import recode
from featcache.store import Cache
from fusion import intervals
from fusion.console import plain_console
from fusion.run import Run
from fusion.tasks import Measure
from pipelines import studies
from pipelines.studies import Table as Rows
from pipelines.studies import pooled, unique_stems

PROFILES = tuple(f"residual:{bits}" for bits in (2.0, 1.5, 1.0, 0.75, 0.5, 0.35, 0.25))


@dataclass(frozen=True)
class Cell:
    """One measure of one task at one rate."""

    value: float
    by_seed: tuple[float, ...]
    loss: tuple[float, float, float] | None
    """(value, low, high), a share of the reference's value; above zero is worse. None for the reference."""


@dataclass(frozen=True)
class Point:
    """One profile. `measures` are keyed `RECIPE MEASURE`, as in `asr wer`."""

    profile: str
    bits_per_value: float
    bytes: int
    audio_ratio: float
    """Bytes by those of the speech as 16-bit PCM at 16 kHz."""
    measures: Mapping[str, Cell]

    def as_json(self) -> dict[str, Any]:
        cells = {name: vars(cell) for name, cell in self.measures.items()}
        return {**vars(self), "measures": cells}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Point:
        """What `as_json` made."""
        return cls(**{**value, "measures": {name: Cell(**cell) for name, cell in value["measures"].items()}})


def sweep(
    reference: Path,
    profiles: Sequence[str],
    recipes: Sequence[Path],
    *,
    seeds: Sequence[int],
    caches: Path,
    runs: Path = Path("runs"),
    overrides: Sequence[str] = (),
    frozen: bool = False,
    console: Console | None = None,
) -> list[Point]:
    """Recode, train and measure; what is there already is kept.

    Args:
        reference: the cache that the others are recoded from and compared with.
        profiles: as `featcache recode --profile` takes them.
        caches: folder of the recoded caches.
        frozen: measure the heads of the reference on the dev split of every cache.

    Raises:
        UsageError: no profile, recipe or seed, or two recipes of one name.
    """
    console = console or plain_console(stderr=True)
    if not (profiles and recipes and seeds):
        raise UsageError("give at least one profile, one recipe and one seed")
    unique_stems(recipes)
    places = {Cache.open(str(reference)).spec.profile_text: reference}
    for profile in profiles:
        places[profile] = recoded(reference, profile, caches)
    points: list[Point] = []
    base: dict[str, list[Rows]] = {}
    for profile, cache in places.items():
        cells: dict[str, Cell] = {}
        for path in recipes:
            console.print(f"{path.stem} from {profile}", highlight=False)
            trained_on = (_folder(points[0].profile), reference) if frozen and points else (_folder(profile), cache)
            name = f"rate/{path.stem}-{trained_on[0]}"
            wanted = [studies.read(path, f"{name}-seed{seed}", trained_on[1], seed, overrides) for seed in seeds]
            done = studies.train(wanted, runs=runs, console=console)
            tables = [on_dev(run.path, cache) if frozen else run.table for run in done]
            ids = list(base.setdefault(path.stem, tables)[0])
            for measure in done[0].measures:
                cells[f"{path.stem} {measure.name}"] = cell_of(measure, ids, tables, base[path.stem])
        card = inspect.info(Cache.open(str(cache)))
        pcm = card["hours"] * 3600 * PCM_RATE
        points.append(Point(profile, card["bits_per_value"], card["bytes"], card["bytes"] / pcm, cells))
    return points


def recoded(reference: Path, profile: str, caches: Path) -> Path:
    """The cache of this profile, made where it is absent."""
    target = caches / _folder(profile)
    with AudioProgress(f"recoding to {profile}", float(Cache.open(str(reference)).seconds.sum())) as progress:
        recode(str(reference), str(target), profile, progress.advance)
    return target


def on_dev(run: Path, cache: Path) -> Rows:
    """What a trained head makes of the dev split of another encoding of its features, by id."""
    return {str(row["id"]): row for row in Run.open(run).evaluate("dev", str(cache)).rows}


def cell_of(measure: Measure, ids: Sequence[str], tables: Sequence[Rows], reference: Sequence[Rows]) -> Cell:
    """A measure of runs (one a seed), and what it lost against the reference's runs."""
    for table in [*tables, *reference]:
        if set(table) != set(ids):
            raise JobError("runs were tested on different utterances: remove runs/rate and run this again")
    here, there = pooled(measure, ids, tables), pooled(measure, ids, reference)
    value, base = intervals.value(here, len(ids)), intervals.value(there, len(ids))
    by_seed = tuple(intervals.value(pooled(measure, ids, [table]), len(ids)) for table in tables)
    if tables is reference or base == 0:
        return Cell(value, by_seed, None)
    found = intervals.difference(here, there, len(ids))
    ends = sorted(measure.cost(end) / base for end in (found.low, found.high))
    return Cell(value, by_seed, (measure.cost(found.diff) / base, ends[0], ends[1]))


def print_table(points: Sequence[Point]) -> None:
    """One line a profile: its size, each measure, and what was lost."""
    measures = list(points[0].measures)
    table = Table()
    table.add_column("profile")
    for column in ("bits per value", "x PCM", *(c for name in measures for c in (name, "loss, %"))):
        table.add_column(column, justify="right")
    for point in points:
        cells = [point.profile, f"{point.bits_per_value:.2f}", f"{point.audio_ratio:.2f}"]
        for name in measures:
            cell = point.measures[name]
            loss = "" if cell.loss is None else "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in cell.loss))
            cells += [f"{cell.value:.4f}", loss]
        table.add_row(*cells)
    console = table_console()
    console.print(table)
    console.print(
        f"Values are means over seeds. loss: paired difference from {points[0].profile} as a share of its value, "
        "with its 95 % interval over utterances, seeds pooled; above zero is worse.",
        highlight=False,
    )


def _folder(profile: str) -> str:
    return re.sub(r"[^\w.]+", "-", profile)
