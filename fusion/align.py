"""When each character and word was said: forced alignment by a trained CTC head, from the cache alone.

CTC marks where a token is recognised, not how long it lasts: a token spans a frame of logits or a few, and a word
runs from its first token to its last. Stretches of speech are words with no long pause between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from featcache.errors import UsageError
from featcache.store import Cache
from fusion import checkpoint, labels, outputs, text
from fusion.emissions import emissions
from fusion.run import Run
from fusion.tasks import CtcTask
from fusion.tasks.tag import Span

PAUSE = 0.3
"""Seconds without a word that end a stretch of speech."""


@dataclass(frozen=True)
class Alignment:
    """One utterance. Its spans are labels of task `tag`."""

    id: str
    tokens: tuple[Span, ...]
    words: tuple[Span, ...]
    speech: tuple[Span, ...]
    log_probability: float
    """Mean over tokens, in nats: a low one means that the text is not what was said."""

    def to_json(self) -> dict[str, Any]:
        spans = {name: [list(span) for span in getattr(self, name)] for name in ("tokens", "words", "speech")}
        return {"id": self.id, **spans, "log_probability": round(self.log_probability, 4)}


def write(
    run: Run, out: Path, *, pause: float = PAUSE, dry_run: bool = False
) -> tuple[int, tuple[labels.Skipped, ...]]:
    """Align the train, dev and test rows of a run's recipe with their texts, into JSON Lines keyed by id.

    Args:
        dry_run: only count; reads no features and writes nothing.

    Returns:
        How many were aligned, and the rows that could not be.

    Raises:
        UsageError: the run is not of task `ctc`, or there can be no such file.
    """
    if not isinstance(run.task, CtcTask):
        raise UsageError(f"run {run.path} is of task {run.task.kind!r}; alignment needs one of task 'ctc'")
    if not dry_run:
        outputs.check_file(out)
    cache = run.open_cache()
    selection = labels.select(cache, run.recipe)
    skipped = list(selection.skipped)
    found: dict[str, Alignment] = {}
    ids: list[str] = []
    for name, examples in selection.splits.items():
        split = labels.prepare(examples, name, run.task, run.head.output_frames(examples), learn=True)
        skipped += split.skipped
        ids += split.ids
        if not dry_run:
            found.update((one.id, one) for one in _align(run, run.task, cache, split, pause))
    if not dry_run:
        checkpoint.write_json_lines(out, [found[id_].to_json() for id_ in ids])
    return len(ids), tuple(skipped)


def _align(run: Run, task: CtcTask, cache: Cache, split: labels.Split, pause: float) -> Iterator[Alignment]:
    """In order of length, not of the split."""
    for position, log_probs in emissions(run, cache, split):
        target = split.targets[position]
        yield align_one(split.ids[position], log_probs, target, task.tokeniser, run.logit_rate, pause)


def align_one(
    id_: str, log_probs: Tensor, target: Sequence[int], tokeniser: text.Tokeniser, frame_rate: float, pause: float
) -> Alignment:
    """The most likely alignment of tokens with log probabilities float32 (frames, outputs), `frame_rate` a second."""
    spans = align_tokens(log_probs, target)
    tokens = [Span(tokeniser.decode([span.token]), *_times(span.start, span.end, frame_rate)) for span in spans]
    words = [Span(word.text, word.start, word.end) for word in words_of(spans, tokeniser, frame_rate)]
    mean = sum(span.score for span in spans) / max(len(spans), 1)
    return Alignment(id_, tuple(tokens), tuple(words), tuple(_stretches(words, pause)), mean)


class TokenSpan(NamedTuple):
    """A token over frames `start .. end` of the logits; `score` is its mean log probability there."""

    token: int
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Word:
    """A word with its times in seconds.

    `confidence` is the geometric mean of its tokens' probabilities, from 0 to 1: what the head says of itself,
    not how often it is right.
    """

    text: str
    start: float
    end: float
    confidence: float


def align_tokens(log_probs: Tensor, target: Sequence[int]) -> list[TokenSpan]:
    """Where each token lies in the most likely alignment with log probabilities float32 (frames, outputs)."""
    from torchaudio import functional

    if not target:
        return []
    path, scores = functional.forced_align(log_probs.unsqueeze(0), torch.tensor([list(target)]), blank=text.BLANK)
    merged = functional.merge_tokens(path[0], scores[0], blank=text.BLANK)
    return [TokenSpan(span.token, span.start, span.end, span.score) for span in merged]


def words_of(spans: Sequence[TokenSpan], tokeniser: text.Tokeniser, frame_rate: float) -> list[Word]:
    """The words that aligned tokens spell; white space belongs to none."""
    words: list[list[tuple[str, TokenSpan]]] = []
    within = False
    for span in spans:
        piece = tokeniser.piece(span.token)
        said = piece.strip()
        if said:
            if not within or piece[0].isspace():
                words.append([])
            words[-1].append((said, span))
        within = bool(said) and not piece[-1].isspace()
    return [_word(word, frame_rate) for word in words]


def _word(pieces: Sequence[tuple[str, TokenSpan]], frame_rate: float) -> Word:
    spans = [span for _, span in pieces]
    times = _times(spans[0].start, spans[-1].end, frame_rate)
    return Word("".join(said for said, _ in pieces), *times, math.exp(sum(s.score for s in spans) / len(spans)))


def _times(start: int, end: int, frame_rate: float) -> tuple[float, float]:
    """Seconds of frames."""
    return round(start / frame_rate, 4), round(end / frame_rate, 4)


def _stretches(words: Sequence[Span], pause: float) -> list[Span]:
    found: list[Span] = []
    for word in words:
        if found and word.start - found[-1].end < pause:
            found[-1] = Span("speech", found[-1].start, word.end)
        else:
            found.append(Span("speech", word.start, word.end))
    return found


__all__ = ["PAUSE", "Alignment", "TokenSpan", "Word", "align_one", "align_tokens", "words_of", "write"]
