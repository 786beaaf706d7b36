"""Beam search for a trained head: language models from the training texts, weights tuned on dev, scores on test.

Three searches stand beside greedy decoding: without any language model, with an n-gram model of tokens, and with
a lexicon and an n-gram model of its words. All that they need is kept in the run's folder `decoding`, so that
`load` gives the same decoder again.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from featcache.errors import UsageError
from fusion import checkpoint, evaluate, intervals, labels
from fusion.beam import (
    NEVER,
    BeamDecoder,
    Search,
    decode_all,
    token_sentence,
    torchaudio_decoder,
    write_lexicon,
)
from fusion.emissions import emissions
from fusion.ngram import NGram
from fusion.run import Run
from fusion.tasks import CtcTask
from fusion.text import normalise

GREEDY, BEAM, TOKENS, LEXICON = "greedy", "beam", "beam-lm", "lexicon-lm"
TITLES = {
    GREEDY: "greedy",
    BEAM: "beam",
    TOKENS: "beam, LM of tokens",
    LEXICON: "lexicon, LM of words",
}
TOKEN_ORDER = 6
"""Of the tokens' model; KenLM's usual limit."""
TUNE_UTTERANCES = 300
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    TOKENS: {"lm_weight": (0.5, 0.75, 1.0, 1.5, 2.0)},
    LEXICON: {
        "lm_weight": (0.5, 0.75, 1.0, 1.5, 2.0),
        "word_score": (-1.0, 0.0, 1.0, 2.0),
        "unknown_score": (NEVER, -6.0, -3.0, -1.0, 0.0),
    },
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Split:
    """Utterances of a split: ids, references, and log probabilities (frames, outputs) each."""

    ids: tuple[str, ...]
    references: tuple[str, ...]
    emissions: tuple[Tensor, ...]

    def thinned(self, most: int) -> Split:
        """At most so many utterances, evenly spread."""
        if len(self.ids) <= most:
            return self
        chosen = np.linspace(0, len(self.ids) - 1, most).round().astype(int)
        return Split(
            tuple(self.ids[i] for i in chosen),
            tuple(self.references[i] for i in chosen),
            tuple(self.emissions[i] for i in chosen),
        )

    def table(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        return [row.to_json() for row in evaluate.utterance_table(self.ids, self.references, texts)]


def decode(
    run: Run,
    *,
    beam: int = Search().beam,
    order: int = 3,
    lm: Path | None = None,
    text: Path | None = None,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Tune every search on dev, score it on test, store and return the results (JSON-able).

    Args:
        order: words of the longest n-gram of the words' model.
        lm: an ARPA or KenLM file of words in place of the words' model made here.
        text: a file of further text, a sentence a line, for both models and the lexicon.

    Raises:
        UsageError: the run is not of task `ctc`, test is empty, flashlight-text is missing, a file is wrong.
    """
    if not isinstance(run.task, CtcTask):
        raise UsageError(f"run {run.path} is of task {run.task.kind!r}; beam search needs one of task 'ctc'")
    torchaudio_decoder()  # before all that would be for nothing without it
    task = run.task
    selection = labels.select(run.open_cache(), run.recipe)
    train = [clean for label in selection.labels("train") if (clean := normalise(label, task.normalise))]
    more = _further_text(text, task.normalise) if text else []
    decoders = _prepare(run, task, [*train, *more], order, lm)
    dev, test = (_emit(run, task, selection, name) for name in ("dev", "test"))
    words = [word for reference in test.references for word in reference.split()]
    tuning = dev.thinned(TUNE_UTTERANCES)
    rows: list[dict[str, Any]] = []
    tables: dict[str, list[dict[str, Any]]] = {}
    for name in TITLES:
        began = time.monotonic()
        if name == GREEDY:
            row: dict[str, Any] = {"decoder": name}
            texts, dev_texts = ([_greedy(task, one) for one in split.emissions] for split in (test, dev))
        else:
            search, tried = tune(decoders[name], tuning, Search(beam=beam), GRIDS.get(name, {}), name, say)
            decoder = decoders[name](search)
            tuned_for = time.monotonic() - began
            began = time.monotonic()
            texts = decode_all(decoder, test.emissions)
            row = {"decoder": name, "search": search.to_json(), "tried": tried, "tune_seconds": round(tuned_for, 2)}
            row["seconds"] = round(time.monotonic() - began, 3)
            dev_texts = decode_all(decoder, dev.emissions)
        row["dev"] = task.measure(dev.references, dev_texts)
        scores, tables[name] = task.report(test.ids, test.references, texts)
        row |= {key: scores[key] for key in ("wer", "wer_ci95", "cer", "cer_ci95")}
        for measure in task.measures if name != GREEDY else ():
            here, there = measure.statistic(tables[name]), measure.statistic(tables[GREEDY])
            row[f"{measure.name}_difference"] = list(intervals.difference(here, there, len(test.ids)))
        rows.append(row)
        say(f"{TITLES[name]}: dev WER {row['dev']['wer']:.4f}")
    vocabulary = set(_words(run.files.decoding / "lexicon.txt"))
    result = {
        "run": str(run.path),
        "split": "test",
        "utterances": len(test.ids),
        "words": len(words),
        "unknown_words": sum(word not in vocabulary for word in words) / max(len(words), 1),
        "lexicon": len(vocabulary),
        "text": {"train": len(train), "further": len(more)},
        "lm": str(lm.resolve()) if lm else "words.arpa",
        "order": order,
        "tuned_on": len(tuning.ids),
        "normalise": task.normalise,
        "rows": rows,
    }
    for name, table in tables.items():
        checkpoint.write_json_lines(run.files.decoding / f"{name}.jsonl", table)
    checkpoint.write_json(run.files.decoding / "results.json", result)
    return result


