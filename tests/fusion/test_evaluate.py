"""Greedy decoding, error rates with intervals, the table of utterances."""

from __future__ import annotations

import json

import jiwer
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import UsageError
from fusion.evaluate import (
    greedy_ctc,
    score,
    score_rows,
    utterance_table,
)

SENTENCE = st.lists(st.sampled_from(["a", "b", "cc", "été"]), max_size=6).map(" ".join)


def test_greedy_merges_repeats_and_drops_blanks() -> None:
    paths = torch.tensor([[0, 1, 1, 0, 1, 2, 2, 2], [3, 3, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1, 1]])
    logits = torch.nn.functional.one_hot(paths, 4).float()
    assert greedy_ctc(logits, torch.tensor([8, 4, 0])) == [[1, 1, 2], [3], []]
    assert greedy_ctc(logits, torch.tensor([8, 8, 3]), blank=1) == [[0, 0, 2], [3, 0], []]


@given(st.lists(st.tuples(SENTENCE.filter(bool), SENTENCE), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_rates_are_jiwers(pairs: list[tuple[str, str]]) -> None:
    references, hypotheses = (list(side) for side in zip(*pairs, strict=True))
    scores = score(references, hypotheses, resamples=50)
    words = jiwer.process_words(references, hypotheses)
    assert scores.wer == pytest.approx(words.wer)
    assert scores.cer == pytest.approx(jiwer.cer(references, hypotheses))
    assert (scores.substitutions, scores.deletions, scores.insertions) == (
        words.substitutions,
        words.deletions,
        words.insertions,
    )
    assert scores.wer_ci95[0] <= scores.wer_ci95[1]


@given(reference=SENTENCE, hypothesis=SENTENCE)
@settings(deadline=None)
def test_an_alignment_tells_both_texts(reference: str, hypothesis: str) -> None:
    [row] = utterance_table(["u"], [reference], [hypothesis])
    assert " ".join(step[1] for step in row.alignment if step[1]) == reference
    assert " ".join(step[2] for step in row.alignment if step[2]) == hypothesis
    assert row.word_errors == sum(step[0] != "" for step in row.alignment)
    assert row.word_errors == row.substitutions + row.deletions + row.insertions
    for mark, left, right in row.alignment:
        assert {"": left == right, "S": left != right and left and right, "D": not right, "I": not left}[mark]
    assert json.loads(json.dumps(row.to_json()))["alignment"] == [list(step) for step in row.alignment]


def test_a_row_in_columns() -> None:
    [row] = utterance_table(["u"], ["the cat sat down"], ["a the mat sat"])
    assert row.pretty().splitlines() == [
        "REF: * the cat sat down",
        "HYP: a the mat sat *",
        "     I     S       D",
    ]
    assert (row.words, row.word_errors) == (4, 3)
    assert row.characters == len("the cat sat down")


def test_empty_references_count_as_insertions() -> None:
    scores = score(["", "one two", "  "], ["uh oh", "one two", ""], resamples=200)
    assert (scores.utterances, scores.empty_references, scores.words, scores.insertions) == (3, 2, 2, 2)
    assert scores.wer == 1.0
    assert scores.cer == pytest.approx(len("uh oh") / len("one two"))
    assert all(np.isfinite([*scores.wer_ci95, *scores.cer_ci95]))
    with pytest.raises(UsageError, match="none of the 1 references has words"):
        score([""], ["a"])
    with pytest.raises(UsageError, match="none of the 0 references"):
        score([], [])
    with pytest.raises(UsageError, match="2 ids, 2 references and 1 hypotheses"):
        score(["a", "b"], ["a"])


def test_extra_white_space_is_no_error() -> None:
    scores = score(["one  two "], [" one two"], resamples=10)
    assert scores.wer == scores.cer == 0.0


def test_scores_are_json() -> None:
    scores = score_rows(utterance_table(["x", "y"], ["a b", "c"], ["a", "c"]), resamples=20)
    data = json.loads(json.dumps(scores.to_json()))
    assert data["wer"] == pytest.approx(1 / 3)
    assert len(data["wer_ci95"]) == len(data["cer_ci95"]) == 2
    assert (data["utterances"], data["resamples"]) == (2, 20)
