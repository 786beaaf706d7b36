"""What to transcribe: files, folders of recordings and manifests, and how files about the recordings are called."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache import manifest
from featcache.audio import SUFFIXES
from featcache.errors import AudioError, UsageError
from featcache.reading import recording as recording_of

MANIFESTS = (".jsonl", ".json")


@dataclass(frozen=True)
class Recording:
    """A recording or a part of one. `name`, relative and without suffix, is that of files about it."""

    name: str
    path: Path
    offset: float = 0.0
    duration: float | None = None
    id: str = ""
    """In the manifest; empty for a file."""

    @classmethod
    def of(cls, path: str | Path) -> Recording:
        return cls(Path(path).stem, Path(path))

    def as_json(self) -> dict[str, Any]:
        given: dict[str, Any] = {"audio_filepath": str(self.path)}
        if self.id:
            given = {"id": self.id} | given
        return given | ({} if self.duration is None else {"offset": self.offset})

    def __str__(self) -> str:
        return self.id or str(self.path)


def find(sources: Iterable[Path]) -> list[Recording]:
    """The recordings of files, of folders and all below them, and of manifests (`.jsonl`), in this order.

    Raises:
        UsageError: a folder without recordings.
        ManifestError: a manifest that cannot be read.
    """
    return [one for source in sources for one in _of(source)]


def check_names(recordings: Iterable[Recording], ignores_case: bool) -> None:
    """Refuse two recordings whose files in one folder would replace each other.

    Args:
        ignores_case: names that differ only in case are one there.

    Raises:
        UsageError: there are two.
    """
    named: dict[str, Recording] = {}
    for one in recordings:
        other = named.setdefault(one.name.casefold() if ignores_case else one.name, one)
        if other is not one:
            raise UsageError(f"{other} and {one} would both be written to {one.name}.txt; give them one at a time")


def _of(source: Path) -> Iterator[Recording]:
    if source.is_dir():
        paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
        if not paths:
            raise UsageError(f"{source} has no recordings below it; give a folder of audio files")
        for path in paths:
            yield Recording(path.relative_to(source).with_suffix("").as_posix(), path)
    elif source.suffix.lower() in MANIFESTS:
        for row in manifest.read(source):
            if row.view is not None:
                continue  # no recording of its own
            try:
                path = recording_of(row, source)
            except AudioError as error:
                raise UsageError(f"{source}, {row.id}: {error}") from error
            length = row.duration if row.is_part else None
            yield Recording(_safe(row.id), path, row.offset, length, row.id)
    else:
        yield Recording.of(source)


def _safe(name: str) -> str:
    """An id as the name of a file below a folder: nothing in it leads out."""
    return "/".join(part for part in name.split("/") if part not in ("", os.curdir, os.pardir)) or "_"
