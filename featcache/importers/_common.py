"""What importers share: lines of text, durations of many recordings, paths and labels as other tools mean them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from featcache.audio import AudioInfo, probe
from featcache.errors import AudioError, ManifestError
from featcache.manifest import FIELDS

RENAMED = {
    "client_id": "speaker", "speaker_id": "speaker", "locale": "lang", "language": "lang", "accents": "accent",
    "labels": "label",
}  # fmt: skip
"""What others call a label, and what it is called here."""


def infos(paths: Iterable[str]) -> dict[str, AudioInfo | None]:
    """Length and form of each recording by its path; None for one that cannot be read.

    A row of such a recording is kept with a duration of 0: extraction quarantines it and says why.
    """

    def info(path: str) -> AudioInfo | None:
        try:
            return probe(path)
        except AudioError:
            return None

    unique = list(dict.fromkeys(paths))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(unique, pool.map(info, unique), strict=True))


def seconds(info: AudioInfo | None) -> float:
    """Duration of a whole recording, 0.0 for one that cannot be read."""
    return info.duration if info is not None else 0.0


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank, without its line break."""
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    yield number, line
    except UnicodeDecodeError:
        raise ManifestError(f"{path}, line {number}: not UTF-8: convert the file with iconv") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}: check the path") from error


def located(path: str, folder: Path) -> str:
    """An absolute path. A relative one is meant from the working directory, else from `folder`."""
    if not os.path.isabs(path) and not os.path.exists(path):
        return os.path.abspath(folder / path)
    return os.path.abspath(path)


def described(column: str, value: object) -> bool:
    """Whether a column is kept as a label with this value: not under the name of a manifest's own field.

    Data sets have columns `duration` or `text` of their own; the row has both from its recording and its text.
    """
    if column in FIELDS:
        return False
    return value is None or (isinstance(value, float) and math.isfinite(value)) or isinstance(value, str | int)


def label_names(columns: Iterable[str]) -> dict[str, str]:
    """The label of each column: its usual name, or its own where another column has the usual one already.

    Give the columns of all rows at once, so that a label means the same in each of them.
    """
    own = list(dict.fromkeys(columns))
    names: dict[str, str] = {}
    for column in own:
        usual = RENAMED.get(column, column)
        names[column] = column if usual in own or usual in names.values() else usual
    return names


def keep_audio(folder: Path, name: str, data: bytes | None, path: str) -> str:
    """The path of a recording that is inside a data set, written as it is to FOLDER/NAME with the suffix of `path`.

    Without data it is the file that `path` names, where it lies. One that is written already is left as it is, so
    that an import can be repeated or go on; its bytes decide, since recordings of two data sets may agree in name
    and length.

    Raises:
        ManifestError: the name leads out of the folder, a file with other bytes has it, or it cannot be written.
    """
    if data is None:
        return os.path.abspath(path) if path else os.path.abspath(folder / name)
    if os.path.isabs(name) or os.pardir in Path(name).parts or "\0" in name:
        raise ManifestError(f"the name {name!r} leads out of {folder}: rename it in the data set")
    target = folder / (name + os.path.splitext(path)[1].lower())
    try:
        if target.exists():
            if target.stat().st_size != len(data) or target.read_bytes() != data:
                raise ManifestError(f"{target} is another recording: give this data set its own folder with --audio")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            half = target.with_name(f".{target.name}.half")
            half.write_bytes(data)
            half.replace(target)
    except OSError as error:
        raise ManifestError(f"{target} cannot be written: {error.strerror}: choose another --audio") from error
    return os.path.abspath(target)
