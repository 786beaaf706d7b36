"""Where the time went: spans of threads, and the budget of an extraction."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featcache.cli import app
from featcache.errors import UsageError
from featcache.spans import Span, Spans, tracing
from featcache.startup import check_trace
from tests.helpers import make_speech, run_cli


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


def test_a_trace_that_cannot_be_written_loses_no_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speech = make_speech(tmp_path, 2, seconds=1)
    place, file = tmp_path / "cache", tmp_path / "file"
    file.write_bytes(b"")
    for path in (tmp_path, file / "trace.json"):
        refused = run_cli("extract", speech, place, "-u", "mel:8", "--profile-trace", path)
        assert refused.status == 2 and f"--profile-trace {path}: no file can be written there" in refused.err
        assert not place.exists()
    # What is there is not touched by the look at it, and a folder is made.
    check_trace(file)
    check_trace(tmp_path / "new" / "trace.json")
    assert file.read_bytes() == b"" and list((tmp_path / "new").iterdir()) == []
    # One that became impossible while the work was done is said to be lost.
    with tracing(tmp_path / "gone" / "trace.json") as spans, spans.span("work"):
        pass
    assert "no trace:" in capsys.readouterr().err
