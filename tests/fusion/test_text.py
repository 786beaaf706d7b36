"""Text rules and tokenisers."""

from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featcache.errors import UsageError
from fusion.text import (
    RULES,
    CharTokeniser,
    SentencePieceTokeniser,
    normalise,
    tokeniser_from_json,
    train_tokeniser,
)

TEXTS = [
    "please hold while we try to connect your call",
    "l'utente non è disponibile al momento",
    "por favor deje su mensaje después del tono",
    "veuillez laisser votre message après le bip",
    "пожалуйста оставьте сообщение после сигнала ещё раз",
    "spreek uw bericht in na de toon",
]


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("Don\u2019t  STOP -- now!", "don't stop now"),
        ("¿Qué? ¡Adiós, señor 5!", "qué adiós señor 5"),
        ("L\u2019été, déjà-vu…\tŒuvre", "l'été déjà vu œuvre"),
        ("Un po' d`acqua: 3,5%", "un po d'acqua 3 5"),
        ("Ещё — «раз»!", "ещё раз"),
        ("'s Avonds één coöperatie", "s avonds één coöperatie"),
        ("she said 'hello' to o\u02bcneil", "she said hello to o'neil"),
        ("e\u0301te\u0301", "été"),  # decomposed
        ("soft\u00adhyphen \ufeffbom", "softhyphen bom"),
        ("snake_case 90's", "snake case 90 s"),
        (" \n ...", ""),
    ],
)
def test_basic(raw: str, clean: str) -> None:
    assert normalise(raw, "basic") == clean


def test_none_keeps_the_text_and_other_rules_are_refused() -> None:
    assert normalise(" A,  b ", "none") == " A,  b "
    with pytest.raises(UsageError, match="normalise = 'strict' is not known; use one of none, basic"):
        normalise("a", "strict")
    assert set(RULES) == {"none", "basic"}


@settings(max_examples=300)
@given(st.text())
@example("\u0130I\u03a3 \u1fef' a\u00ad\u0301")
def test_basic_is_idempotent_and_clean(raw: str) -> None:
    clean = normalise(raw)
    assert normalise(clean) == clean
    assert clean == " ".join(clean.split())
    assert all(c in " '" or unicodedata.category(c)[0] in "LMN" for c in clean)
    assert clean == clean.lower()


def test_characters() -> None:
    tokeniser = CharTokeniser.train(TEXTS)
    assert tokeniser == CharTokeniser.train(reversed(TEXTS))
    assert tokeniser.size == len(set("".join(TEXTS))) + 1
    for text in TEXTS:
        ids = tokeniser.encode(text)
        assert min(ids) > 0 and max(ids) < tokeniser.size
        assert tokeniser.decode(ids) == text
    assert tokeniser.encode("a\u00df") == tokeniser.encode("a")
    assert tokeniser.decode([0, *tokeniser.encode("no"), 0]) == "no"
    with pytest.raises(UsageError, match="is not one of the tokeniser's"):
        tokeniser.decode([tokeniser.size])
    with pytest.raises(UsageError, match="no text"):
        CharTokeniser.train(["", ""])


@given(st.lists(st.text(), min_size=1).filter(lambda texts: any(texts)))
def test_characters_come_back(texts: list[str]) -> None:
    tokeniser = CharTokeniser.train(texts)
    stored = tokeniser_from_json(json.loads(json.dumps(tokeniser.to_json())))
    assert stored == tokeniser
    assert [stored.decode(stored.encode(text)) for text in texts] == texts


def test_sentencepiece() -> None:
    tokeniser = SentencePieceTokeniser.train(TEXTS, 60)
    assert 30 < tokeniser.size <= 60
    again = SentencePieceTokeniser.train(reversed(TEXTS), 60)
    stored = tokeniser_from_json(json.loads(json.dumps(tokeniser.to_json())))
    assert stored == tokeniser
    for text in TEXTS:
        ids = tokeniser.encode(text)
        assert min(ids) > 0 and max(ids) < tokeniser.size
        assert len(ids) < len(text)
        assert tokeniser.decode([0, *ids]) == text
        assert stored.encode(text) == again.encode(text) == ids
    assert 0 not in tokeniser.encode("ß no ß")
    with pytest.raises(UsageError, match="is not one of the tokeniser's"):
        tokeniser.decode([tokeniser.size])


def test_sentencepiece_says_what_it_cannot_do() -> None:
    assert SentencePieceTokeniser.train(TEXTS, 5000).size < 5000  # a small corpus: fewer pieces
    with pytest.raises(UsageError, match=r"cannot learn 5 pieces from 6 texts .*set another task.vocabulary"):
        SentencePieceTokeniser.train(TEXTS, 5)
    with pytest.raises(UsageError, match="no text"):
        SentencePieceTokeniser.train([" "], 50)


def test_stored_tokenisers_are_checked() -> None:
    assert train_tokeniser("char", ["ab"]).size == 3
    assert train_tokeniser("sentencepiece", TEXTS, 60).size <= 60
    with pytest.raises(UsageError, match="tokens = 'word' is not known"):
        train_tokeniser("word", ["ab"])
    for broken in ({}, {"kind": "sentencepiece", "model": "###"}, {"kind": "char", "characters": "aa"},
                   {"kind": "sentencepiece", "model": "AAAA"}, {"kind": "char", "characters": None}):  # fmt: skip
        with pytest.raises(UsageError, match="train"):
            tokeniser_from_json(broken)
    with pytest.raises(UsageError, match="unknown kind 'bytes'"):
        tokeniser_from_json({"kind": "bytes"})
