"""Words as subtitles."""

from __future__ import annotations

from fusion.align import Word
from pipelines.subtitles import LINE, cues, srt


def words(text: str, start: float = 0.0, each: float = 0.4) -> list[Word]:
    return [Word(w, start + i * each, start + i * each + 0.3, 1.0) for i, w in enumerate(text.split())]


def test_a_cue_ends_at_a_pause_at_two_lines_and_at_six_seconds() -> None:
    found = cues([*words("one two"), *words("three", 5.0)])
    assert [text for _, _, text in found] == ["one two", "three"]
    long = words(" ".join(["syllables"] * 12), each=0.35)
    assert all(len(text) <= 2 * LINE + 1 for _, _, text in cues(long)) and len(cues(long)) == 2
    slow = cues(words("a b c d e f g h i j k l", each=0.9))
    assert all(end - start <= 6.5 for start, end, _ in slow) and len(slow) == 2
    assert " ".join(text for _, _, text in slow) == "a b c d e f g h i j k l"


def test_cues_do_not_overlap_and_stay_a_little() -> None:
    found = cues([*words("one two"), *words("three four", 1.55), *words("five", 9.0)])
    assert all(a[1] <= b[0] for a, b in zip(found, found[1:], strict=False))
    assert found[-1][1] > 9.3


def test_subrip() -> None:
    text = srt([Word("hello", 3661.5, 3662.0, 0.9), Word("world", 3662.0, 3662.25, 0.9)])
    assert text == "1\n01:01:01,500 --> 01:01:02,750\nhello world\n"
    assert srt([]) == ""
    assert srt([*words("one"), *words("two", 9.9996)]).splitlines()[4:6] == ["2", "00:00:10,000 --> 00:00:10,800"]
