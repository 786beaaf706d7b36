"""Decoding and error rates: greedy CTC, WER and CER with intervals, a table of utterances.

Edits are counted by jiwer. jiwer refuses empty references; here every word of a hypothesis is an
insertion against an empty one, which raises the errors and not the words.

Intervals are those of `fusion.intervals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

import jiwer
import numpy as np
import torch

from featcache.errors import UsageError
from fusion.intervals import RESAMPLES, interval, ratio

_MARKS = {"equal": "", "substitute": "S", "delete": "D", "insert": "I"}


def greedy_ctc(logits: torch.Tensor, lengths: torch.Tensor, blank: int = 0) -> list[list[int]]:
    """The best path: arg max of each frame, repeats merged, blanks dropped.

    Args:
        logits: (batch, frames, outputs), any monotone transform of probabilities.
        lengths: (batch,) valid frames.
    """
    best = logits.argmax(-1).cpu()
    paths = (row[:length].unique_consecutive() for row, length in zip(best, lengths.tolist(), strict=True))
    return [path[path != blank].tolist() for path in paths]


@dataclass(frozen=True)
class UtteranceRow:
    """One utterance of the test table. `alignment` holds (mark, reference word, hypothesis word) triples:
    mark is "", "S", "D" or "I", and the missing side of a deletion or insertion is ""."""

    id: str
    reference: str
    hypothesis: str
    words: int
    word_errors: int
    substitutions: int
    deletions: int
    insertions: int
    characters: int
    character_errors: int
    alignment: tuple[tuple[str, str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "alignment": [list(step) for step in self.alignment]}

    def pretty(self) -> str:
        """Three lines: reference, hypothesis and marks, in columns; `*` stands for a missing word."""
        lines: tuple[list[str], list[str], list[str]] = ([], [], [])
        for mark, reference, hypothesis in self.alignment:
            cells = (reference or "*", hypothesis or "*", mark)
            width = max(map(len, cells))
            for line, cell in zip(lines, cells, strict=True):
                line.append(cell.ljust(width))
        heads = ("REF: ", "HYP: ", "     ")
        return "\n".join((head + " ".join(line)).rstrip() for head, line in zip(heads, lines, strict=True))


def utterance_table(ids: Sequence[str], references: Sequence[str], hypotheses: Sequence[str]) -> list[UtteranceRow]:
    """Align every hypothesis with its reference, word by word, and count errors of words and characters.

    Words are what white space separates; characters include single spaces between words. Both texts are
    taken as they are: normalise them first.

    Raises:
        UsageError: if the three have different lengths.
    """
    if not len(ids) == len(references) == len(hypotheses):
        raise UsageError(
            f"{len(ids)} ids, {len(references)} references and {len(hypotheses)} hypotheses do not belong together"
        )
    return [_row(*texts) for texts in zip(ids, references, hypotheses, strict=True)]


def _row(utterance: str, reference: str, hypothesis: str) -> UtteranceRow:
    ref, hyp = reference.split(), hypothesis.split()
    steps: list[tuple[str, str, str]] = []
    if ref:
        output = jiwer.process_words(" ".join(ref), " ".join(hyp))
        for chunk in output.alignments[0]:
            left = ref[chunk.ref_start_idx : chunk.ref_end_idx]
            right = hyp[chunk.hyp_start_idx : chunk.hyp_end_idx]
            steps += [(_MARKS[chunk.type], *pair) for pair in zip_longest(left, right, fillvalue="")]
        letters = jiwer.process_characters(" ".join(ref), " ".join(hyp))
        character_errors = letters.substitutions + letters.deletions + letters.insertions
    else:
        steps = [("I", "", word) for word in hyp]
        character_errors = len(" ".join(hyp))
    count = {mark: sum(step[0] == mark for step in steps) for mark in "SDI"}
    return UtteranceRow(
        id=utterance,
        reference=reference,
        hypothesis=hypothesis,
        words=len(ref),
        word_errors=sum(count.values()),
        substitutions=count["S"],
        deletions=count["D"],
        insertions=count["I"],
        characters=len(" ".join(ref)),
        character_errors=character_errors,
        alignment=tuple(steps),
    )


@dataclass(frozen=True)
class Scores:
    """Error rates over a set of utterances, as fractions (0.25 is 25 %), with 95 % intervals.

    `empty_references` counts utterances whose reference has no words; their insertions are in the rates.
    """

    wer: float
    cer: float
    wer_ci95: tuple[float, float]
    cer_ci95: tuple[float, float]
    utterances: int
    empty_references: int
    words: int
    characters: int
    substitutions: int
    deletions: int
    insertions: int
    resamples: int

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "wer_ci95": list(self.wer_ci95), "cer_ci95": list(self.cer_ci95)}


def score(references: Sequence[str], hypotheses: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0) -> Scores:
    """WER and CER of texts with bootstrap intervals; see `score_rows`."""
    ids = [str(i) for i in range(len(references))]
    return score_rows(utterance_table(ids, references, hypotheses), resamples=resamples, seed=seed)


def score_rows(rows: Sequence[UtteranceRow], *, resamples: int = RESAMPLES, seed: int = 0) -> Scores:
    """WER and CER of a table: total errors by total reference length.

    Raises:
        UsageError: if no reference has any words, as the rates are undefined then.
    """
    words = np.array([row.words for row in rows], dtype=np.float64)
    characters = np.array([row.characters for row in rows], dtype=np.float64)
    if not words.sum():
        raise UsageError(f"none of the {len(rows)} references has words, so WER is undefined; check label and split")
    word_errors = np.array([row.word_errors for row in rows], dtype=np.float64)
    character_errors = np.array([row.character_errors for row in rows], dtype=np.float64)
    return Scores(
        wer=float(word_errors.sum() / words.sum()),
        cer=float(character_errors.sum() / characters.sum()),
        wer_ci95=interval(ratio(word_errors, words), len(rows), resamples=resamples, seed=seed),
        cer_ci95=interval(ratio(character_errors, characters), len(rows), resamples=resamples, seed=seed),
        utterances=len(rows),
        empty_references=int((words == 0).sum()),
        words=int(words.sum()),
        characters=int(characters.sum()),
        substitutions=sum(row.substitutions for row in rows),
        deletions=sum(row.deletions for row in rows),
        insertions=sum(row.insertions for row in rows),
        resamples=resamples,
    )
