"""Memory stays flat over many utterances and over a long one; and the harness tells growth from none."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featcache.errors import UsageError
from featcache.manifest import read
from pipelines.bench import memory
from tests.helpers import make_speech


def test_a_line_through_the_samples_after_the_start() -> None:
    seconds = np.arange(101.0)
    flat = np.where(seconds < 20, 100 + 20 * seconds, 500) * 1e6
    found = memory.flatness(np.stack([seconds, flat], 1))
    assert found["peak_mb"] == 500 and found["grown_mb"] == 0 and found["slope_mb_per_minute"] == 0
    assert not memory.grew(found)
    found = memory.flatness(np.stack([seconds, flat + 2e6 * seconds], 1))
    assert found["grown_mb"] == 150 and found["slope_mb_per_minute"] == 120
    assert memory.grew(found)


def test_a_job_of_a_moment_is_all_warm_up() -> None:
    seconds = np.linspace(0, 1, 6)
    assert not memory.grew(memory.flatness(np.stack([seconds, 1e9 * seconds], 1)))


def test_parts_are_of_real_recordings_by_offset(tmp_path: Path) -> None:
    speech = make_speech(tmp_path, 3, seconds=1.3)
    made = memory.parts(read(speech), speech, 7)
    assert [row.offset for row in made] == [0, 0.6, 0, 0.6, 0, 0.6, 0] and len({row.id for row in made}) == 7
    assert all(Path(row.audio_filepath).is_file() for row in made)
    with pytest.raises(UsageError, match="no recording of 0.6 s"):
        memory.parts(read(make_speech(tmp_path, 3, seconds=0.2)), speech, 7)


def test_many_utterances_and_a_long_one(tmp_path: Path) -> None:
    """Small; the full size is the command's default."""
    speech = make_speech(tmp_path, 6, seconds=2)
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines.bench", "memory", "--json", "--manifest", str(speech),
         "--upstream", "mel:8", "--utterances", "500", "--long-seconds", "5400"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False,
    )  # fmt: skip
    found = json.loads(ran.stdout)
    assert ran.returncode == 0 and not found["failures"], ran.stdout + ran.stderr
    assert found["many"]["utterances"] == 500 and found["many"]["frames"] == 500 * 60
    assert found["long"]["audio_seconds"] == 5400 and found["long"]["frames"] == 540_000
    # Windows of it, not the whole, which is 346 MB. Peaks of moments differ by up to 170.
    assert found["long"]["peak_mb"] < found["many"]["peak_mb"] + 300
