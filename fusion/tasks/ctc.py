"""What is learned: one class a task, all behind one protocol.

A task turns a label into a reference (what predictions are compared with) and a target (what the loss
sees), says which rows it can learn from, and scores predictions. It owns what must be kept with the head to
read its output (for CTC the tokeniser and the text normalisation) and writes it into `head.json`.
A new task is a class here and a line in `TASKS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.errors import UsageError
from fusion import evaluate, text
from fusion.labels import Unusable
from fusion.recipe import TaskRecipe


class Task(Protocol):
    kind: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]
    """Measures of which less is better; the first one chooses the best checkpoint."""

    @classmethod
    def fit(cls, recipe: TaskRecipe, labels: Sequence[str]) -> Task:
        """The task of a recipe, fitted to the labels of train."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Task:
        """What `describe` described."""

    def describe(self) -> dict[str, Any]:
        """JSON-able, with `kind`; all that it takes to read the head's output."""

    @property
    def outputs(self) -> int:
        """Width of the logits."""

    def reference(self, label: str) -> str:
        """A label as predictions are compared with it. Raises `Unusable` with the reason."""

    def target(self, reference: str) -> Sequence[int]:
        """What the loss sees of a reference. Raises `Unusable` with the reason."""

    def check(self, target: Sequence[int], frames: int) -> None:
        """Raises `Unusable` where this many frames of logits cannot be trained towards the target."""

    def loss(self, logits: Tensor, lengths: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
        """Scalar from logits (batch, frames, outputs), any float dtype, and lengths int64 (batch,)."""

    def predict(self, logits: Tensor, lengths: Tensor) -> list[str]:
        """One prediction a row of the batch, comparable with a reference."""

    def measure(self, references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        """The values of `metrics`, quickly: this runs at every look at dev."""

    def report(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[str]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """All measures with intervals, and the per-utterance table, JSON-able: this runs once, on test."""


class CtcTask:
    """Transcription by connectionist temporal classification (Graves et al., ICML 2006), greedily decoded."""

    kind: ClassVar[str] = "ctc"
    metrics: ClassVar[tuple[str, ...]] = ("cer", "wer")

    def __init__(self, tokeniser: text.Tokeniser, normalise: str) -> None:
        self.tokeniser = tokeniser
        self.normalise = normalise

    @classmethod
    def fit(cls, recipe: TaskRecipe, labels: Sequence[str]) -> CtcTask:
        """A task whose tokeniser is made from the training labels alone."""
        texts = [clean for label in labels if (clean := text.normalise(label, recipe.normalise))]
        if not texts:
            rule = f"after normalisation {recipe.normalise!r}"
            raise UsageError(f"key task.label: no text of {recipe.label!r} is left in train {rule}")
        return cls(text.train_tokeniser(recipe.tokens, texts, recipe.vocabulary), recipe.normalise)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CtcTask:
        return cls(text.tokeniser_from_json(value["tokeniser"]), value["normalise"])

    def describe(self) -> dict[str, Any]:
        return {"kind": self.kind, "normalise": self.normalise, "tokeniser": self.tokeniser.to_json()}

    @property
    def outputs(self) -> int:
        return self.tokeniser.size

    def reference(self, label: str) -> str:
        reference = text.normalise(label, self.normalise)
        if not reference:
            raise Unusable("empty text after normalisation")
        return reference

    def target(self, reference: str) -> Sequence[int]:
        return self.tokeniser.encode(reference)

    def check(self, target: Sequence[int], frames: int) -> None:
        if not target:
            raise Unusable("no token of the text is in the vocabulary")
        if frames_needed(target) > frames:
            raise Unusable("more labels than frames")

    def loss(self, logits: Tensor, lengths: Tensor, targets: Sequence[Sequence[int]]) -> Tensor:
        """Negative log likelihood a token, in nats: summed over the batch, divided by its tokens."""
        log_probs_tbo = logits.float().log_softmax(-1).transpose(0, 1)
        target_lengths = torch.tensor([len(target) for target in targets], dtype=torch.int64)
        flat = torch.from_numpy(np.fromiter((token for target in targets for token in target), dtype=np.int64))
        total = functional.ctc_loss(
            log_probs_tbo, flat.to(logits.device), lengths, target_lengths.to(logits.device),
            blank=text.BLANK, reduction="sum", zero_infinity=True,
        )  # fmt: skip
        return total / max(int(target_lengths.sum()), 1)

    def predict(self, logits: Tensor, lengths: Tensor) -> list[str]:
        return [self.tokeniser.decode(tokens) for tokens in evaluate.greedy_ctc(logits, lengths)]

    def measure(self, references: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
        rows = evaluate.utterance_table(references, references, predictions)
        words, characters = sum(row.words for row in rows), sum(row.characters for row in rows)
        return {
            "cer": sum(row.character_errors for row in rows) / max(characters, 1),
            "wer": sum(row.word_errors for row in rows) / max(words, 1),
        }

    def report(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[str]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        rows = evaluate.utterance_table(ids, references, predictions)
        scores = evaluate.score_rows(rows).to_json()
        rule = {"normalise": self.normalise, "normalise_rule": text.RULES[self.normalise]}
        return scores | rule, [row.to_json() for row in rows]


def frames_needed(target: Sequence[int]) -> int:
    """Frames that CTC needs: one a label, and a blank between two equal ones."""
    return len(target) + sum(a == b for a, b in pairwise(target))


TASKS: dict[str, type[Task]] = {CtcTask.kind: CtcTask}


def fit(recipe: TaskRecipe, labels: Sequence[str]) -> Task:
    """The task of a recipe, fitted to the labels of train.

    Raises:
        UsageError: there is no such task.
    """
    if recipe.kind not in TASKS:
        raise UsageError(f"key task.kind: {recipe.kind!r} is not allowed, use {' or '.join(TASKS)}")
    return TASKS[recipe.kind].fit(recipe, labels)


def from_json(value: dict[str, Any]) -> Task:
    """The task that `describe` described."""
    if value.get("kind") not in TASKS:
        raise UsageError(f"head.json names the task {value.get('kind')!r}; this version knows {', '.join(TASKS)}")
    return TASKS[value["kind"]].from_json(value)
