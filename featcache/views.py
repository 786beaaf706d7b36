"""Views: augmented copies of recordings, as further rows of a manifest.

A row with the label `view` is not its recording but what `featcache.augment` makes of it; `view_of` is the id of
the row of the recording itself. The text of a view names steps, in their order, and nothing else:

    speed=0.9       played at 0.9 of its speed, so that pitch and tempo are lower and it lasts 1 / 0.9 as long
    noise=15        with pink noise, 15 dB below the speech
    reverb=0.4      in a room whose sound falls by 60 dB in 0.4 s
    speed=1.1,noise=20

There is one way to write a view, so that equal views are equal texts. Since the text is in the row's id and in the
cache's labels, it is the record of how a row was made: a rule of `featcache.augment` is never changed under its
name, a better one gets a name of its own. So views need no part in a cache's values id, and a cache without views
is what it always was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache.geometry import SAMPLE_RATE
from featcache.index import VIEW_OF, label_text

if TYPE_CHECKING:
    from featcache.manifest import Row

VIEW = "view"

LIMITS = {"speed": (0.5, 2.0), "noise": (-10.0, 60.0), "reverb": (0.05, 1.0)}
"""Least and largest values. Where windows of a long recording meet, each has heard one second that it does not keep:
a reverberation of up to that length is whole there."""


@dataclass(frozen=True)
class View:
    """Steps in their order, each a name of `LIMITS` and its value."""

    steps: tuple[tuple[str, float], ...]

    @property
    def speed(self) -> float:
        return dict(self.steps).get("speed", 1.0)

    @property
    def rate(self) -> int:
        """Hz at which the recording's 16,000 samples a second are taken to be."""
        return round(SAMPLE_RATE * self.speed)  # whole, as a speed has at most three decimals

    def source(self, samples: int) -> int:
        """Samples of the recording of which so many samples of the view are made: to the nearest."""
        return (2 * samples * self.rate + SAMPLE_RATE) // (2 * SAMPLE_RATE)


@lru_cache(maxsize=1024)
def parse(text: str) -> View:
    """The view that a text names.

    Raises:
        ValueError: it names none, with what to write; to be put behind the name of the place.
    """
    steps: dict[str, float] = {}
    for step in text.split(","):
        name, equals, number = step.partition("=")
        if name not in LIMITS or not equals:
            raise ValueError(f"holds {step!r}: write {', '.join(f'{known}=NUMBER' for known in LIMITS)}, joined by ,")
        if name in steps:
            raise ValueError(f"says {name} twice: keep one")
        low, high = LIMITS[name]
        try:
            value = float(number)
        except ValueError:
            value = low - 1
        if not low <= value <= high or (name, value) == ("speed", 1.0):
            but = " other than 1" if name == "speed" else ""
            raise ValueError(f"holds {step!r}: {name} takes a number from {low:g} to {high:g}{but}")
        written = f"{round(value, 3) + 0.0:g}"
        if number != written:
            raise ValueError(f"holds {step!r}: write {name}={written}, with at most three decimals")
        steps[name] = value
    return View(tuple(steps.items()))


def rows_with_views(rows: Sequence[Row], views: Iterable[str], where: Mapping[str, set[str]]) -> list[Row]:
    """The rows, and behind them the views of those with these labels, one view after the other.

    Rows that are views themselves, or whose recording could not be read, get none.

    Args:
        views: texts, each parsed already or not.
        where: accepted values by label (or `id`, `text`); all rows where it is empty.

    Raises:
        UsageError: a text names no view, or no row is chosen.
    """
    chosen = [row for row in rows if row.view_of is None and row.duration > 0 and _meets(row, where)]
    if not chosen:
        raise UsageError("no row that is not a view itself is chosen: `featcache manifest check` lists the labels")
    made = list(rows)
    for text in views:
        try:
            view = parse(text)
        except ValueError as error:
            raise UsageError(f"view {text!r} {error}") from None
        for row in chosen:
            changed = {
                "id": f"{row.id}@{text}",
                "duration": row.duration / view.speed,
                "labels": row.labels | {VIEW: text, VIEW_OF: row.id},
            }
            made.append(row.model_copy(update=changed))
    return made


def _meets(row: Row, where: Mapping[str, set[str]]) -> bool:
    values = {**row.labels, "id": row.id, "text": row.text}
    return all(label_text(values.get(label)) in accepted for label, accepted in where.items())
