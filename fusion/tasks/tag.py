"""One class a frame: voice activity, aligned characters, or any other labels that have a start and an end."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.errors import UsageError
from fusion.classification import macro_f1
from fusion.intervals import Statistic
from fusion.labels import Unusable
from fusion.recipe import TaskRecipe
from fusion.tasks.base import Measure, Prediction, Row, Task, ratio_of

BACKGROUND = "<none>"
"""The class of frames that no span covers."""
_UNKNOWN = -1


class Span(NamedTuple):
    """A stretch of one class; times in seconds from the utterance's start."""

    name: str
    start: float
    end: float


def read_spans(label: str) -> list[Span]:
    """Spans from JSON text, a list of [name, start, end], in order of time.

    Raises:
        Unusable: it is something else, or two spans overlap.
    """
    try:
        spans = [Span(str(name), float(start), float(end)) for name, start, end in json.loads(label)]
    except (TypeError, ValueError, RecursionError) as error:
        raise Unusable("the label is not a list of [name, start, end]") from error
    spans.sort(key=lambda span: (span.start, span.end))
    if not all(0 <= span.start <= span.end for span in spans):
        raise Unusable("a span ends before it starts")
    if any(a.end > b.start + 1e-6 for a, b in itertools.pairwise(spans)):
        raise Unusable("two spans overlap")
    return spans


def write_spans(spans: Sequence[Span]) -> str:
    return json.dumps([[span.name, round(span.start, 4), round(span.end, 4)] for span in spans], ensure_ascii=False)


def _macro_f1(rows: Sequence[Row]) -> Statistic:
    classes = sorted({name for row in rows for name in row["counts"]})
    counts = np.array([[row["counts"].get(name, (0, 0, 0)) for name in classes] for row in rows], dtype=np.float64)
    return macro_f1(counts[..., 0], counts[..., 1], counts[..., 2])


class TagTask(Task):
    """Classification of every frame with cross entropy.

    A label is JSON text, a list of [name, start, end] in seconds, as `fusion align` writes them. A frame of
    logits has the class of the span that covers its middle, or BACKGROUND. A class that train lacks cannot be
    predicted; its frames count as errors.
    """

    kind: ClassVar[str] = "tag"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("frame_accuracy", "frame accuracy", ratio_of("correct", "frames"), higher_is_better=True),
        Measure("macro_f1", "macro F1", _macro_f1, higher_is_better=True),
    )
    chosen_by: ClassVar[str] = "frame_accuracy"
    per_frame: ClassVar[bool] = True
    timed: ClassVar[bool] = True

    def __init__(self, classes: Sequence[str], frame_rate: float) -> None:
        self.classes = tuple(classes)
        self.frame_rate = frame_rate
        self._ids = {name: i for i, name in enumerate(self.classes)}

    @classmethod
    def fit(cls, recipe: TaskRecipe, labels: Sequence[str], frame_rate: float) -> TagTask:
        names: set[str] = set()
        reasons: list[str] = []
        for label in labels:
            try:
                names |= {span.name for span in read_spans(label)}
            except Unusable as reason:
                reasons.append(str(reason))
        if not names - {BACKGROUND}:
            why = reasons[0] if reasons else "no row has a span"
            raise UsageError(f"key task.label: {recipe.label!r} has no usable spans in train ({why})")
        return cls([BACKGROUND, *sorted(names - {BACKGROUND})], frame_rate)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> TagTask:
        return cls(value["classes"], value["frame_rate"])

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "classes": list(self.classes), "frame_rate": self.frame_rate}

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def reference(self, label: str) -> str:
        return write_spans(read_spans(label))

    def target(self, reference: str, frames: int) -> Sequence[int]:
        """The class's number of every frame of logits; -1 for a class that train lacks."""
        return [self._ids.get(name, _UNKNOWN) for name in self._names(read_spans(reference), frames)]

    def check(self, target: Sequence[int], frames: int) -> None:
        """Every frame has a target, so any number of them will do."""

    def loss(self, logits: Tensor, lengths: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
        """Cross entropy in nats, the mean over all frames of a known class in the batch."""
        wanted = torch.full(logits.shape[:2], _UNKNOWN, dtype=torch.int64)
        for row, target in zip(wanted, targets, strict=True):
            row[: len(target)] = torch.tensor(target, dtype=torch.int64)
        total = functional.cross_entropy(
            logits.float().flatten(0, 1), wanted.flatten().to(logits.device), ignore_index=_UNKNOWN, reduction="sum"
        )
        return total / max(int((wanted != _UNKNOWN).sum()), 1)

    def predict(self, logits: Tensor, lengths: Tensor) -> list[Prediction]:
        """The class's number of every frame."""
        best = logits.argmax(-1).cpu()
        return [row[:length].tolist() for row, length in zip(best, lengths.tolist(), strict=True)]

    def text(self, prediction: Prediction) -> str:
        """The spans of all classes but BACKGROUND, as JSON text."""
        spans, frame = [], 0
        for name, run in itertools.groupby(self.classes[i] for i in prediction):
            start, frame = frame, frame + len(list(run))
            if name != BACKGROUND:
                spans.append(Span(name, start / self.frame_rate, frame / self.frame_rate))
        return write_spans(spans)

    def table(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[Prediction]
    ) -> list[dict[str, Any]]:
        """`counts` has for each class that occurs: frames that are right, that have it, and that were given it."""
        rows = []
        for id_, reference, prediction in zip(ids, references, predictions, strict=True):
            wanted = np.array(self._names(read_spans(reference), len(prediction)), dtype=object)
            found = np.array([self.classes[i] for i in prediction], dtype=object)
            right = wanted == found
            names = sorted({*wanted, *found})
            counts = {
                name: [int((right & (wanted == name)).sum()), int((wanted == name).sum()), int((found == name).sum())]
                for name in names
            }
            rows.append(
                {
                    "id": id_,
                    "reference": reference,
                    "hypothesis": self.text(prediction),
                    "frames": len(prediction),
                    "correct": int(right.sum()),
                    "counts": counts,
                }
            )
        return rows

    def facts(self, rows: Sequence[Row]) -> dict[str, Any]:
        return {"classes": list(self.classes), "frames": sum(row["frames"] for row in rows)}

    def _names(self, spans: Sequence[Span], frames: int) -> list[str]:
        """The class of every frame, by the middle of the frame."""
        names = [BACKGROUND] * frames
        middles = (np.arange(frames) + 0.5) / self.frame_rate
        for span in spans:
            first, stop = np.searchsorted(middles, [span.start, span.end])
            names[first:stop] = [span.name] * int(stop - first)
        return names
