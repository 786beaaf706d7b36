"""Text rules and tokenisers: what a label is before training, and how ids become text again.

A tokeniser's id 0 is the CTC blank. Tokenisers are stored as JSON (`to_json`, `tokeniser_from_json`);
nothing here is pickled.
"""

from __future__ import annotations

import base64
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from featcache.errors import UsageError

BLANK = 0
_SPACE = "\u2581"
"""How SentencePiece writes a space in its pieces."""

# Stated beside every error rate that was computed under the rule.
RULES = {
    "none": "text as it is",
    "basic": (
        "Unicode NFC, lower case, apostrophes unified and kept between letters, all other punctuation and "
        "symbols to spaces, digits kept, spaces collapsed"
    ),
}
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bb\u02bc\u02b9\u2032\uff07\u0060\u00b4", "'"))
_OUTER_APOSTROPHE = re.compile(r"(?<![^\W\d_])'|'(?![^\W\d_])")


def normalise(text: str, rule: str = "basic") -> str:
    """Text under a rule of RULES.

    `basic` keeps letters, their combining marks, and numbers of any script, so it serves English,
    Spanish, French, Italian, Russian, Dutch and others alike: "L'été, déjà-vu !" becomes "l'été déjà vu".
    Accents and the letter ё stay. Characters without width (soft hyphen, zero-width space, byte order
    mark) vanish. Applying a rule twice changes nothing.

    Raises:
        UsageError: for an unknown rule.
    """
    if rule == "none":
        return text
    if rule != "basic":
        raise UsageError(f"normalise = {rule!r} is not known; use one of {', '.join(RULES)}")
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()).translate(_APOSTROPHES)
    text = "".join(c if c == "'" or unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return " ".join(_OUTER_APOSTROPHE.sub(" ", text).split())


class Tokeniser(Protocol):
    """Text to ids and back. Ids run from 1 to size - 1; 0 is the CTC blank."""

    @property
    def size(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def piece(self, token: int) -> str:
        """What a token, no blank, adds to a text: with the space before a word, where the token begins one."""
        ...

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class CharTokeniser:
    """One id a character. `characters[i]` has id i + 1."""

    characters: tuple[str, ...]
    _ids: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(set(self.characters)) != len(self.characters) or any(len(c) != 1 for c in self.characters):
            raise UsageError("a character tokeniser needs distinct single characters; train it again")
        object.__setattr__(self, "_ids", {c: i + 1 for i, c in enumerate(self.characters)})

    @classmethod
    def train(cls, texts: Iterable[str]) -> CharTokeniser:
        """All characters of the texts, in code point order, so that the order of texts does not matter."""
        characters = tuple(sorted(set().union(*map(set, texts))))
        if not characters:
            raise UsageError("no text to take characters from; check the task's label and filter")
        return cls(characters)

    @property
    def size(self) -> int:
        return len(self.characters) + 1

    def encode(self, text: str) -> list[int]:
        """Ids of the known characters; unknown ones are left out (they can never be recognised)."""
        return [self._ids[c] for c in text if c in self._ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; blanks are skipped. Raises UsageError for an id out of range."""
        _check_ids(ids, self.size)
        return "".join(self.characters[i - 1] for i in ids if i != BLANK)

    def piece(self, token: int) -> str:
        return self.characters[token - 1]

    def to_json(self) -> dict[str, Any]:
        return {"kind": "char", "characters": "".join(self.characters)}


@dataclass(frozen=True)
class SentencePieceTokeniser:
    """Subwords of a SentencePiece unigram model (Kudo, 2018, arXiv 1804.10959).

    `model` is the serialised model. Its unknown piece has id 0, which CTC needs for the blank: unknown
    pieces are left out of encodings, and 0 is the blank.
    """

    model: bytes = field(repr=False)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int = 500) -> SentencePieceTokeniser:
        """Train on the texts, single-threaded and in sorted order: the same texts give the same model.

        A corpus too small for `vocabulary` pieces gets fewer; see `size`.
        """
        import sentencepiece

        lines = sorted(text for text in texts if text.strip())
        if not lines:
            raise UsageError("no text to train SentencePiece on; check the task's label and filter")
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                vocab_size=vocabulary,
                hard_vocab_limit=False,
                model_type="unigram",
                character_coverage=1.0,
                normalization_rule_name="identity",
                unk_id=BLANK,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[-1]
            raise UsageError(
                f"SentencePiece cannot learn {vocabulary} pieces from {len(lines)} texts ({reason}); "
                'set another task.vocabulary, or tokens = "char"'
            ) from error
        return cls(model.getvalue())

    @cached_property
    def _processor(self) -> Any:
        import sentencepiece

        try:
            return sentencepiece.SentencePieceProcessor(model_proto=self.model)
        except RuntimeError as error:
            raise UsageError("the stored SentencePiece model is damaged; train the head again") from error

    @property
    def size(self) -> int:
        return int(self._processor.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Ids of the text's pieces; pieces with characters never seen are left out."""
        return [i for i in self._processor.encode(text) if i != BLANK]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; blanks are skipped. Raises UsageError for an id out of range."""
        _check_ids(ids, self.size)
        return str(self._processor.decode([int(i) for i in ids if i != BLANK]))

    def piece(self, token: int) -> str:
        return str(self._processor.id_to_piece(token)).replace(_SPACE, " ")

    def to_json(self) -> dict[str, Any]:
        return {"kind": "sentencepiece", "model": base64.b64encode(self.model).decode("ascii")}


def train_tokeniser(kind: str, texts: Iterable[str], vocabulary: int = 500) -> Tokeniser:
    """A "char" or "sentencepiece" tokeniser of (already normalised) texts; UsageError for another kind."""
    if kind == "char":
        return CharTokeniser.train(texts)
    if kind == "sentencepiece":
        return SentencePieceTokeniser.train(texts, vocabulary)
    raise UsageError(f"tokens = {kind!r} is not known; use char or sentencepiece")


def tokeniser_from_json(data: dict[str, Any]) -> Tokeniser:
    """The inverse of `to_json`. Raises UsageError for what is not a stored tokeniser."""
    try:
        if data["kind"] == "char":
            return CharTokeniser(tuple(data["characters"]))
        if data["kind"] == "sentencepiece":
            stored = SentencePieceTokeniser(base64.b64decode(data["model"], validate=True))
            stored.size  # noqa: B018  a damaged model is found here, not at the first utterance
            return stored
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"the stored tokeniser is damaged ({error}); train the head again") from error
    raise UsageError(f"the stored tokeniser is of an unknown kind {data['kind']!r}; it is from a newer version")


def space_token(tokeniser: Tokeniser) -> int | None:
    """The token between words, where there is one that is nothing else."""
    for token in tokeniser.encode(" "):
        if tokeniser.decode([token]) == " ":
            return token
    return None


def _check_ids(ids: Sequence[int], size: int) -> None:
    wrong = [int(i) for i in ids if not 0 <= i < size]
    if wrong:
        raise UsageError(f"id {wrong[0]} is not one of the tokeniser's {size}; it belongs to another head")
