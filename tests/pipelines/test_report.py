"""The page about runs: what is in it, and that a real browser shows it, plays it and asks nothing of the network."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import soundfile

from featcache import manifest
from featcache.errors import UsageError
from pipelines import report
from pipelines.layers import Attention, Curve, Layers
from pipelines.rate import Cell, Point
from pipelines.studies import Score

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def run_folder(path: Path, task: str, rows: list[dict[str, Any]], **metrics: Any) -> Path:
    """A finished run as `fusion` leaves it, with the training curves of one that was killed and resumed."""
    from torch.utils.tensorboard import SummaryWriter

    path.mkdir(parents=True)
    shared = {
        "task": task, "split": "test", "name": path.name, "fuser": "hff", "decoder": "blstm", "hours": 0.1,
        "fusion_parameters": 875_022, "decoder_parameters": 1_000_000, "utterances": len(rows), "best_step": 20,
        "seconds": 90.0, "upstream": "package:whisper-base", "profile": "int8",
    }  # fmt: skip
    (path / "metrics.json").write_text(json.dumps(shared | metrics))
    (path / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with SummaryWriter(str(path / "tb")) as writer:
        for step in (10, 20):
            for tag in ("dev/wer", "dev/loss", "train/loss"):
                writer.add_scalar(tag, 10 / step, step)
    return path


def said(id_: str, *steps: tuple[str, str, str]) -> dict[str, Any]:
    """A row of a transcription's table from its alignment."""
    errors = sum(mark != "" for mark, _, _ in steps)
    reference, hypothesis = (" ".join(step[i] for step in steps if step[i]) for i in (1, 2))
    return {
        "id": id_, "reference": reference, "hypothesis": hypothesis, "words": len(reference.split()),
        "word_errors": errors, "characters": len(reference), "character_errors": errors,
        "alignment": [list(step) for step in steps],
    }  # fmt: skip


