"""Beam search over CTC log probabilities, with or without a lexicon: torchaudio's decoder (flashlight-text).

With a lexicon every hypothesis is a sequence of its words, scored by a word n-gram model; what the lexicon lacks
may be spelt where `Search.unknown_score` allows it. Without one it is any sequence of tokens, scored by an n-gram
model of tokens. Hypotheses maximise

    log p(tokens | speech) + lm_weight * log10 p(words or tokens) + word_score * words + unknown_score * unknown words

where p sums over the alignments that the beam has kept.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from featcache.errors import FeatcacheError, UsageError
from fusion import checkpoint
from fusion.ngram import UNKNOWN
from fusion.text import BLANK, Tokeniser, space_token

NEVER = float("-inf")
TOKENS_A_FRAME = 20
"""Tokens that are tried at each frame, the most likely ones: the others cost time and change nothing."""
_FAR = -1e4
"""Log probability of what a frame rules out; minus infinity would make NaN of sums."""


@dataclass(frozen=True)
class Search:
    """What a beam search weighs, and how wide it is. `word_score` and `unknown_score` need a lexicon."""

    beam: int = 50
    lm_weight: float = 0.0
    word_score: float = 0.0
    unknown_score: float = NEVER
    """Of a word that is not in the lexicon; minus infinity forbids them."""

    def to_json(self) -> dict[str, Any]:
        """JSON knows no infinity: None forbids unknown words."""
        return {**asdict(self), "unknown_score": None if self.unknown_score == NEVER else self.unknown_score}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Search:
        return cls(**{**value, "unknown_score": NEVER if value["unknown_score"] is None else value["unknown_score"]})


@dataclass(frozen=True)
class Found:
    """The best hypothesis: its tokens and the frame (of the logits) at which each begins."""

    tokens: tuple[int, ...]
    frames: tuple[int, ...]


class BeamDecoder:
    """A beam search, ready to run.

    Args:
        lm: ARPA or KenLM file: of words with a lexicon, of `token_name`s without; None for no language model.
        lexicon: file that `write_lexicon` wrote, or None.

    Raises:
        UsageError: flashlight-text is not installed, or a file cannot be used.
    """

    def __init__(
        self, tokeniser: Tokeniser, search: Search, *, lm: Path | None = None, lexicon: Path | None = None
    ) -> None:
        if search.beam < 1:
            raise UsageError(f"beam {search.beam}: keep 1 hypothesis or more")
        build = torchaudio_decoder()
        self.tokeniser = tokeniser
        self._space = space_token(tokeniser)
        silence = BLANK if self._space is None else self._space
        names = [token_name(i) for i in range(tokeniser.size)]
        try:
            with _quiet(), tempfile.NamedTemporaryFile("w") as listed:
                if not lexicon:
                    # torchaudio's own list of tokens for the language model has them in another order
                    listed.write("\n".join([*names, UNKNOWN]) + "\n")
                    listed.flush()
                self._decoder = build(
                    lexicon=str(lexicon) if lexicon else None,
                    tokens=names if lexicon else [*names, UNKNOWN],
                    lm=str(lm) if lm else None,
                    lm_dict=None if lexicon else listed.name,
                    beam_size=search.beam,
                    beam_size_token=min(TOKENS_A_FRAME, tokeniser.size),
                    lm_weight=search.lm_weight,
                    word_score=search.word_score,
                    unk_score=search.unknown_score,
                    blank_token=token_name(BLANK),
                    sil_token=token_name(silence),
                    unk_word=UNKNOWN,
                    # the sum over alignments; but a blank that is the silence too would be summed twice
                    log_add=not (lexicon and self._space is None),
                )
        except (RuntimeError, ValueError) as error:
            why = " ".join(str(error).split())[-160:]
            raise UsageError(f"{lm or lexicon} cannot be used for beam search ({why}); give an ARPA file") from error

    def __call__(self, log_probs: Tensor) -> Found:
        """The best hypothesis of log probabilities float32 (frames, outputs)."""
        frames = len(log_probs)
        if not frames:
            return Found((), ())
        (found,) = self._decoder(self._closed(log_probs).unsqueeze(0))
        if not found:
            raise FeatcacheError("beam search lost every hypothesis; give a wider --beam")
        pairs: list[tuple[int, int]] = []
        for token, frame in zip(found[0].tokens.tolist(), found[0].timesteps.tolist(), strict=True):
            # frame 0 and what comes after the last are the decoder's own silence; silence within it may be long
            after_space = not pairs or pairs[-1][0] == self._space
            if 1 <= frame <= frames and not (token == self._space and after_space):
                pairs.append((token, frame))
        if pairs and pairs[-1][0] == self._space:
            pairs.pop()
        return Found(tuple(token for token, _ in pairs), tuple(frame - 1 for _, frame in pairs))

    def text(self, log_probs: Tensor) -> str:
        return self.tokeniser.decode(self(log_probs).tokens)

    def _closed(self, log_probs: Tensor) -> Tensor:
        """With a space after the last frame: every word of the lexicon ends in one, also the last."""
        width = self._decoder.tokens_dict.index_size()
        closed = torch.full((len(log_probs) + (self._space is not None), width), _FAR)
        closed[: len(log_probs), : log_probs.shape[1]] = log_probs
        if self._space is not None:
            closed[-1, self._space] = 0.0
        return closed


def token_name(token: int) -> str:
    """How language models and lexica of tokens write a token: any tokeniser's pieces, spaces among them, have one."""
    return f"t{token}"


def token_sentence(tokeniser: Tokeniser, text: str) -> list[str]:
    """A text as a sentence for a language model of tokens; it ends like a word, where words end in a space."""
    space = space_token(tokeniser)
    return [token_name(i) for i in [*tokeniser.encode(text), *([] if space is None else [space])]]


def write_lexicon(path: Path, words: Iterable[str], tokeniser: Tokeniser) -> list[str]:
    """One word a line with its tokens, each ended by a space where the tokeniser has one.

    Returns:
        The words that it holds: those all of whose characters the tokeniser knows.
    """
    space = space_token(tokeniser)
    lines, kept = [], []
    for word in sorted(set(words)):
        spelling = tokeniser.encode(word)
        if spelling and tokeniser.decode(spelling) == word:
            kept.append(word)
            ends = [*spelling, *([] if space is None else [space])]
            lines.append(f"{word}\t{' '.join(map(token_name, ends))}\n")
    if not kept:
        raise UsageError("no word of the text can be spelt with the tokens of this head; check --text")
    checkpoint.write_bytes(path, "".join(lines).encode())
    return kept


def torchaudio_decoder() -> Any:
    """What makes a decoder of torchaudio's.

    Raises:
        UsageError: flashlight-text is not installed.
    """
    try:
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            "beam search needs the package flashlight-text: pip install 'speech-featcache[beam]'"
        ) from error
    return ctc_decoder


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """KenLM draws its progress on the process's standard error, below Python; its errors are exceptions."""
    saved = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def decode_all(decoder: BeamDecoder, emissions: Sequence[Tensor]) -> list[str]:
    """The texts of several utterances."""
    return [decoder.text(log_probs) for log_probs in emissions]


__all__ = ["BeamDecoder", "Found", "NEVER", "Search", "decode_all", "token_name", "token_sentence", "write_lexicon"]
