"""Transcription: connectionist temporal classification over characters or subwords."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from featcache.errors import UsageError
from fusion import evaluate, text
from fusion.labels import Unusable
from fusion.recipe import TaskRecipe
from fusion.tasks.base import Measure, Prediction, Task, ratio_of


class CtcTask(Task):
    """Transcription by connectionist temporal classification (Graves et al., ICML 2006), greedily decoded."""

    kind: ClassVar[str] = "ctc"
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure("wer", "WER", ratio_of("word_errors", "words")),
        Measure("cer", "CER", ratio_of("character_errors", "characters")),
    )
    chosen_by: ClassVar[str] = "cer"
    per_frame: ClassVar[bool] = True

    def __init__(self, tokeniser: text.Tokeniser, normalise: str) -> None:
        self.tokeniser = tokeniser
        self.normalise = normalise

    @classmethod
    def fit(cls, recipe: TaskRecipe, labels: Sequence[str], frame_rate: float) -> CtcTask:
        """A task whose tokeniser is made from the training labels alone."""
        if labels and all(map(_is_list, labels)):
            raise UsageError(
                f"key task.label: {recipe.label!r} holds lists such as {textwrap.shorten(labels[0], 40)}, and task "
                "'ctc' learns text; use another label, or task 'tag' for spans"
            )
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

    def target(self, reference: str, frames: int) -> Sequence[int]:
        return self.tokeniser.encode(reference)

    def check(self, target: Sequence[int], frames: int) -> None:
        if not target:
            raise Unusable("no token of the text is in the vocabulary")
        if frames_needed(target) > frames:
            raise Unusable("more labels than frames")

    def check_split(self, name: str, references: Sequence[str], targets: Sequence[Sequence[int]]) -> None:
        if not any(reference.split() for reference in references):
            raise UsageError(
                f"key task.label: none of the {len(references)} references of {name} has words, so WER is undefined; "
                "use another label or task.where"
            )

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

    def predict(self, logits: Tensor, lengths: Tensor) -> list[Prediction]:
        return [self.tokeniser.decode(tokens) for tokens in evaluate.greedy_ctc(logits, lengths)]

    def text(self, prediction: Prediction) -> str:
        return str(prediction)

    def table(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[Prediction]
    ) -> list[dict[str, Any]]:
        return [row.to_json() for row in evaluate.utterance_table(ids, references, predictions)]

    def report(
        self, ids: Sequence[str], references: Sequence[str], predictions: Sequence[Prediction]
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """With the counts of `evaluate.Scores`, and the rule under which the texts were compared."""
        rows = evaluate.utterance_table(ids, references, predictions)
        rule = {"normalise": self.normalise, "normalise_rule": text.RULES[self.normalise]}
        return evaluate.score_rows(rows).to_json() | rule, [row.to_json() for row in rows]


def _is_list(label: str) -> bool:
    """Whether a label is the JSON of a list, as a column of spans has it."""
    if not label.startswith("["):
        return False
    try:
        return isinstance(json.loads(label), list)
    except (ValueError, RecursionError):
        return False


def frames_needed(target: Sequence[int]) -> int:
    """Frames that CTC needs: one a label, and a blank between two equal ones."""
    return len(target) + sum(a == b for a, b in pairwise(target))
