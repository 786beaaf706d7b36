"""Which labels a cache can hold: a name becomes a folder below `labels/`, a value a text.

Asked when rows are made, long before the cache would find out: labels are written after all shards. Not asked of
caches, so that older ones open whatever their labels are called.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING

from featcache.errors import UsageError
from featcache.index import MISSING
from featcache.layout import LABELS_PROOF

if TYPE_CHECKING:
    from featcache.storage import Storage

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


def check_columns(names: Iterable[str], storage: Storage) -> None:
    """Refuse labels whose folders would be one: `Lang` and `lang` where a disk ignores case, as many of macOS do.

    Raises:
        UsageError: there are two such labels, and the cache is to lie on such a disk.
    """
    by_folder: dict[str, str] = {}
    for name in sorted(names):
        other = by_folder.setdefault(name.casefold(), name)
        if other != name and storage.ignores_case():
            raise UsageError(
                f"labels {other!r} and {name!r} differ only in case, which the disk of {storage} ignores: rename one "
                "in the manifest"
            )


def check_text(value: str) -> None:
    """Raises ValueError for the one text that a cache cannot tell from no value (`featcache.index.label_text`)."""
    if value == MISSING:
        raise ValueError("is a single NUL, by which a cache marks that there is no value: write null")