def around(**values: float) -> dict[str, Any]:
    """Scores with intervals."""
    return values | {f"{name}_ci95": [value - 0.1, value + 0.1] for name, value in values.items()}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of every kind of section; utterance `b` has the most errors, and no recording."""
    root = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    rows = []
    for i, id_ in enumerate(("a", "b", "c")):
        if id_ != "b":
            soundfile.write(root / f"{id_}.wav", rng.uniform(-0.3, 0.3, 8000 * (i + 1)), 16_000)
        labels = {"lang": "it" if i else "en"}
        rows.append(manifest.Row(id=id_, audio_filepath=f"{id_}.wav", duration=0.5 * (i + 1), text="x", labels=labels))
    manifest.write(root / "manifest.jsonl", rows)
    same = ("", "press", "press")
    tables = {
        "first": [
            said("a", same, ("S", "one", "<b>won</b>")),
            said("b", same, ("D", "now", ""), ("I", "", "then")),
            said("c", same, same),
        ],
        "second": [said("a", same, ("", "one", "one")), said("b", same, ("D", "now", "")), said("c", same, same)],
    }
    runs = [run_folder(root / name, "ctc", table, **around(wer=0.5, cer=0.2)) for name, table in tables.items()]
    classes = [
        {"id": "a", "reference": "en", "hypothesis": "it", "correct": 0, "log_posteriors": {"en": -2.3, "it": -0.1}},
        {"id": "b", "reference": "it", "hypothesis": "it", "correct": 1, "log_posteriors": {"en": -2.3, "it": -0.1}},
    ]
    of_classes = around(accuracy=0.5, macro_f1=0.5, eer=0.5)
    confusion = {"en": {"en": 0, "it": 1}, "it": {"en": 0, "it": 1}}
    runs.append(run_folder(root / "lang", "classify", classes, confusion=confusion, **of_classes))
    tags = [
        {"id": "a", "reference": '[["speech",0.0,0.5]]', "hypothesis": '[["speech",0.1,0.4]]', "frames": 25,
         "correct": 15, "counts": {"speech": [15, 25, 15]}}
    ]  # fmt: skip
    runs.append(run_folder(root / "vad", "tag", tags, **around(frame_accuracy=0.6, macro_f1=0.6)))
    cell = Cell(0.4, (0.4,), None)
    points = [
        Point("int8", 7.4, 10, 5.9, {"asr wer": cell}),
        Point("r", 1.0, 1, 0.8, {"asr wer": Cell(0.5, (0.5,), (0.2, 0.1, 0.3))}),
    ]
    (root / "rate.json").write_text(json.dumps([point.as_json() for point in points]))
    score = Score(0.5, (0.4, 0.6), (0.5,))
    layers = Layers(
        "package:whisper-base", ("0", "1"), (Curve("asr", "wer", "WER", False, (score, score)),),
        ((1.0, 0.5), (0.5, 1.0)), 100, (Attention("runs/asr", "hff", "ctc", ("0", "1"), (0.1, 0.9), 1.0, (0.0, 0.5)),),
    )  # fmt: skip
    (root / "layers.json").write_text(json.dumps(layers.as_json()))
    sources = report.Sources(root / "manifest.jsonl", root / "rate.json", root / "layers.json")
    report.write(report.build(runs, sources), root / "out" / "report.html")
    return root / "out" / "report.html"


def test_the_page_is_one_file(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [path.name for path in page.parent.iterdir()] == ["report.html"]
    links = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    inside = ("#", "data:audio/mpeg;base64,", "data:image/png;base64,")
    assert [link for link in links if not link.startswith(inside)] == []
    assert sum(link.startswith("data:audio") for link in links) == 3  # `a` for each of three tasks
    assert "<b>won</b>" not in text and "&lt;b&gt;won&lt;/b&gt;" in text
    assert not re.search(r"@import|url\(\s*['\"]?http", text)


def test_errors_are_sorted_marked_and_heard(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    errors = text[text.index('id="ctc-errors"') : text.index('id="classify"')]
    assert re.findall(r'data-id="(\w)"', errors) == ["b", "a"]  # c has none
    assert "<del>now</del>" in errors and "<ins>then</ins>" in errors
    assert errors.count("<audio") == 1 and "No recording: " in errors
    assert "WER by lang" in text


def test_a_run_is_better_or_worse_only_outside_the_interval(tmp_path: Path) -> None:
    """Fewer right by one in twenty: many resamples lack that one, so that the interval ends at zero, as it begins there
    the other way round. Neither is a difference."""

    def verdicts(wrong: dict[str, int], reference: str = "en") -> tuple[bool | None, ...]:
        """Of the second run on accuracy and the equal error rate; so many hypotheses of each are wrong."""
        runs = []
        for name, count in wrong.items():
            said_of = ["it" if i < count else "en" for i in range(20)]
            rows = [
                {"id": str(i), "reference": reference, "hypothesis": said, "correct": int(said == reference),
                 "log_posteriors": {"en": -0.1, "it": -2.4}}
                for i, said in enumerate(said_of)
            ]  # fmt: skip
            runs.append(run_folder(tmp_path / name, "classify", rows, **around(accuracy=0.9, macro_f1=0.9, eer=0.1)))
        [section] = report.build(runs, report.Sources()).sections
        accuracy, _, eer = section.lines[1].cells
        return accuracy.better, eer.better

    assert verdicts({"a": 0, "b": 1}) == verdicts({"c": 1, "d": 0}) == (None, None)
    assert verdicts({"e": 0, "f": 12})[0] is False and verdicts({"g": 12, "h": 0})[0] is True
    # Without a trial of a known class no error rate is defined, and so no difference of two.
    assert verdicts({"i": 0, "j": 0}, reference="ru") == (None, None)


def test_what_cannot_be_reported_is_said(page: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to report"):
        report.build([], report.Sources())
    with pytest.raises(UsageError, match="is not the folder of a run"):
        report.build([tmp_path], report.Sources())
    (tmp_path / "rate.json").write_text('{"rows": []}')
    with pytest.raises(UsageError, match=r"rate\.json is not what it should be"):
        report.build([page.parents[1] / "first"], report.Sources(rate=tmp_path / "rate.json"))
    with pytest.raises(UsageError, match=r"layers\.json.*is not the JSON of `pipelines layers`|cannot be read"):
        report.build([page.parents[1] / "first"], report.Sources(layers=tmp_path / "layers.json"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium; FEATCACHE_REQUIRE_BROWSER turns a missing one from a skip into a failure."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    missing = []
    if program is None:
        missing.append("no Chromium: `apt-get install chromium-headless-shell`")
    if importlib.util.find_spec("playwright") is None:
        missing.append("no playwright: `pip install playwright`")
    if missing:
        if os.environ.get("FEATCACHE_REQUIRE_BROWSER"):
            pytest.fail("; ".join(missing), pytrace=False)
        pytest.skip("; ".join(missing))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_browser_shows_it(page: Path, browser: Browser) -> None:
    tab = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="dark")
    tab.set_default_timeout(120_000)
    said_: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said_.append(message.text))
    tab.on("pageerror", lambda error: said_.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page.as_uri())
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    drawn = tab.evaluate("[...document.querySelectorAll('figure svg')].map((e) => e.getBoundingClientRect().height)")
    assert len(drawn) == 3 + 2 + 3 and min(drawn) > 100
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1200
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
    )
    dark = tab.evaluate(colours)
    tab.click("#theme")
    light = tab.evaluate(colours)
    assert dark[0] != light[0] and dark[1] != light[1]
    # A player holds the whole recording.
    seconds = tab.evaluate("""new Promise((done) => {
        const player = document.querySelector("audio");
        player.onloadedmetadata = () => done(player.duration);
        player.onerror = () => done(-1);
        if (player.readyState > 0) done(player.duration);
    })""")
    assert seconds == pytest.approx(0.5, abs=0.15)
    # Order and search work on what is there.
    shown = "[...document.querySelectorAll('#ctc-errors .example')].filter((e) => !e.hidden).map((e) => e.dataset.id)"
    assert tab.evaluate(shown) == ["b", "a"]
    tab.select_option("#ctc-errors .order", "seconds")
    tab.select_option("#ctc-errors .order", "id")
    assert tab.evaluate(shown) == ["a", "b"]
    tab.fill("#ctc-errors .find", "then")
    assert tab.evaluate(shown) == ["b"]
    assert said_ == []
    tab.set_viewport_size({"width": 390, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
