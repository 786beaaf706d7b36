"""A LibriSpeech tree: SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt beside its recordings."""

from __future__ import annotations

import os
from pathlib import Path

from featcache.errors import ManifestError
from featcache.importers._common import infos, lines, seconds
from featcache.manifest import Row, build

SUFFIXES = (".flac", ".wav", ".mp3", ".opus")


def librispeech(root: str | Path) -> list[Row]:
    """Rows of every transcript below `root`: the corpus, a subset of it, or any part of the tree.

    Labels: `speaker`, `chapter`, `subset` (the folder: `train-clean-100`) and `split` (its first word:
    `train`). Raises ManifestError if there is no transcript or a line of one cannot be read.
    """
    folder = Path(os.path.abspath(root))
    found = []
    for transcript in sorted(folder.rglob("*.trans.txt")):
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


def _recording(folder: Path, name: str) -> str:
    for suffix in SUFFIXES:
        if (path := folder / f"{name}{suffix}").exists():
            return str(path)
    return str(folder / f"{name}{SUFFIXES[0]}")
