"""What runs got wrong, utterance by utterance, the worst of the first run first."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.report.recordings import Recording, Recordings
from pipelines.studies import Finished

Row = Mapping[str, Any]
MARKS = {"": "same", "S": "substituted", "D": "deleted", "I": "inserted"}


@dataclass(frozen=True)
class Lane:
    """Spans on a line of time: name, start and width as percentages of the utterance."""

    spans: tuple[tuple[str, float, float], ...]


@dataclass(frozen=True)
class Answer:
    """What one run said of an utterance.

    `words` are (what happened, reference word, word said); `lane` is for tags; `text` for all else.
    """

    run: str
    verdict: str
    text: str = ""
    words: tuple[tuple[str, str, str], ...] = ()
    lane: Lane | None = None


@dataclass(frozen=True)
class Example:
    """An utterance, and what each run said of it. `errors` and `share` are of the first run."""

    id: str
    reference: str
    lane: Lane | None
    labels: Mapping[str, str]
    recording: Recording | None
    errors: float
    share: float
    answers: tuple[Answer, ...]


def worst(runs: Mapping[str, Finished], count: int, recordings: Recordings | None) -> list[Example]:
    """The utterances on which the first run made the most errors, `count` at most; those without any are left out.

    Args:
        runs: of one task, by the name to show.
    """
    first = next(iter(runs.values()))
    kind = str(first.metrics["task"])
    judged = sorted(
        ((*_cost(kind, row), row) for row in first.table.values()), key=lambda one: (-one[0], -one[1], one[2]["id"])
    )
    return [_example(kind, errors, share, row, runs, recordings) for errors, share, row in judged[:count] if errors > 0]


def _example(
    kind: str, errors: float, share: float, row: Row, runs: Mapping[str, Finished], recordings: Recordings | None
) -> Example:
    id_ = row["id"]
    recording = recordings.get(id_) if recordings else None
    end = _end(row, runs) if kind == "tag" else 0.0
    return Example(
        id=id_,
        reference="" if kind == "tag" else row["reference"],
        lane=_lane(row["reference"], end) if kind == "tag" else None,
        labels=recordings.labels(id_) if recordings else {},
        recording=recording,
        errors=errors,
        share=share,
        answers=tuple(_answer(kind, name, run.table[id_], end) for name, run in runs.items() if id_ in run.table),
    )


def _cost(kind: str, row: Row) -> tuple[float, float]:
    """Errors, and errors by what could be wrong."""
    if kind == "ctc":
        return float(row["word_errors"]), row["word_errors"] / max(row["words"], 1)
    if kind == "tag":
        wrong = row["frames"] - row["correct"]
        return float(wrong), wrong / max(row["frames"], 1)
    sure = math.exp(row["log_posteriors"][row["hypothesis"]])
    return (0.0, 0.0) if row["correct"] else (sure, sure)


def _answer(kind: str, name: str, row: Row, end: float) -> Answer:
    errors, share = _cost(kind, row)
    if kind == "ctc":
        words = tuple((MARKS[mark], reference, said) for mark, reference, said in row["alignment"])
        return Answer(name, f"{errors:.0f} of {row['words']} words", row["hypothesis"], words)
    if kind == "tag":
        return Answer(name, f"{share:.0%} of {row['frames']} frames wrong", lane=_lane(row["hypothesis"], end))
    sure = math.exp(row["log_posteriors"][row["hypothesis"]])
    verdict = "right" if row["correct"] else "wrong"
    return Answer(name, f"{verdict}, {sure:.0%} sure", row["hypothesis"])


def _end(row: Row, runs: Mapping[str, Finished]) -> float:
    """The last moment of any span, for a line of time that fits them all."""
    texts = [row["reference"], *(run.table[row["id"]]["hypothesis"] for run in runs.values() if row["id"] in run.table)]
    return max((span[2] for text in texts for span in json.loads(text)), default=1.0)


def _lane(text: str, end: float) -> Lane:
    spans: Sequence[tuple[str, float, float]] = json.loads(text)
    return Lane(tuple((name, 100 * start / end, 100 * (stop - start) / end) for name, start, stop in spans))
