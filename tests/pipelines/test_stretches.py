"""Where a long recording's text is cut."""

from __future__ import annotations

import torch

from pipelines.transcribe import stretches

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


def test_nothing_gives_nothing() -> None:
    assert list(stretches([], RATE)) == []
