"""Dutch dialogues of the game Fish Fillets as a manifest: acted, with sound effects, and hard.

A level's script pairs `dialogId("ID", "font_ROLE", "English")` with the `dialogStr("Dutch")` that follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from featcache import manifest
from featcache.errors import JobError
from pipelines.demo.prompts import durations
from pipelines.demo.splits import split_rows

_STRING = r'"((?:[^"\\]|\\.)*)"'
_ENTRY = re.compile(
    rf"dialogId\(\s*{_STRING}\s*,\s*{_STRING}\s*,\s*{_STRING}\s*\)\s*dialogStr\(\s*{_STRING}\s*\)", re.DOTALL
)


@dataclass(frozen=True)
class Line:
    """One spoken line: its id, who speaks ("small", "big", ...), Dutch text, English translation."""

    id: str
    role: str
    text: str
    translation: str


def parse(script: str) -> list[Line]:
    """The lines of one level's `dialogs_nl.lua`; of two lines with the same id the first counts."""
    lines: dict[str, Line] = {}
    for match in _ENTRY.finditer(re.sub(r"(?m)^\s*--.*$", "", script)):
        line_id, font, english, dutch = (_unescape(part) for part in match.groups())
        lines.setdefault(line_id, Line(line_id, font.removeprefix("font_"), dutch, english))
    return list(lines.values())


def _unescape(text: str) -> str:
    return " ".join(re.sub(r"\\(.)", lambda m: " " if m.group(1) in "nt\n" else m.group(1), text).split())


def rows(share: Path, *, console: Console | None = None) -> list[manifest.Row]:
    """The manifest's rows, with labels lang, role, level, translation and split.

    Levels are split as a whole, and two levels that share a sentence go together.
    """
    base = share / "games" / "fillets-ng"
    found: list[tuple[str, Line, Path]] = []
    for script in sorted(base.glob("script/*/dialogs_nl.lua")):
        level = script.parent.name
        for line in parse(script.read_text(encoding="utf-8")):
            path = base / "sound" / level / "nl" / f"{line.id}.ogg"
            if path.is_file() and line.text:
                found.append((level, line, path))
    if not found:
        raise JobError(f"no dialogues below {base}: run `pipelines demo dialogues`")
    seconds = durations([path for _, _, path in found], console=console)
    splits = split_rows([level for level, _, _ in found], [line.text for _, line, _ in found])
    return [
        manifest.Row(
            id=f"nl/{level}/{line.id}",
            audio_filepath=f"audio/{level}/nl/{line.id}.ogg",
            duration=duration,
            text=line.text,
            labels={
                "lang": "nl",
                "role": line.role,
                "level": level,
                "translation": line.translation,
                "split": split,
            },
        )
        for (level, line, _), duration, split in zip(found, seconds, splits, strict=True)
    ]
