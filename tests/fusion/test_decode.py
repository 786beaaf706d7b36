"""`fusion decode`: tuned on dev, scored on test, kept with the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from featcache.errors import UsageError
from fusion import Run, decode, recipe
from fusion import train as training
from fusion.beam import Found, Search
from fusion.cli import app
from tests.fusion.speech import toy_cache, toy_recipe
from tests.helpers import needs_beam


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("decode")
    text = toy_recipe(toy_cache(root / "cache"), 40, "linear")
    return training.fit(recipe.parse(text, ["decoder.stack=1", "train.workers=0"]), runs=root / "runs")


@needs_beam
def test_four_ways_side_by_side_kept_with_the_run(run: Run, tmp_path: Path) -> None:
    further = tmp_path / "more.txt"
    further.write_text("ab cd!\n\nd c\n")
    done = call("decode", run.path, "--beam", "8", "--text", further, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    rows = {row["decoder"]: row for row in result["rows"]}
    assert list(rows) == ["greedy", "beam", "beam-lm", "lexicon-lm"]
    assert result["utterances"] == 6 and result["tuned_on"] == 6 and result["text"] == {"train": 46, "further": 2}
    greedy = run.evaluate().metrics
    assert (rows["greedy"]["wer"], rows["greedy"]["wer_ci95"]) == (greedy["wer"], greedy["wer_ci95"])
    for name, row in rows.items():
        assert row["wer_ci95"][0] <= row["wer"] <= row["wer_ci95"][1]
        table = [json.loads(line) for line in (run.files.decoding / f"{name}.jsonl").read_text().splitlines()]
        errors = sum(line["word_errors"] for line in table) / sum(line["words"] for line in table)
        assert row["wer"] == pytest.approx(errors)
        if name != "greedy":
            assert row["wer_difference"][0] == pytest.approx(row["wer"] - rows["greedy"]["wer"])
    words = {line.split("\t")[0] for line in (run.files.decoding / "lexicon.txt").read_text().splitlines()}
    spoken = [json.loads(line) for line in (run.files.decoding / "lexicon-lm.jsonl").read_text().splitlines()]
    unknown = [word for line in spoken for word in line["reference"].split() if word not in words]
    assert result["unknown_words"] == pytest.approx(len(unknown) / result["words"])
    assert json.loads((run.files.decoding / "results.json").read_text()) == result
    # the same decoder again, from the folder alone
    again = decode.load(Run.open(run.path), "lexicon-lm")
    assert all(word in words for word in again.text(torch.zeros(4, run.task.outputs)).split())
    table = call("decode", run.path, "--beam", "8")
    assert "lexicon, LM of words" in table.stdout and "tuned on 6 utterances of dev" in table.stdout
    lines = [line for line in table.stdout.splitlines() if not line.startswith("test:")]
    assert max(map(len, lines)) <= 80


def test_test_is_not_looked_at_while_tuning() -> None:
    """Weights follow the errors on the utterances that are given, and nothing else."""

    class Fake:
        """A decoder that is right at one setting only."""

        def __init__(self, search: Search) -> None:
            self.search = search

        def text(self, log_probs: torch.Tensor) -> str:
            right = {"lm_weight": 2.0, "word_score": -1.0}
            return (
                "a b"
                if all(getattr(self.search, k) == v for k, v in right.items())
                else ("a c" if self.search.lm_weight == 2.0 else "c c")
            )

        def __call__(self, log_probs: torch.Tensor) -> Found:
            raise NotImplementedError

    dev = decode.Split(("u",), ("a b",), (torch.zeros(1, 2),))
    grid = {"lm_weight": (0.5, 2.0), "word_score": (-1.0, 0.0, 1.0)}
    lines: list[str] = []
    best, tried = decode.tune(Fake, dev, Search(beam=3), grid, "lexicon-lm", lines.append)  # type: ignore[arg-type]
    assert best == Search(3, 2.0, -1.0)
    assert tried == len(lines) and tried < 2 * 3 * 2


def test_thinned_is_even() -> None:
    whole = decode.Split(tuple("abcdefghi"), tuple("abcdefghi"), tuple(torch.zeros(9, 1, 1)))
    assert whole.thinned(3).ids == ("a", "e", "i") and whole.thinned(9) is whole


@needs_beam
def test_mistakes_are_one_line(run: Run, tmp_path: Path) -> None:
    done = call("decode", run.path, "--text", tmp_path / "none.txt")
    assert done.exit_code == 2 and "none.txt cannot be read" in done.stderr
    (tmp_path / "bad.arpa").write_text("no")
    done = call("decode", run.path, "--lm", tmp_path / "bad.arpa")
    assert done.exit_code == 2 and "bad.arpa cannot be used" in done.stderr
    with pytest.raises(UsageError, match="use greedy or beam or beam-lm or lexicon-lm"):
        decode.load(run, "best")


def test_without_the_package_it_says_so_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise UsageError("install it")

    monkeypatch.setattr(decode, "torchaudio_decoder", missing)
    with pytest.raises(UsageError, match="install it"):
        decode.decode(run, say=pytest.fail)
