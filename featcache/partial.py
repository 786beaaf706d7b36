"""The mark of a partial copy: a cache of which only some shards were pulled.

Index, labels, ledger and seals of a partial copy are whole, so that it opens and lists everything; reading a row
whose shard is not there is an error that names where it came from. The mark lies in `log/`, which is
part of no digest, and holds a URL without keys or endpoint.
"""

from __future__ import annotations

import json

from featcache import layout
from featcache.errors import CorruptCacheError
from featcache.storage import Storage

MARK = f"{layout.LOG}/partial.json"


def read_origin(storage: Storage) -> str | None:
    """The URL that a partial copy was pulled from; None for every other cache."""
    data = storage.read(MARK)
    if data is None:
        return None
    try:
        return str(json.loads(data)["origin"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCacheError(
            f"{storage}/{MARK} is damaged: run the same `featcache pull` again, or remove it if the copy is whole"
        ) from error


def write_origin(storage: Storage, origin: str | None) -> None:
    """Mark a copy as a part of `origin`; None takes the mark away."""
    if origin is None:
        storage.delete(MARK)
    else:
        storage.write(MARK, json.dumps({"origin": origin}).encode())
