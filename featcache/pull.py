"""`featcache pull`: a cache on S3, or a part of it, to a local folder. See `featcache.remote` for the order.

What is there already is told by its size and SHA-256. Everything but shards goes through a staging folder,
from where it is written durably and in order.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from featcache import contents, layout
from featcache.digest import sha256_of
from featcache.errors import CacheError, CorruptCacheError, MismatchError, UsageError
from featcache.forgotten import FORGOTTEN, refuse_half_forgotten, refuse_return
from featcache.inspect import matching, parse_where, refuse_unknown
from featcache.ledger import FileProof, proof
from featcache.partial import read_origin, write_origin
from featcache.progress import ByteProgress
from featcache.remote import (
    DATA,
    READERS,
    RECORDS,
    ROOT,
    SEALS,
    Transfer,
    check_key,
    extra_segment,
    forgotten_or,
    inventory,
    local_storage,
    phase_of,
    provers_of,
)
from featcache.s3 import S3Settings, S3Url
from featcache.sizes import refuse_without_space
from featcache.storage import LocalStorage
from featcache.store import Cache
from featcache.transfer import JOBS, Remote, S5cmd
from featcache.turns import adding

# Threads that write small files.
WRITERS = 16


def pull(
    source: str,
    place: str | Path,
    where: Sequence[str] = (),
    settings: S3Settings | None = None,
    jobs: int = JOBS,
    dry_run: bool = False,
) -> Transfer:
    """Copy a cache from S3, or with `where` (`label=value`, `id=ID`) only the shards that hold matching rows.

    Raises:
        MismatchError: another cache is at `place`, or one with a segment that the source does not have.
        CorruptCacheError: what arrived is not what was sealed.
        CacheError: no cache is there, wrong keys or no server. UsageError: no utterance matches.
        JobError: there is no room for it, or it stopped on the way.
    """
    url, storage = S3Url.parse(source), local_storage(place)
    client = S5cmd(settings or S3Settings.find(), jobs)
    conditions = parse_where(where)
    there = client.list(url)
    if layout.ROOT not in there:
        raise CacheError(f"there is no cache at {url}, or its push has not finished")
    refuse_half_forgotten(str(url), layout.PENDING in there)
    refuse_half_forgotten(str(storage), storage.exists(layout.PENDING))
    result = Transfer(str(url), str(storage))
    with _staging() as staged:
        wanted = _stage(client, url, there, storage, staged, result)
        _refuse_other_place(storage, staged, wanted, url)
        shards = {key for key in wanted if contents.is_shard(key)}
        chosen = _shards_of(staged, conditions, str(url)) if conditions else shards
        have = _present(storage, {key: wanted[key] for key in shards})
        todo = chosen - have
        plain = {k for k in wanted if k not in shards and storage.read(k) != staged.read(k)}
        missing = shards - have - todo
        withdrawn = {key for key in provers_of(plain) if storage.exists(key)}
        plain |= withdrawn
        result.count({key: wanted[key] for key in wanted if key not in missing}, todo | plain)
        result.not_pulled = len(missing)
        if dry_run:
            return result
        refuse_without_space(storage, result.bytes, "free some space, or choose another path")
        with adding(storage):
            # What was forgotten here while the copies were compared must not come back.
            refuse_half_forgotten(str(storage), storage.exists(layout.PENDING))
            _refuse_other_place(storage, staged, wanted, url)
            for key in sorted(withdrawn):
                storage.delete(key)
            _write(storage, staged, plain, DATA)
            storage.delete_temporary("")
            _fetch(client, url, storage, {key: wanted[key] for key in sorted(todo)})
            if missing:
                write_origin(storage, str(url))
            for phase in (RECORDS, SEALS, ROOT):
                _write(storage, staged, plain, phase)
            if not missing:
                write_origin(storage, None)
    Cache.open(str(storage))
    return result


def _present(storage: LocalStorage, wanted: Mapping[str, FileProof]) -> set[str]:
    """The files that are already there as they must be."""
    candidates = [key for key in wanted if storage.size(key) == wanted[key].bytes]
    total = sum(wanted[key].bytes for key in candidates)

    def same(key: str) -> bool:
        progress.advance(wanted[key].bytes)
        return sha256_of(storage.path(key)) == wanted[key].sha256

    if not candidates:
        return set()
    with ByteProgress("checking", total) as progress, ThreadPoolExecutor(READERS) as pool:
        return {key for key, equal in zip(candidates, pool.map(same, candidates), strict=True) if equal}


@contextmanager
def _staging() -> Iterator[LocalStorage]:
    """A folder for everything but shards, from where it is written durably and in order."""
    folder = tempfile.mkdtemp(prefix="featcache-pull-")
    try:
        yield LocalStorage(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stage(
    client: S5cmd,
    url: S3Url,
    there: Mapping[str, Remote],
    storage: LocalStorage,
    staged: LocalStorage,
    result: Transfer,
) -> dict[str, FileProof]:
    """Bring everything but shards to the staging folder, first what proves the rest; returns what is wanted."""
    sealed = tuple(key.removesuffix("seal.json") for key in there if phase_of(key) == SEALS)
    proving = [key for key in there if phase_of(key) != DATA and (key == layout.ROOT or key.startswith(sealed))]
    for key in proving:
        check_key(key, str(url))
    client.copy([(url.of(key), str(staged.path(key))) for key in proving], lambda size: None, str(url))
    wanted = inventory(staged, result)
    segments = {"/".join(key.split("/")[:2]) for key in there if key.startswith(f"{layout.SEGMENTS}/")}
    result.unsealed = sorted(segments - {name.rstrip("/") for name in sealed})
    for key, expected in wanted.items():
        found = there.get(key)
        if found is None or found.size != expected.bytes:
            what = "is missing" if found is None else f"has {found.size} bytes where {expected.bytes} were sealed"
            raise CorruptCacheError(f"{url.of(key)} {what}: push the cache again from a whole copy")
    fetch = []
    for key in (key for key in wanted if phase_of(key) == DATA and not contents.is_shard(key)):
        known = storage.read(key)
        if known is not None and proof(known) == wanted[key]:
            staged.write(key, known)
        else:
            fetch.append(key)
    client.copy([(url.of(key), str(staged.path(key))) for key in fetch], lambda size: None, str(url))
    for key in wanted:
        if not contents.is_shard(key) and proof(staged.read(key) or b"") != wanted[key]:
            raise CorruptCacheError(f"{url.of(key)} is not as it was sealed: push the cache again from a whole copy")
    return wanted


def _refuse_other_place(
    storage: LocalStorage, staged: LocalStorage, wanted: Mapping[str, FileProof], url: S3Url
) -> None:
    """Raise where the folder holds something else than a copy, whole or begun, of this cache."""
    other = next((key for key in storage.list_keys() if contents.is_foreign(key)), None)
    if other is not None:
        raise MismatchError(f"{storage} holds other files ({other}) and no cache: give a new or an empty folder")
    for key in wanted:
        fixed = phase_of(key) in (SEALS, ROOT) or key.endswith("/plan.json")
        if fixed and storage.read(key) not in (None, staged.read(key)):
            remedy = f"{forgotten_or(key, url, storage)}give another folder"
            if read_origin(storage) == str(url):
                # Without all shards nothing can be forgotten here, and all that is here is there as well.
                remedy = f"if something was forgotten at {url} since, delete {storage} and pull again, else {remedy}"
            raise MismatchError(f"{storage} holds another cache ({key} differs): {remedy}")
    refuse_return(url, wanted, storage, storage.read(FORGOTTEN))
    seals = (f"{name}/seal.json" for name in layout.segments(storage))
    extra = extra_segment(filter(storage.exists, seals), wanted)
    if extra is not None:
        # What was added to a partial copy cannot be pushed before the rest is here.
        first = f"`featcache push {storage} {url}` first"
        if read_origin(storage) is not None:
            first = f"move {storage}/{extra} elsewhere until this copy is whole"
        raise MismatchError(
            f"{storage} holds {extra}, which {url} does not have: if it was forgotten there, forget the same here "
            f"(`featcache forget {storage} --where ...`) or give another folder; if it was added here, {first}"
        )
    lease = next((k for name in layout.segments(storage) for k in storage.list_keys(f"{name}/leases")), None)
    if lease is not None:
        raise CacheError(
            f"{storage} has a lease of a running or killed extraction ({lease}): wait for it, or remove it"
        )


def _shards_of(staged: LocalStorage, conditions: Mapping[str, set[str]], source: str) -> set[str]:
    """The shard files that hold matching rows."""
    cache = Cache.open(str(staged))
    unknown = [name for name in conditions if name not in ("id", *cache.label_names)]
    if unknown:
        raise UsageError(f"{source} has no label {unknown[0]!r}; it has: {', '.join(cache.label_names) or 'none'}")
    refuse_unknown(cache, conditions, source)
    mask = matching(cache, conditions)
    if not mask.any():
        asked = ", ".join(f"{name}={value}" for name in conditions for value in sorted(conditions[name]))
        raise UsageError(f"no utterance of {source} has {asked}: `featcache ls` lists the labels")
    found, start = set(), 0
    for segment in cache.segments:
        for shard in segment.shards(mask[start : start + len(segment)]):
            found |= {layout.shard_key(segment.name, plane, shard) for plane in cache.codec.planes}
        start += len(segment)
    return found


def _fetch(client: S5cmd, url: S3Url, storage: LocalStorage, wanted: Mapping[str, FileProof]) -> None:
    """Download shards under temporary names, prove them, and take them in."""
    arriving = {key: storage.temporary(key) for key in wanted}
    try:
        with ByteProgress("pulling", sum(expected.bytes for expected in wanted.values())) as progress:
            pairs = [(url.of(key), str(path)) for key, path in arriving.items()]
            client.copy(pairs, progress.advance, str(url))

        def take_in(key: str) -> None:
            if sha256_of(arriving[key]) != wanted[key].sha256:
                raise CorruptCacheError(f"{url.of(key)} did not arrive as it was sealed: push the cache again")
            storage.adopt(key, arriving[key])

        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(take_in, arriving))
    finally:
        for path in arriving.values():
            path.unlink(missing_ok=True)


def _write(storage: LocalStorage, staged: LocalStorage, keys: set[str], phase: int) -> None:
    """Write the files of one phase, all at once: each waits for the disk, and a disk can sync many together."""

    def write(key: str) -> None:
        data = staged.read(key)
        if data is not None:
            storage.write(key, data)

    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, sorted(key for key in keys if phase_of(key) == phase)))
