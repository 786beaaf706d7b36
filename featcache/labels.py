"""Which labels a cache can hold: a name becomes a folder below `labels/`, a value a text.

Asked when rows are made, long before the cache would find out: labels are written after all shards. Not asked of
caches, so that older ones open whatever their labels are called.
"""

from __future__ import annotations

import unicodedata

from featcache.index import MISSING
from featcache.layout import LABELS_PROOF

# Names with a meaning of their own below `labels/`, or anywhere in a cache.
TAKEN = ("zarr.json", LABELS_PROOF, "leases")
# Bytes of UTF-8: file systems take 255, some that encrypt names less.
LONGEST_NAME = 255


def check_name(name: str) -> None:
    """Raises ValueError, which says what to do, for a name that cannot be that of a folder in every kind of storage."""
    if not name.strip():
        raise ValueError("is empty: give it a name")
    if any(character in "/\\" or unicodedata.category(character) == "Cc" for character in name):
        raise ValueError("holds a slash, backslash or control character, and names a folder: take it out")
    if name in (".", "..") or name in TAKEN:
        raise ValueError("has a meaning of its own in a cache: choose another name")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"has {len(name.encode())} bytes, and may have {LONGEST_NAME}: choose a shorter name")


def check_text(value: str) -> None:
    """Raises ValueError for the one text that a cache cannot tell from no value (`featcache.index.label_text`)."""
    if value == MISSING:
        raise ValueError("is a single NUL, by which a cache marks that there is no value: write null")
