"""N-gram models: probabilities that add up, and ARPA that KenLM reads as it was meant."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from featcache.errors import UsageError
from fusion.ngram import END, START, UNKNOWN, NGram
from tests.helpers import needs_beam

TEXT = [s.split() for s in ("a b c", "a b d", "c d", "a", "été d")]


@pytest.mark.parametrize("order", [2, 3, 4])
def test_probabilities_add_up_after_every_history(order: int) -> None:
    model = NGram(TEXT, order)
    predicted = [*model.words, END, UNKNOWN]
    histories = itertools.product([*model.words, START, UNKNOWN], repeat=order - 1)
    for history in [(), (START,), *histories]:
        assert sum(model.probability(word, history) for word in predicted) == pytest.approx(1)


def test_witten_bell_by_hand() -> None:
    model = NGram([["a", "b"], ["a"]], 2)  # a a b </s> </s>: 3 kinds in 5, and <unk> as the fourth
    unigram = {"a": (2 + 3 / 4) / 8, "b": (1 + 3 / 4) / 8, END: (2 + 3 / 4) / 8, UNKNOWN: 3 / 4 / 8}
    for word, value in unigram.items():
        assert model.probability(word) == pytest.approx(value)
    # after a: b once, </s> once; two kinds in two
    assert model.probability("b", ("a",)) == pytest.approx((1 + 2 * unigram["b"]) / 4)
    assert model.probability("a", ("a",)) == pytest.approx(2 * unigram["a"] / 4)


@needs_beam
def test_kenlm_reads_the_same_probabilities(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    model = NGram(TEXT, 3)
    model.write(tmp_path / "lm.arpa")
    words = [*model.words, UNKNOWN]
    names = Dictionary(words)
    kenlm = KenLM(str(tmp_path / "lm.arpa"), names)
    for sentence in itertools.product(words, repeat=3):
        state, history = kenlm.start(False), [START]
        for word in sentence:
            state, score = kenlm.score(state, names.get_index(word))
            assert score == pytest.approx(math.log10(model.probability(word, tuple(history))), abs=1e-5)
            history.append(word)
        assert kenlm.finish(state)[1] == pytest.approx(math.log10(model.probability(END, tuple(history))), abs=1e-5)


def test_the_same_text_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, text in (("one", TEXT), ("two", TEXT[::-1])):
        NGram(text, 3).write(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_no_longer_n_grams_than_the_text_has(tmp_path: Path) -> None:
    model = NGram([["a"]], 6)
    assert model.order == 3  # <s> a </s>
    model.write(tmp_path / "lm")
    assert "ngram 3=1\n" in (tmp_path / "lm").read_text() and "ngram 4" not in (tmp_path / "lm").read_text()


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="2 words or more"):
        NGram(TEXT, 1)
    with pytest.raises(UsageError, match="no text"):
        NGram([], 2)
    with pytest.raises(UsageError, match="not words"):
        NGram([["a", START]], 2)
