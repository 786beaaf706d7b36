"""Beam search on log probabilities that are made by hand."""

from __future__ import annotations

import builtins
import math
import sys
from pathlib import Path

import pytest
import torch

from featcache.errors import UsageError
from fusion.beam import NEVER, BeamDecoder, Search, token_sentence, write_lexicon
from fusion.ngram import NGram
from fusion.text import CharTokeniser, SentencePieceTokeniser
from tests.helpers import needs_beam

CHARS = CharTokeniser((" ", "a", "b", "c", "d"))


def emissions(path: list[int], outputs: int, sure: float = 9.0) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(path), outputs).float().mul(sure).log_softmax(-1)


def spell(text: str) -> list[int]:
    """One frame a character, blanks between."""
    return [value for token in CHARS.encode(text) for value in (0, token)] + [0]


@needs_beam
def test_without_a_model_it_says_what_was_said_and_when() -> None:
    path = [0, 2, 2, 0, 2, 1, 0, 4, 4]  # "aa c"
    found = BeamDecoder(CHARS, Search())(emissions(path, CHARS.size))
    assert CHARS.decode(found.tokens) == "aa c"
    assert found.frames == (1, 4, 5, 7)


@needs_beam
def test_it_sums_over_alignments_where_greedy_takes_one() -> None:
    # two frames: blank 0.4, a 0.3, b 0.3; "a" is a-, -a and aa, 0.33 in all, the empty path 0.16
    frame = torch.full((CHARS.size,), 1e-9)
    frame[0], frame[2], frame[3] = 0.4, 0.3, 0.29
    log_probs = frame.log().repeat(2, 1)
    assert log_probs.argmax(-1).tolist() == [0, 0]
    assert BeamDecoder(CHARS, Search()).text(log_probs) == "a"


def unsure(text: str, at: int, other: str, share: float = 0.4) -> torch.Tensor:
    """A text whose character number `at` sounds a little less like itself than like another."""
    log_probs = emissions(spell(text), CHARS.size)
    right, wrong = CHARS.encode(text[at])[0], CHARS.encode(other)[0]
    frame = torch.full((CHARS.size,), 1e-4)
    frame[right], frame[wrong] = share, 1 - share
    log_probs[2 * at + 1] = frame.log()
    return log_probs


@needs_beam
def test_a_model_of_tokens_mends_a_character(tmp_path: Path) -> None:
    NGram([token_sentence(CHARS, text) for text in ("abc abc", "abc d", "abc")] * 5, 4).write(tmp_path / "t.arpa")
    log_probs = unsure("abc abc", 5, "d")
    assert BeamDecoder(CHARS, Search()).text(log_probs) == "abc adc"
    assert BeamDecoder(CHARS, Search(lm_weight=1), lm=tmp_path / "t.arpa").text(log_probs) == "abc abc"


def lexicon(tmp_path: Path, *texts: str) -> dict[str, Path]:
    NGram([text.split() for text in texts], 3).write(tmp_path / "w.arpa")
    write_lexicon(tmp_path / "lexicon.txt", (word for text in texts for word in text.split()), CHARS)
    return {"lm": tmp_path / "w.arpa", "lexicon": tmp_path / "lexicon.txt"}


@needs_beam
def test_a_lexicon_gives_its_words_only_and_the_model_chooses(tmp_path: Path) -> None:
    files = lexicon(tmp_path, "abc d", "abd c", "abc d", "a")
    assert BeamDecoder(CHARS, Search(lm_weight=1), **files).text(emissions(spell("abb d"), 6, 4.0)) == "abc d"
    log_probs = unsure("abc d", 2, "d", 0.5)
    assert BeamDecoder(CHARS, Search(lm_weight=1), **files).text(log_probs) == "abc d"
    # words need not be parted by a pause, and the last needs no space of its own; a long last letter is one
    found = BeamDecoder(CHARS, Search(lm_weight=1), **files)(emissions([2, 3, 4, 4, 4, 1, 5, 5, 5], 6))
    assert CHARS.decode(found.tokens) == "abc d" and found.frames == (0, 1, 2, 5, 6)


@needs_beam
def test_unknown_words_where_they_are_allowed(tmp_path: Path) -> None:
    files = lexicon(tmp_path, "abc d", "a", "cab")
    log_probs = emissions(spell("abc ca d"), 6)
    assert BeamDecoder(CHARS, Search(lm_weight=1, unknown_score=-1), **files).text(log_probs) == "abc ca d"
    assert "ca " not in BeamDecoder(CHARS, Search(lm_weight=1), **files).text(log_probs)


@needs_beam
def test_word_score_decides_how_many_words(tmp_path: Path) -> None:
    files = lexicon(tmp_path, "a b", "ab")
    log_probs = emissions([2, 1, 3], 6, 9.0)
    log_probs[1] = torch.tensor([0.5, 0.5, 1e-4, 1e-4, 1e-4, 1e-4]).log()  # a space, or nothing
    assert BeamDecoder(CHARS, Search(word_score=3), **files).text(log_probs) == "a b"
    assert BeamDecoder(CHARS, Search(word_score=-3), **files).text(log_probs) == "ab"


@needs_beam
def test_subwords_have_a_lexicon_too(tmp_path: Path) -> None:
    texts = ["the cat sat", "the mat", "cat mat the"]
    pieces = SentencePieceTokeniser.train(texts, 20)
    NGram([text.split() for text in texts], 2).write(tmp_path / "w.arpa")
    kept = write_lexicon(tmp_path / "lexicon.txt", " ".join(texts).split(), pieces)
    assert kept == ["cat", "mat", "sat", "the"]
    path = [value for token in pieces.encode("the cat sat") for value in (token, 0)]
    decoder = BeamDecoder(pieces, Search(lm_weight=0.5), lm=tmp_path / "w.arpa", lexicon=tmp_path / "lexicon.txt")
    assert decoder.text(emissions(path, pieces.size)) == "the cat sat"


def test_words_that_the_tokens_cannot_spell_are_left_out(tmp_path: Path) -> None:
    assert write_lexicon(tmp_path / "l", ["abc", "xyz", "a"], CHARS) == ["a", "abc"]
    with pytest.raises(UsageError, match="no word"):
        write_lexicon(tmp_path / "l", ["xyz"], CHARS)


@needs_beam
def test_nothing_said() -> None:
    decoder = BeamDecoder(CHARS, Search())
    assert decoder.text(torch.zeros(0, CHARS.size)) == ""
    assert decoder.text(emissions([0, 0, 0], CHARS.size)) == ""


def test_a_search_survives_json() -> None:
    for search in (Search(), Search(8, 1.5, -1.0, -3.0)):
        stored = search.to_json()
        assert all(value is None or math.isfinite(value) for value in stored.values())
        assert Search.from_json(stored) == search
    assert Search().unknown_score == NEVER


@needs_beam
def test_a_bad_file_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.arpa").write_text("nothing")
    with pytest.raises(UsageError, match="no.arpa cannot be used"):
        BeamDecoder(CHARS, Search(), lm=tmp_path / "no.arpa")
    assert capfd.readouterr().err == ""  # KenLM's own progress is kept from the terminal


def test_the_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("flashlight", "torchaudio.models.decoder"))]:
        monkeypatch.delitem(sys.modules, name)
    real = builtins.__import__

    def without(name: str, *arguments: object, **named: object) -> object:
        if name.startswith("flashlight"):
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match="pip install 'speech-featcache\\[beam\\]'"):
        BeamDecoder(CHARS, Search())
