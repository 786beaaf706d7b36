"""A folder of recordings, with no table beside them."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from featcache.audio import SUFFIXES
from featcache.errors import ManifestError
from featcache.importers._common import infos, seconds
from featcache.manifest import Row, build


def folder(root: str | Path) -> list[Row]:
    """Rows of every recording below `root`, in the order of their paths; hidden files and folders are passed over.

    The id is the path below `root` without its suffix, and with it where that leaves several the same. The text is
    that of NAME.txt beside NAME.wav, where there is one. Label `folder`: that of the recording below `root`, null for
    `root` itself: often the speaker or the class.

    Raises:
        ManifestError: there is no recording, or a text is not UTF-8.
    """
    top = Path(os.path.abspath(root))
    found = sorted(
        path
        for path in top.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in path.relative_to(top).parts)
        and not path.is_dir()
    )
    if not found:
        raise ManifestError(f"{root} has no recordings below it: give a folder of audio files")
    shared = Counter(path.with_suffix("") for path in found)
    info = infos(str(path) for path in found)
    rows = []
    for path in found:
        name = path.relative_to(top)
        parent = name.parent.as_posix()
        rows.append(
            build(
                str(path),
                id=(name if shared[path.with_suffix("")] > 1 else name.with_suffix("")).as_posix(),
                audio_filepath=str(path),
                duration=seconds(info[str(path)]),
                text=_text(path.with_suffix(".txt")),
                labels={"folder": None if parent == os.curdir else parent},
            )
        )
    return rows


def _text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return " ".join(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise ManifestError(f"{path} is not UTF-8: convert the file with iconv") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}: check its permissions") from error
