"""One class an utterance: language, speaker, voice, or any other column of the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.errors import UsageError
from fusion.classification import detection_scores, equal_error_rate, macro_f1, one_hot
from fusion.intervals import Statistic
from fusion.recipe import TaskRecipe
from fusion.tasks.base import Measure, Prediction, Row, Task, ratio_of

_MOST_NAMED = 3
MOST_CONFUSION = 50
"""Classes up to which the table of confusions is written out."""


_SIDES = ("reference", "hypothesis")


def _classes(rows: Sequence[Row]) -> list[str]:
    return sorted({row[side] for row in rows for side in _SIDES})


def _macro_f1(rows: Sequence[Row]) -> Statistic:
    references, hypotheses = (one_hot([row[side] for row in rows], _classes(rows)) for side in _SIDES)
    return macro_f1(references * hypotheses, references, hypotheses)


def _equal_error_rate(rows: Sequence[Row]) -> Statistic:
    classes = list(rows[0]["log_posteriors"])
    posteriors = np.array([[row["log_posteriors"][name] for name in classes] for row in rows], dtype=np.float64)
    targets = one_hot([row["reference"] for row in rows], classes) > 0
    return equal_error_rate(detection_scores(posteriors), targets)


class ClassifyTask(Task):
    """Classification of utterances with cross entropy.

    An utterance's logits are the mean of its frames' logits. A decoder that pools over time gives one frame;
    any other decoder votes frame by frame.

    A class of dev or test that train lacks cannot be predicted; its utterances count as errors.
    """

    kind: ClassVar[str] = "classify"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("accuracy", "accuracy", ratio_of("correct"), higher_is_better=True),
        Measure("macro_f1", "macro F1", _macro_f1, higher_is_better=True),
        Measure("eer", "EER", _equal_error_rate),
    )
    chosen_by: ClassVar[str] = "accuracy"
    per_frame: ClassVar[bool] = False

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self._ids = {name: i for i, name in enumerate(self.classes)}

    @classmethod
    def fit(cls, recipe: TaskRecipe, labels: Sequence[str], frame_rate: float) -> ClassifyTask:
        classes = sorted(set(labels))
        if len(classes) < 2:
            only = f" ({classes[0]!r})" if classes else ""
            raise UsageError(
                f"key task.label: {recipe.label!r} has {len(classes)} value{only} in train, which leaves nothing to "
                "tell apart; use another label or task.where"
            )
        return cls(classes)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ClassifyTask:
        return cls(value["classes"])

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "classes": list(self.classes)}

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def reference(self, label: str) -> str:
        return label

    def target(self, reference: str, frames: int) -> Sequence[int]:
        """The class's number; none for a class that train lacks."""
        return (self._ids[reference],) if reference in self._ids else ()

    def check(self, target: Sequence[int], frames: int) -> None:
        """One frame of logits is enough, and every row that is in the cache has it."""

    def check_split(self, name: str, references: Sequence[str], targets: Sequence[Sequence[int]]) -> None:
        if not any(targets):
            there = ", ".join(map(repr, sorted(set(references))[:_MOST_NAMED]))
            known = ", ".join(map(repr, self.classes[:_MOST_NAMED]))
            raise UsageError(
                f"key task.label: no class of {name} ({there}, ...) is one of train ({known}, ...), so nothing that is "
                "learned can be right; split by utterance, or use another label"
            )

    def loss(self, logits: Tensor, lengths: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
        """Cross entropy in nats, the mean over utterances of a known class."""
        known = [i for i, target in enumerate(targets) if target]
        wanted = torch.tensor([targets[i][0] for i in known], dtype=torch.int64, device=logits.device)
        total = functional.cross_entropy(self._pooled(logits, lengths)[known], wanted, reduction="sum")
        return total / max(len(known), 1)

    def predict(self, logits: Tensor, lengths: Tensor) -> list[Prediction]:
        """Log posteriors of the classes, rounded to what a table can show."""
        scores = self._pooled(logits, lengths).double().log_softmax(-1).cpu()
        return [[round(value, 5) for value in row] for row in scores.tolist()]

    def text(self, prediction: Prediction) -> str:
        return self.classes[int(np.argmax(prediction))]

    def table(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[Prediction]
    ) -> list[dict[str, Any]]:
        """`correct` is 1 or 0; `log_posteriors` has every class."""
        rows = []
        for id_, reference, prediction in zip(ids, references, predictions, strict=True):
            hypothesis = self.text(prediction)
            rows.append(
                {
                    "id": id_,
                    "reference": reference,
                    "hypothesis": hypothesis,
                    "correct": int(hypothesis == reference),
                    "log_posteriors": dict(zip(self.classes, prediction, strict=True)),
                }
            )
        return rows

    def facts(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The classes, and the table of confusions (references down, hypotheses across) where it is not large."""
        classes = _classes(rows)
        unseen = sum(row["reference"] not in self._ids for row in rows)
        found: dict[str, Any] = {"classes": list(self.classes), "of_unseen_classes": unseen}
        if len(classes) <= MOST_CONFUSION:
            references, hypotheses = (one_hot([row[side] for row in rows], classes) for side in _SIDES)
            counts = (references.T @ hypotheses).astype(int).tolist()
            found["confusion"] = {
                name: dict(zip(classes, row, strict=True)) for name, row in zip(classes, counts, strict=True)
            }
        return found

    def _pooled(self, logits: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, outputs) -> float32 (batch, outputs), the mean over the valid frames."""
        valid = torch.arange(logits.shape[1], device=logits.device) < lengths.to(logits.device).unsqueeze(1)
        total = logits.float().masked_fill(~valid.unsqueeze(-1), 0.0).sum(1)
        return total / valid.sum(1, keepdim=True).clamp(min=1)
