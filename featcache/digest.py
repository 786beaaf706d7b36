"""Canonical JSON and SHA-256: the one way in which this project names content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces; NaN and infinity are refused (ValueError).

    Python's `repr` of a float is its shortest exact decimal, so equal values give equal bytes.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def sha256(data: bytes | bytearray | memoryview) -> str:
    """Hexadecimal SHA-256 of bytes."""
    return hashlib.sha256(data).hexdigest()


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value."""
    return sha256(canonical_json(value))


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and little-endian bytes of arrays, in the order of their names."""
    h = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        h.update(canonical_json([name, little.dtype.str, list(little.shape)]))
        h.update(little.tobytes())
    return h.hexdigest()


def json_differences(stored: Any, current: Any, path: str = "") -> list[str]:
    """What differs between two JSON values, as `path: stored -> current`."""
    if isinstance(stored, dict) and isinstance(current, dict):
        keys = sorted(set(stored) | set(current))
        return [d for key in keys for d in json_differences(stored.get(key), current.get(key), f"{path}{key}.")]
    return [] if stored == current else [f"{path.rstrip('.')}: {stored!r} -> {current!r}"]
