"""Where a long recording's text is cut, and what cannot be transcribed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch

from featcache import upstreams
from featcache.errors import AudioError, UsageError
from featcache.geometry import Geometry
from fusion.run import Run
from pipelines.transcribe import Transcriber, stretches

RATE = 10.0


def log_probs(said: str) -> torch.Tensor:
    """One frame a character; `.` is blank."""
    return torch.nn.functional.one_hot(torch.tensor([int(c != ".") for c in said]), 2).float()


def cut(said: str, piece: int) -> list[tuple[int, int]]:
    found = list(stretches(log_probs(said).split(piece), RATE))
    assert torch.equal(torch.cat([part for _, part in found]), log_probs(said))
    return [(start, len(part)) for start, part in found]


def test_a_short_recording_is_read_whole() -> None:
    assert cut("x" * 599 + ".", 100) == [(0, 600)]


def test_the_first_pause_after_twenty_seconds_ends_a_stretch() -> None:
    said = "x" * 100 + "." * 10 + "x" * 140 + "." * 6 + "x" * 700
    for piece in (7, 50, 10_000):
        assert cut(said, piece)[0] == (0, 253)


def test_without_a_pause_the_longest_gap_and_without_any_the_limit() -> None:
    gap = "x" * 300 + ".." + "x" * 100 + "..." + "x" * 400
    assert cut(gap, 64)[0] == (0, 403)
    assert cut("x" * 1500, 64) == [(0, 600), (600, 600), (1200, 300)]


def test_a_word_is_not_cut_where_there_is_a_space_to_cut_beside() -> None:
    """A drawn-out word pauses within: its two halves came out as two words."""
    tokens = torch.zeros(700, dtype=torch.int64)  # blanks
    for begin, end in ((0, 240), (246, 300), (303, 700)):
        tokens[begin:end] = 1
    tokens[302:304] = 2  # a space, behind two blanks
    made = torch.nn.functional.one_hot(tokens, 3).float()
    assert [start for start, _ in stretches(made.split(50), RATE)] == [0, 243]
    assert [start for start, _ in stretches(made.split(50), RATE, space=2)] == [0, 301]
    tokens[302:304] = 1  # no space at all: as without one
    made = torch.nn.functional.one_hot(tokens, 3).float()
    assert [start for start, _ in stretches(made.split(50), RATE, space=2)] == [0, 243]


def test_nothing_gives_nothing() -> None:
    assert list(stretches([], RATE)) == []


def test_a_recording_whose_activations_are_not_numbers_is_an_error() -> None:
    """As in extraction, which leaves it out: its text would be empty, as that of silence."""

    class Upstream:
        taps = ("0", "1", "final")
        geometry = Geometry.whisper()

        def forward(self, waves: list[np.ndarray]) -> list[np.ndarray]:
            made = np.zeros((self.geometry.frames(len(waves[0])), 3, 4), np.float32)
            if np.abs(waves[0]).max() > 1e20:
                made[-1, 1:] = np.nan
            return [made]

    run = SimpleNamespace(spec=SimpleNamespace(taps=("0",), channels=4))
    transcriber = Transcriber(cast(Run, run), cast(upstreams.Upstream, Upstream()))
    waves = np.ones(16_000, np.float32)
    assert transcriber.features(waves).shape == (50, 1, 4)
    with pytest.raises(AudioError, match="activations are not finite from tap 1 on"):
        transcriber.features(1e30 * waves)


@pytest.mark.parametrize("device", ["cuda:99", "cudax", "tpu"])
def test_a_device_that_is_not_there_is_refused_first(device: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="^--device: "):
        Transcriber.load(tmp_path, device=device)