def best_tokens(log_probs: Tensor) -> list[int]:
    """Greedy decoding of log probabilities (frames, outputs): the tokens of the best path."""
    (tokens,) = evaluate.greedy_ctc(log_probs.unsqueeze(0), torch.tensor([len(log_probs)]))
    return tokens


def _greedy(task: CtcTask, log_probs: Tensor) -> str:
    return task.tokeniser.decode(best_tokens(log_probs))


def load(run: Run, name: str) -> BeamDecoder:
    """The decoder `beam`, `beam-lm` or `lexicon-lm` of a run, as `decode` has tuned it.

    Raises:
        UsageError: there is no such decoder, or `fusion decode` has not been run.
    """
    place = run.files.decoding / "results.json"
    if name not in TITLES or name == GREEDY:
        raise UsageError(f"decoder {name!r} is not allowed, use {' or '.join(TITLES)}")
    if not isinstance(run.task, CtcTask) or not place.exists():
        raise UsageError(f"run {run.path} has no tuned decoder: `fusion decode {run.path}` makes it")
    result: dict[str, Any] = checkpoint.read_json(place)
    (row,) = (row for row in result["rows"] if row["decoder"] == name)
    lm = None if result["lm"] == "words.arpa" else Path(result["lm"])
    return _decoders(run, run.task, lm)[name](Search.from_json(row["search"]))


def tune(
    build: Callable[[Search], BeamDecoder],
    dev: Split,
    start: Search,
    grid: Mapping[str, Sequence[float]],
    name: str,
    say: Say,
) -> tuple[Search, int]:
    """The search of least WER on dev, and how many were tried.

    One weight after the other takes the best of its values, until a round changes nothing. Of equals the first
    tried stays.
    """
    known: dict[Search, float] = {}

    def cost(search: Search) -> float:
        if search not in known:
            rows = dev.table(decode_all(build(search), dev.emissions))
            known[search] = sum(row["word_errors"] for row in rows) / max(sum(row["words"] for row in rows), 1)
            say(f"{TITLES[name]}: {_settings(search, name)}: dev WER {known[search]:.4f}")
        return known[search]

    best = dataclasses.replace(start, lm_weight=1.0) if grid else start
    changed = bool(grid)
    while changed:
        changed = False
        for weight, values in grid.items():
            changes: list[dict[str, Any]] = [{weight: value} for value in values]
            candidates = [best, *(dataclasses.replace(best, **change) for change in changes)]
            better = min(candidates, key=cost)
            changed, best = changed or better != best, better
    return best, len(known)


