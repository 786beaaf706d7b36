"""A LibriSpeech tree: SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside its recordings."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from featcache.errors import ManifestError
from featcache.importers._common import infos, lines, seconds
from featcache.manifest import Row, build

SUFFIXES = (".flac", ".wav", ".mp3", ".opus")


def librispeech(root: str | Path) -> list[Row]:
    """Rows of every transcript below `root`: the corpus, a subset of it, or any part of the tree.

    Labels: `speaker`, `chapter`, `subset` (the folder: `train-clean-100`) and `split` (its first word:
    `train`). Links to folders are followed.
    Raises ManifestError if there is no transcript or a line of one cannot be read.
    """
    folder = Path(os.path.abspath(root))
    found = []
    for transcript in sorted(_transcripts(folder)):
        chapter = transcript.parent
        subset = chapter.parent.parent.name
        labels = {
            "speaker": chapter.parent.name,
            "chapter": chapter.name,
            "subset": subset,
            "split": subset.partition("-")[0],
        }
        for number, line in lines(transcript):
            name, _, text = line.strip().partition(" ")
            where = f"{transcript}, line {number}"
            found.append((where, name, _recording(chapter, name), text.strip(), labels))
    if not found:
        raise ManifestError(f"{root} has no *.trans.txt below it: give the folder that holds LibriSpeech")
    info = infos(audio for _, _, audio, _, _ in found)
    return [
        build(where, id=name, audio_filepath=audio, duration=seconds(info[audio]), text=text, labels=labels)
        for where, name, audio, text, labels in found
    ]


def _transcripts(root: Path) -> Iterator[Path]:
    """Every `*.trans.txt` below a folder, links to folders followed.

    Each folder is walked once, under its own name where it has one below `root`: so a loop of links ends, and a link
    beside what it points to adds no row twice.
    """
    seen: set[str] = set()
    todo = [str(root)]
    while todo:
        for folder, below, files in os.walk(todo.pop(0)):
            real = os.path.realpath(folder)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            # os.walk does not enter links: they wait until all real folders are walked.
            todo += sorted(path for name in below if os.path.islink(path := os.path.join(folder, name)))
            yield from (Path(folder, name) for name in files if name.endswith(".trans.txt"))


def _recording(folder: Path, name: str) -> str:
    for suffix in SUFFIXES:
        if (path := folder / f"{name}{suffix}").exists():
            return str(path)
    return str(folder / f"{name}{SUFFIXES[0]}")
