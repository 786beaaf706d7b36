"""What every task is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import Tensor

from fusion import intervals
from fusion.intervals import Statistic
from fusion.recipe import TaskRecipe

Row = Mapping[str, Any]
"""One utterance of the per-utterance table: JSON-able, with `id`, `reference` and `hypothesis`."""
Prediction = Any
"""What a task reads off the logits of one utterance: JSON-able, and the task's own."""


@dataclass(frozen=True)
class Measure:
    """A figure of merit, computed from the per-utterance table alone."""

    name: str
    title: str
    """As a table names it."""
    statistic: Callable[[Sequence[Row]], Statistic]
    higher_is_better: bool = False

    def cost(self, value: float) -> float:
        """The value with a sign that makes less better; where it is undefined nothing is worse."""
        if math.isnan(value):
            return math.inf
        return -value if self.higher_is_better else value


def ratio_of(numerator: str, denominator: str | None = None) -> Callable[[Sequence[Row]], Statistic]:
    """A statistic of two columns of the table: the ratio of their sums; without the second, the mean."""

    def statistic(rows: Sequence[Row]) -> Statistic:
        units = [1.0 if denominator is None else row[denominator] for row in rows]
        return intervals.ratio([row[numerator] for row in rows], units)

    return statistic


class Task(ABC):
    """One thing to learn from labels.

    A label is text, as a column of a cache or a labels file holds it. A reference is the label in the form
    that is kept in the table; a target is what the loss sees of it; a prediction is what is read off logits.
    """

    kind: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]
    chosen_by: ClassVar[str]
    """The measure that chooses the best checkpoint where a recipe does not say."""
    per_frame: ClassVar[bool]
    """Whether it needs logits in time, so that a decoder which pools over it will not do."""
    timed: ClassVar[bool] = False
    """Whether its labels hold times, so that they are not those of the same speech at another speed."""

    @classmethod
    @abstractmethod
    def fit(cls, recipe: TaskRecipe, labels: Sequence[str], frame_rate: float) -> Self:
        """The task of a recipe, fitted to the labels of train; `frame_rate` is logits a second."""

    @classmethod
    @abstractmethod
    def from_json(cls, value: dict[str, Any]) -> Self:
        """What `describe` described."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able, with `kind`; all that it takes to read the head's output."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Width of the logits."""

    @abstractmethod
    def reference(self, label: str) -> str:
        """A label as the table holds it. Raises `Unusable` with the reason."""

    @abstractmethod
    def target(self, reference: str, frames: int) -> Sequence[int]:
        """What the loss sees of a reference, over this many frames of logits."""

    @abstractmethod
    def check(self, target: Sequence[int], frames: int) -> None:
        """Raises `Unusable` where this many frames of logits cannot be trained towards the target."""

    def check_split(self, name: str, references: Sequence[str], targets: Sequence[Sequence[int]]) -> None:  # noqa: B027
        """Nothing, where a task can score any rows.

        Args:
            name: dev or test, of which these are all rows, at least one.

        Raises:
            UsageError: they say nothing of what is learned from train.
        """

    @abstractmethod
    def loss(self, logits: Tensor, lengths: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
        """Scalar from logits (batch, frames, outputs), any float dtype, and lengths int64 (batch,)."""

    @abstractmethod
    def predict(self, logits: Tensor, lengths: Tensor) -> list[Prediction]:
        """One prediction a row of the batch."""

    @abstractmethod
    def text(self, prediction: Prediction) -> str:
        """A prediction for reading eyes."""

    @abstractmethod
    def table(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[Prediction]
    ) -> list[dict[str, Any]]:
        """The per-utterance table."""

    def facts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What else is worth saying of a table beside the measures; JSON-able."""
        return {}

    def measure(self, references: Sequence[str], predictions: Sequence[Prediction]) -> dict[str, float]:
        """The values of `measures`; this runs at every look at dev."""
        rows = self.table(references, references, predictions)
        return {m.name: intervals.value(m.statistic(rows), len(rows)) for m in self.measures}

    def report(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[Prediction]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """All measures with intervals (`NAME_ci95`), facts, and the table: this runs once, on test."""
        rows = self.table(ids, references, predictions)
        found: dict[str, Any] = {}
        for measure in self.measures:
            statistic = measure.statistic(rows)
            found[measure.name] = intervals.value(statistic, len(rows))
            found[f"{measure.name}_ci95"] = list(intervals.interval(statistic, len(rows)))
        return found | {"utterances": len(rows), "resamples": intervals.RESAMPLES} | self.facts(rows), rows