def _settings(search: Search, name: str) -> str:
    if name != LEXICON:
        return f"LM {search.lm_weight:g}"
    unknown = "forbidden" if search.unknown_score == NEVER else f"{search.unknown_score:g}"
    return f"LM {search.lm_weight:g}, word {search.word_score:g}, unknown word {unknown}"


def _prepare(
    run: Run, task: CtcTask, texts: Sequence[str], order: int, lm: Path | None
) -> dict[str, Callable[[Search], BeamDecoder]]:
    """Write language models and lexicon into the run's folder."""
    place = run.files.decoding
    write_lexicon(place / "lexicon.txt", (word for text in texts for word in text.split()), task.tokeniser)
    NGram((token_sentence(task.tokeniser, text) for text in texts), TOKEN_ORDER).write(place / "tokens.arpa")
    if lm is None:
        NGram((text.split() for text in texts), order).write(place / "words.arpa")
    return _decoders(run, task, lm)


def _decoders(run: Run, task: CtcTask, lm: Path | None) -> dict[str, Callable[[Search], BeamDecoder]]:
    place = run.files.decoding
    return {
        BEAM: lambda search: BeamDecoder(task.tokeniser, search),
        TOKENS: lambda search: BeamDecoder(task.tokeniser, search, lm=place / "tokens.arpa"),
        LEXICON: lambda search: BeamDecoder(
            task.tokeniser, search, lm=lm or place / "words.arpa", lexicon=place / "lexicon.txt"
        ),
    }


def _emit(run: Run, task: CtcTask, selection: labels.Selection, name: str) -> Split:
    examples = selection.splits[name]
    split = labels.prepare(examples, name, task, run.head.output_frames(examples))
    if not len(split):
        raise UsageError(f"{name} has no usable row in {run.recipe.cache}")
    found = dict(emissions(run, run.open_cache(), split))
    return Split(split.ids, split.references, tuple(found[i] for i in range(len(split))))


def _further_text(path: Path, rule: str) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"--text {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--text {path} is not UTF-8: convert it with iconv") from error
    return [clean for line in lines if (clean := normalise(line, rule))]


def _words(lexicon: Path) -> Iterable[str]:
    return (line.split("\t")[0] for line in lexicon.read_text(encoding="utf-8").splitlines())


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """The searches side by side, a table a measure, for 80 columns."""
    for measure in ("wer", "cer"):
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("decoding")
        for column in (measure.upper(), "95 %", "- greedy", "95 %"):
            table.add_column(column, justify="right")
        for row in result["rows"]:
            cells = [f"{row[measure]:.3f}", "{:.3f}, {:.3f}".format(*row[f"{measure}_ci95"])]
            if difference := row.get(f"{measure}_difference"):
                cells += [f"{difference[0]:+.3f}", f"{difference[1]:+.3f}, {difference[2]:+.3f}"]
            table.add_row(TITLES[row["decoder"]], *cells)
        console.print(table)
    for row in result["rows"]:
        if row.get("tried", 0) > 1:
            search = Search.from_json(row["search"])
            console.print(
                f"{TITLES[row['decoder']]}: {_settings(search, row['decoder'])}, beam {search.beam}", highlight=False
            )
    console.print(
        f"test: {result['utterances']} utterances, {result['unknown_words']:.1%} of {result['words']:,} words are not "
        f"among the lexicon's {result['lexicon']:,}; weights tuned on {result['tuned_on']} utterances of dev",
        highlight=False,
        soft_wrap=True,
    )


__all__ = ["GREEDY", "TITLES", "best_tokens", "decode", "load", "print_result", "tune"]
