"""Where a local model lies: the place is no part of what it is, so a folder or a checkpoint may be moved."""

from __future__ import annotations

import os
import re
from pathlib import Path

from featcache.upstreams.base import UpstreamConfig

COMMIT = re.compile(r"[0-9a-f]{40}")


def local_path(text: str) -> Path:
    """A path with its `~`; as it stands where no such user has a home."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def folder_of(config: UpstreamConfig) -> Path | None:
    """The folder of `hf:FOLDER`, whether or not it is there; None for all other models, the hub's too."""
    family, _, name = config.id.partition(":")
    if family != "hf" or not name:
        return None
    folder = local_path(name)
    pinned = config.revision is not None or COMMIT.fullmatch(name.partition("@")[2])
    return None if pinned and not folder.is_dir() else folder


def absolute(config: UpstreamConfig) -> UpstreamConfig:
    """The same model by paths that mean the same in every working directory; what is not there stays as written."""
    folder = folder_of(config)
    update: dict[str, str] = {}
    if folder is not None and folder.is_dir():
        update["id"] = f"hf:{os.path.abspath(folder)}"
    if config.weights is not None:
        update["weights"] = os.path.abspath(config.weights)
    return config.model_copy(update=update)


def moved(asked: UpstreamConfig, stored: UpstreamConfig) -> UpstreamConfig:
    """The stored model at the place that is asked for, where both have one on this machine.

    Whether it is the same model is for its identity to say.
    """
    update: dict[str, str] = {}
    if folder_of(asked) is not None and folder_of(stored) is not None:
        update["id"] = asked.id
    if asked.weights is not None and stored.weights is not None:
        update["weights"] = asked.weights
    return absolute(stored.model_copy(update=update))


def stamps(config: UpstreamConfig) -> list[tuple[str, int, int]]:
    """Path, bytes and date (ns) of the files of a local model: others where it was replaced. Empty for all others."""
    folder = folder_of(config)
    files = [] if folder is None or not folder.is_dir() else sorted(folder.iterdir())
    if config.weights is not None:
        files.append(Path(config.weights))
    found = ((path, path.stat()) for path in files if path.is_file())
    return [(str(path), status.st_size, status.st_mtime_ns) for path, status in found]


def missing(config: UpstreamConfig) -> str | None:
    """What is not where the configuration says, and the options that name another place; None where all is there."""
    folder = folder_of(config)
    if folder is not None and not folder.is_dir():
        return f"the folder {folder} of its model is not there: name the one it is in now, --upstream hf:FOLDER"
    if config.weights is not None and not Path(config.weights).exists():
        return (
            f"the checkpoint {config.weights} of its model is not there: name the one it is in now, "
            f"--upstream {config.id} --weights FILE"
        )
    return None
