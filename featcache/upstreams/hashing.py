"""SHA-256 of weights: of files, remembered between runs, and of a state dict."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor


def memo_path() -> Path:
    """Where digests of files are remembered: `$XDG_CACHE_HOME/featcache/sha256.json`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "featcache" / "sha256.json"


def sha256_of_files(paths: Sequence[Path]) -> str:
    """SHA-256 (hex) of the files' bytes one after the other.

    Remembered by path, size, inode and times, so that unchanged weights are hashed once. A modification time alone
    may be any that a program sets: archives and copies keep it, and models of one architecture are of one size.
    """
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    key = json.dumps([[name, s.st_size, s.st_ino, s.st_mtime_ns, s.st_ctime_ns] for name, s in stats])
    known = _read_memo()
    if key not in known:
        digest = hashlib.sha256()
        for path in paths:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        known[key] = digest.hexdigest()
        _write_memo(known)
    return known[key]


def sha256_of_parts(paths: Sequence[Path]) -> str:
    """SHA-256 of weights kept in several files: that of the file alone, or of their sorted digests."""
    digests = sorted(sha256_of_files([path]) for path in paths)
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def sha256_of_state(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names in order, each with its dtype, shape and bytes: the same however it was stored."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_memo() -> dict[str, str]:
    try:
        memo = json.loads(memo_path().read_text())
    except (OSError, ValueError):
        return {}
    return memo if isinstance(memo, dict) else {}


def _write_memo(memo: dict[str, str]) -> None:
    """Replace the memo in one step; a home that cannot be written costs time, never correctness."""
    path = memo_path()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(memo, file)
        os.replace(file.name, path)
