"""Taking recordings out of a cache: they leave every shard, index, label and ledger record.

Segments are immutable, so each that holds one of them is written anew, without it, in a folder of its
own. A marker then says that all of these are whole, and only after it are the old ones removed and the
new ones moved to their place. Killed before the marker, nothing has changed; killed after it, the cache
does not open until the same command has moved the rest.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache import layout
from featcache.digest import canonical_json, sha256
from featcache.errors import CacheError, CorruptCacheError, MismatchError, NotPulledError, UsageError
from featcache.forgotten import remember
from featcache.index import VIEW_OF
from featcache.inspect import matching, refuse_unknown
from featcache.rewrite import Chosen, Progress, choose, copy_segment
from featcache.storage import Storage, open_storage
from featcache.store import Cache
from featcache.turns import alone


@dataclass(frozen=True)
class Forgotten:
    """The ids that went (or would go), those of views among them, and the segments written anew or removed for it."""

    ids: list[str]
    segments: list[str]


def forget(
    place: str | Path,
    where: dict[str, set[str]],
    dry_run: bool = False,
    on_shard: Progress = lambda seconds, written: None,
) -> Forgotten:
    """Remove the utterances with these labels, and all views of them. First finishes a removal that was interrupted.

    Raises:
        UsageError: there is no condition, no utterance meets it, or none has one of its values.
        CacheError: an extraction is not finished, or another removal is at work.
    """
    if not where:
        raise UsageError("everything would go: say what with --where label=value, or delete the folder")
    storage = open_storage(place)
    if dry_run:
        return _find(Cache.open(place), where)[0]
    if not storage.exists(layout.ROOT):
        raise CacheError(f"there is no cache at {storage}: give the path of one")
    with alone(storage):
        resumed = storage.exists(layout.PENDING)
        if resumed:
            _replace(storage)
        cache = Cache.open(place)
        if resumed and not _any_left(cache, where):
            return Forgotten([], [])
        # Of those that are meant, an interrupted removal has taken some already.
        found, kept = _find(cache, where, some_went=resumed)
        for name in found.segments:
            if kept[name]:
                try:
                    _write_anew(storage, kept[name], name, on_shard)
                except NotPulledError as error:
                    storage.delete_folder(_staged(name))
                    raise CacheError(
                        f"{storage} is a partial copy of {cache.origin} and lacks shards of {name}, which cannot be "
                        f"written anew without them: `featcache forget {cache.origin} --where ...`, delete {storage}, "
                        "and pull again"
                    ) from error
        pending = {name: _seal(storage, _staged(name)) if kept[name] else None for name in found.segments}
        storage.write(layout.PENDING, canonical_json(pending))
        _replace(storage)
        return found


def _find(
    cache: Cache, where: dict[str, set[str]], some_went: bool = False
) -> tuple[Forgotten, dict[str, list[Chosen]]]:
    """What goes, and what stays of each segment that it goes from."""
    if cache.unsealed:
        raise CacheError(
            f"{cache.path}/{cache.unsealed[0]} is not finished: run the command that began it again (extract, "
            f"recode, ...), or drop it with `featcache gc {cache.path}`"
        )
    if not some_went:
        refuse_unknown(cache, where, also=_viewed(cache) if where.keys() == {"id"} else ())
    gone = _meant(cache, where)
    if not gone.any():
        raise UsageError(f"no utterance of {cache.path} is meant: `featcache ls {cache.path}` lists them")
    ids = list(cache.ids)
    names = [part.segment.name for part in choose(cache, gone)]
    kept: dict[str, list[Chosen]] = {name: [] for name in names}
    for part in choose(cache, ~gone):
        if part.segment.name in kept:
            kept[part.segment.name].append(part)
    return Forgotten([ids[row] for row in gone.nonzero()[0].tolist()], names), kept


def _meant(cache: Cache, where: dict[str, set[str]]) -> np.ndarray:
    """`(utterances,)` bool: those with these labels, and all views of them."""
    gone = matching(cache, where)
    if VIEW_OF not in cache.label_names:
        return gone
    ids, views = list(cache.ids), cache.labels(VIEW_OF)
    # A recording that is named may not be here itself, where its views are: `subset` takes what it is told to.
    meant = set(where["id"]) if where.keys() == {"id"} else set()
    before = -1
    # A view may be of a view.
    while (count := int(gone.sum())) > before:
        before = count
        meant |= {ids[row] for row in gone.nonzero()[0].tolist()}
        gone |= np.array([of in meant for of in views], bool)
    return gone


def _viewed(cache: Cache) -> set[str]:
    """The recordings that there are views of; they need not be here themselves."""
    return set(filter(None, cache.labels(VIEW_OF))) if VIEW_OF in cache.label_names else set()


def _any_left(cache: Cache, where: dict[str, set[str]]) -> bool:
    """Whether a removal that was just finished has left something that is meant: a label may have gone with it."""
    return {*where} <= {"id", *cache.label_names} and bool(_meant(cache, where).any())


def _staged(name: str) -> str:
    return name.replace(layout.SEGMENTS, layout.FORGET, 1)


def _write_anew(storage: Storage, kept: list[Chosen], name: str, on_shard: Progress) -> None:
    labels = kept[0].segment.label_names
    try:
        copy_segment(kept, storage, _staged(name), labels, on_shard)
    except (MismatchError, CorruptCacheError):
        # Left over from a removal of others that was killed before its marker.
        storage.delete_folder(_staged(name))
        copy_segment(kept, storage, _staged(name), labels, on_shard)


def _seal(storage: Storage, name: str) -> str | None:
    """The digest of a segment's seal; None where there is none."""
    data = storage.read(f"{name}/seal.json")
    return None if data is None else sha256(data)


def _replace(storage: Storage) -> None:
    """Put the new segments in the place of the old ones; what an interrupted call has done is done.

    The marker names each old segment and the seal of what is to take its place, None where nothing is; markers of
    earlier versions say True or False of that.
    """
    data = storage.read(layout.PENDING)
    try:
        pending: list[tuple[str, str | bool | None]] = list(json.loads(data or b"").items())
    except (ValueError, AttributeError) as error:
        raise CorruptCacheError(f"{storage}/{layout.PENDING} is damaged: restore the cache from a copy") from error
    for name, seal in pending:
        # What lies there for a segment of which nothing is left is of a removal that was killed before its marker.
        staged = _seal(storage, _staged(name)) if seal else None
        if staged is None and isinstance(seal, str) and _seal(storage, name) != seal:
            raise CorruptCacheError(
                f"{storage}/{_staged(name)}, which was to take the place of {name}, is gone: restore the cache from a "
                "copy and forget again"
            )
        if staged is not None or not seal:
            # Where a folder is moved file by file, the new seal may be in its place already.
            if (old := _seal(storage, name)) not in (None, staged):
                remember(storage, old)
            storage.delete_folder(name)
        if staged is not None:
            storage.move_folder(_staged(name), name)
    storage.delete(layout.PENDING)
    storage.delete_folder(layout.FORGET)
    storage.drop_kept()
