"""Which segments were taken out of a cache, or replaced: no old copy is to bring them back.

Kept are digests of their seals, which say nothing of anybody. Like all of the log the list is part of no digest, and
each copy has its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from featcache import layout
from featcache.digest import canonical_json
from featcache.errors import CacheError, MismatchError
from featcache.ledger import FileProof
from featcache.storage import Storage

FORGOTTEN = f"{layout.LOG}/forgotten.json"
SEAL = "/seal.json"


def remember(storage: Storage, seal: str) -> None:
    """Add the digest of the seal of a segment that is about to go."""
    storage.write(FORGOTTEN, canonical_json(sorted(_parse(storage.read(FORGOTTEN)) | {seal})))


def refuse_return(source: object, wanted: Mapping[str, FileProof], target: object, known: bytes | None) -> None:
    """Segments that were forgotten at the target do not come back with a copy.

    Args:
        wanted: every file of the source and what it must be.
        known: the target's list, None where it has none.

    Raises:
        MismatchError: the source still has one.
    """
    forgotten = _parse(known)
    back = next((key for key in sorted(wanted) if key.endswith(SEAL) and wanted[key].sha256 in forgotten), None)
    if back is not None:
        raise MismatchError(
            f"{source} holds {back.removesuffix(SEAL)} as it was before something in it was forgotten in {target}: "
            f"`featcache forget {source} --where ...` the same; if it is to come back, delete {target}/{FORGOTTEN}"
        )


def refuse_half_forgotten(place: object, marked: bool) -> None:
    """A cache from which a removal is under way is no whole one, to read, copy or tidy up.

    Args:
        marked: whether `place` has the mark of one, `layout.PENDING`.

    Raises:
        CacheError: it has.
    """
    if marked:
        raise CacheError(f"{place}: a `featcache forget` was interrupted: run it again before this")


def _parse(data: bytes | None) -> set[str]:
    """Nothing, where the list is damaged."""
    try:
        return {str(seal) for seal in json.loads(data or b"[]")}
    except (ValueError, TypeError):
        return set()
