"""What all importers need: lines of text, durations of many recordings, paths as other tools mean them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from featcache.audio import AudioInfo, probe
from featcache.errors import AudioError, ManifestError


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
