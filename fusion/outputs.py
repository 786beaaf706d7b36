"""Files that long work writes at its end; whether they can be is seen before it begins."""

from __future__ import annotations

import os
from pathlib import Path

from featcache.errors import JobError, UsageError


def check_file(path: Path) -> None:
    """Make the folder of a file that is to be written, or say why the file cannot be.

    Raises:
        UsageError: it is a folder, or its own folder cannot be made or written to.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; give the name of a file")
    if not path.exists():
        check_folder(path.parent)
    elif not os.access(path, os.W_OK):
        raise UsageError(f"{path} cannot be written to; give another name")


def check_folder(path: Path) -> None:
    """Make a folder that is to be written to.

    Raises:
        UsageError: it cannot be made or written to.
    """
    for place in (path, *path.parents):
        if place.exists() and not place.is_dir():
            raise UsageError(f"nothing can be written below {place}, which is a file; give another place")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"folder {path} cannot be made: {error.strerror}; give another place") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UsageError(f"folder {path} cannot be written to; give another place")


def write(path: Path, data: bytes) -> None:
    """Write or replace a file, which may be a device such as /dev/stdout.

    Raises:
        JobError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise JobError(f"{path} cannot be written: {error.strerror}; mend that and run it again") from error
