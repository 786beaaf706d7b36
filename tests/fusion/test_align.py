"""Forced alignment from a cache, and a tagger that is trained on it."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fusion import Run, recipe
from fusion import train as training
from fusion.align import TokenSpan, align_one, words_of
from fusion.cli import app
from fusion.tasks.tag import Span
from fusion.text import CharTokeniser, SentencePieceTokeniser, Tokeniser
from tests.fusion.speech import toy_cache, toy_recipe


def emissions(path: list[int], outputs: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(path), outputs).float().mul(9).log_softmax(-1)


def test_tokens_words_and_stretches_of_speech_have_their_times() -> None:
    tokeniser = CharTokeniser((" ", "a", "b"))
    path = [0, 2, 2, 0, 3, 0, 1, 3, 0, 0, 0, 0, 0, 0, 1, 2]  # "ab b a"
    found = align_one("u", emissions(path, 4), tokeniser.encode("ab b a"), tokeniser, 10.0, 0.3)
    assert [token.name for token in found.tokens] == ["a", "b", " ", "b", " ", "a"]
    assert found.tokens[0] == Span("a", 0.1, 0.3)
    assert found.words == (Span("ab", 0.1, 0.5), Span("b", 0.7, 0.8), Span("a", 1.5, 1.6))
    assert found.speech == (Span("speech", 0.1, 0.8), Span("speech", 1.5, 1.6))
    assert -0.01 < found.log_probability <= 0


@pytest.mark.parametrize("kind", ["char", "sentencepiece"])
def test_words_are_those_of_the_text_whatever_the_tokens(kind: str) -> None:
    text = "the cat sat on the mat"
    tokeniser: Tokeniser = (
        CharTokeniser.train([text]) if kind == "char" else SentencePieceTokeniser.train([text, "mat cat"], 20)
    )
    target = tokeniser.encode(text)
    path = [value for token in target for value in (token, 0)]
    found = align_one("u", emissions(path, tokeniser.size), target, tokeniser, 50.0, 0.3)
    assert [word.name for word in found.words] == text.split()
    assert all(a.end <= b.start for a, b in zip(found.words, found.words[1:], strict=False))


@pytest.mark.parametrize("kind", ["char", "sentencepiece"])
def test_words_are_those_of_the_text_whatever_a_head_says(kind: str) -> None:
    texts = ["the cat sat on the mat", "mat cat", "a sad dot"]
    tokeniser: Tokeniser = CharTokeniser.train(texts) if kind == "char" else SentencePieceTokeniser.train(texts * 3, 20)
    draw = random.Random(0)
    for length in [0, 1, 2, 3, *range(4, 40)] * 5:
        said = [draw.randrange(1, tokeniser.size) for _ in range(length)]
        spans = [TokenSpan(token, i, i + 1, -0.5) for i, token in enumerate(said)]
        found = words_of(spans, tokeniser, 1.0)
        assert [word.text for word in found] == tokeniser.decode(said).split()
        held = [second for word in found for second in range(int(word.start), int(word.end))]
        assert held == [i for i in range(length) if tokeniser.piece(said[i]).strip()]
        assert all(word.confidence == pytest.approx(0.6065, abs=1e-4) for word in found)


def test_an_hour_of_words_takes_no_longer_than_its_length() -> None:
    text = "speech goes on " * 3000
    tokeniser = CharTokeniser.train([text])
    spans = [TokenSpan(token, i, i + 1, -0.5) for i, token in enumerate(tokeniser.encode(text))]
    began = time.process_time()
    assert len(words_of(spans, tokeniser, 50.0)) == 9000
    assert time.process_time() - began < 10  # some minutes where every token decodes all before it


def test_a_tagger_learns_from_the_alignment_of_a_transcriber(tmp_path: Path) -> None:
    cache = toy_cache(tmp_path / "cache")
    text = toy_recipe(cache, 40, "linear")
    run = training.fit(recipe.parse(text, ["decoder.stack=1", "train.workers=0"]), runs=tmp_path / "runs")
    out = tmp_path / "alignment.jsonl"
    tried = CliRunner().invoke(app, ["align", str(run.path), "-o", str(out), "--dry-run"])
    assert tried.exit_code == 0 and tried.stdout == f"would align 56 utterances into {out}\n" and not out.exists()
    done = CliRunner().invoke(app, ["align", str(run.path), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert summary["aligned"] == len(records) == 45 + 6 + 5
    assert summary["skipped"] == {
        "more labels than frames": 2, "quarantined in the cache": 1, "empty text after normalisation": 1,
    }  # fmt: skip
    assert records[0]["id"] == "u0000" and records[0]["words"] and records[0]["speech"][0][0] == "speech"
    tags = ["task.kind=tag", "task.label=tokens", f"task.labels_file={out}", "name=tags", "decoder.stack=1"]
    tagger = training.fit(recipe.parse(text, tags), runs=tmp_path / "runs")
    metrics = tagger.metrics()
    assert metrics["task"] == "tag" and metrics["utterances"] == 5 and metrics["frame_accuracy"] > 0.6
    assert set(metrics["classes"]) == {"<none>", "a", "b", "c", "d", " "}
    row = json.loads(tagger.files.utterances.read_text().splitlines()[0])
    assert sum(count[1] for count in row["counts"].values()) == row["frames"]
    assert Run.open(tagger.path).evaluate().metrics["macro_f1"] == metrics["macro_f1"]
    refused = CliRunner().invoke(app, ["align", str(tagger.path), "-o", str(tmp_path / "x")])
    assert refused.exit_code == 2 and "needs one of task 'ctc'" in refused.stderr
