"""Where the time went: spans of threads, and the budget of an extraction."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featcache.cli import app
from featcache.errors import UsageError
from featcache.spans import Span, Spans
from tests.helpers import make_speech


def test_the_main_thread_adds_up_to_the_wall_and_others_run_beside_it(tmp_path: Path) -> None:
    spans = Spans()
    main = threading.current_thread().name
    spans.begin = 10.0
    spans.found += [Span("forward", main, 10, 12), Span("write", "w", 11, 14), Span("forward", main, 12.5, 13)]
    assert spans.budget(4.0) == ({"forward": 2.5, "other": 1.5}, {"write": 3.0})
    spans.write(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == [main, "w"]
    assert [(e["name"], e["tid"], e["ts"], e["dur"]) for e in events if e["ph"] == "X"] == [
        ("forward", 0, 0, 2e6), ("write", 1, 1e6, 3e6), ("forward", 0, 2.5e6, 0.5e6),
    ]  # fmt: skip


def test_waiting_for_items_and_failures_are_spans_too() -> None:
    spans = Spans()
    assert list(spans.each("wait", iter("ab"))) == ["a", "b"]
    with pytest.raises(ValueError, match="no"), spans.span("forward"):
        raise ValueError("no")
    assert [span.name for span in spans.found] == ["wait"] * 3 + ["forward"]
    off = Spans(enabled=False)
    with off.span("forward"):
        pass
    assert not off.found


def test_an_extraction_says_where_its_time_went(tmp_path: Path) -> None:
    speech = make_speech(tmp_path, 4, seconds=1)
    path = tmp_path / "trace.json"
    wanted = ["extract", str(speech), str(tmp_path / "cache"), "--upstream", "mel:8", "--profile-trace", str(path)]
    ran = CliRunner().invoke(app, wanted)
    assert ran.exit_code == 0, ran.output
    for part in ("forward", "wait for audio", "other", "in all", "beside it: read", "beside it: write", str(path)):
        assert part in ran.stderr
    names = {event["name"] for event in json.loads(path.read_text())["traceEvents"]}
    assert {"read", "forward", "copy", "encode", "write"} <= names
    refused = CliRunner().invoke(app, [*wanted, "--workers", "2"])
    assert isinstance(refused.exception, UsageError) and "one process" in str(refused.exception)
