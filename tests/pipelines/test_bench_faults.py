"""A short run of the fault harness; and that it can tell a sound cache from one that is not."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from featcache.job import Job, Request
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig
from featcache.writer import SegmentWriter
from pipelines.bench import faults
from pipelines.bench.faults.flips import flip_bytes
from pipelines.bench.faults.kills import kill_and_resume
from tests.helpers import contents, make_speech

MEL = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=128))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("speech"), 12)


def test_all_faults_are_survived(speech: Path) -> None:
    plan = faults.Plan(kills=4, flips=60, long_seconds=70, utterances=12)
    found = faults.run(speech, "mel:8", plan)
    assert found["kills"] == found["resumed_identical"] == 4, found["kill_failures"]
    assert found["flips_detected"] + found["flips_harmless"] == 60 and not found["flips_silent"], found["flip_failures"]
    assert found["crashed"] == 0, found["input_failures"]
    assert found["quarantined"] >= 11 and found["used"] == 10 and found["refused"] == 5


def test_silent_flips_are_noticed(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Job(speech, tmp_path / "c", MEL).extract()
    # A reader without any check takes every changed byte for data.
    monkeypatch.setattr("pipelines.bench.faults.flips.reading", contents)
    found = flip_bytes(tmp_path / "c", 10, random.Random(2), tmp_path)
    assert found["flips_silent"] > 5 and len(found["flip_failures"]) == found["flips_silent"]


def test_a_job_that_does_not_resume_is_noticed(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(speech, tmp_path / "c", MEL)
    job.extract()
    monkeypatch.setattr(SegmentWriter, "records", lambda self: {})
    found = kill_and_resume(speech, tmp_path / "c", MEL, job.upstream, 1, random.Random(1), tmp_path)
    assert found["kills"] == 1 and found["resumed_identical"] == 0 and found["kill_failures"]


def test_the_command_prints_one_line_for_a_mistake(speech: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines.bench", "faults", "--manifest", str(speech), "--utterances", "99"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    assert ran.returncode == 2 and "lower --utterances" in ran.stderr and len(ran.stderr.splitlines()) == 1
