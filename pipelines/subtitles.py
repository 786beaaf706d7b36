"""Words with times as subtitles: cues, and the SubRip format."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from fusion.align import Word

LINE, LINES = 42, 2
"""Characters of a line and lines of a cue."""
LONGEST = 6.0
"""Seconds of a cue."""
PAUSE = 0.8
"""Seconds without a word that end a cue."""
STAY = 0.5
"""Seconds that a cue stays after its last word, unless the next begins."""


def cues(words: Sequence[Word]) -> list[tuple[float, float, str]]:
    """Start, end and text of each cue, in order, not overlapping."""
    if not words:
        return []
    groups: list[list[Word]] = []
    for word in words:
        group = groups[-1] if groups else []
        text = " ".join(w.text for w in [*group, word])
        if (
            group
            and word.start - group[-1].end < PAUSE
            and word.end - group[0].start <= LONGEST
            and len(textwrap.wrap(text, LINE)) <= LINES
        ):
            group.append(word)
        else:
            groups.append([word])
    starts = [group[0].start for group in groups[1:]] + [float("inf")]
    return [
        (group[0].start, max(min(group[-1].end + STAY, following), group[-1].end), " ".join(w.text for w in group))
        for group, following in zip(groups, starts, strict=True)
    ]


def srt(words: Sequence[Word]) -> str:
    """A SubRip file; empty without words."""
    blocks = [
        f"{number}\n{_clock(start)} --> {_clock(end)}\n" + "\n".join(textwrap.wrap(text, LINE)) + "\n"
        for number, (start, end, text) in enumerate(cues(words), start=1)
    ]
    return "\n".join(blocks)


def _clock(seconds: float) -> str:
    """Hours, minutes, seconds and milliseconds: 00:01:02,500."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d},{milliseconds:03d}"
