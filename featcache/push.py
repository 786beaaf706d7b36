"""`featcache push`: a local cache to S3. See `featcache.remote` for the order and what it protects.

What is there already is told by its size and ETag (the MD5 of its bytes); a server whose ETags are another
thing costs a second copy, and a read back to prove it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from featcache import contents, layout
from featcache.digest import sha256
from featcache.errors import CacheError, CorruptCacheError, JobError, MismatchError, UsageError
from featcache.forgotten import FORGOTTEN, refuse_half_forgotten, refuse_return
from featcache.ledger import FileProof
from featcache.partial import read_origin
from featcache.progress import ByteProgress
from featcache.remote import (
    PHASES,
    READERS,
    ROOT,
    SEALS,
    Transfer,
    extra_segment,
    forgotten_or,
    inventory,
    local_storage,
    phase_of,
    provers_of,
)
from featcache.s3 import S3Settings, S3Url
from featcache.storage import Address, LocalStorage, open_storage
from featcache.transfer import JOBS, Remote, S5cmd, etag
from featcache.turns import alone


def push(
    place: str | Path, target: str, settings: S3Settings | None = None, jobs: int = JOBS, dry_run: bool = False
) -> Transfer:
    """Copy the sealed part of a local cache to S3, and check that it arrived.

    Raises:
        CorruptCacheError: the cache is not as it was sealed; nothing of it is copied.
        MismatchError: another cache is at the target, or one with a segment that this one does not have.
        CacheError: no such bucket, wrong keys or no server; or another command is at work at the target.
        JobError: it stopped on the way.
    """
    url, storage = S3Url.parse(target), local_storage(place)
    settings = settings or S3Settings.find()
    client = S5cmd(settings, jobs)
    if not storage.exists(layout.ROOT):
        raise CacheError(f"there is no cache at {storage}: give the path of one")
    if (origin := read_origin(storage)) is not None:
        raise CacheError(f"{storage} is a partial copy: `featcache pull {origin} {storage}` fetches the rest first")
    refuse_half_forgotten(str(storage), storage.exists(layout.PENDING))
    result = Transfer(str(storage), str(url))
    wanted = inventory(storage, result)
    there = _look(storage, client, url, wanted)
    tags = _prove_local(storage, wanted)
    todo, _ = _to_copy(wanted, there, tags)
    result.count(wanted, todo)
    if dry_run or not todo:
        return result
    with _alone(Address(str(url), settings), result) as check:
        # What was looked at before has had hours to change.
        there = _look(storage, client, url, wanted)
        todo, withdrawn = _to_copy(wanted, there, tags)
        result.count(wanted, todo)
        client.remove([url.of(key) for key in sorted(withdrawn)], str(url))
        with ByteProgress("pushing", result.bytes) as progress:
            for phase in PHASES:
                keys = sorted(key for key in todo if phase_of(key) == phase)
                if not keys:
                    continue
                check()
                earlier = {key: wanted[key] for key in wanted if phase_of(key) < phase}
                client.copy([(str(storage.path(key)), url.of(key)) for key in keys], progress.advance, str(url))
                _prove_remote(client, url, {key: wanted[key] for key in keys}, tags, earlier)
    return result


@contextlib.contextmanager
def _alone(target: Address, result: Transfer) -> Iterator[Callable[[], None]]:
    """As `alone` at the target, where a lease can be had there: s5cmd has no conditional put, and finds keys of more
    kinds than obstore does."""
    try:
        there = open_storage(target)
    except UsageError as error:
        result.unguarded = str(error)
        yield lambda: None
        return
    with alone(there) as check:
        yield check


def _look(storage: LocalStorage, client: S5cmd, url: S3Url, wanted: Mapping[str, FileProof]) -> dict[str, Remote]:
    """What is at the target, which must be nothing, or this cache or a part of it."""
    there = client.list(url)
    refuse_half_forgotten(str(url), layout.PENDING in there)
    _refuse_other_target(storage, client, url, wanted, there)
    return there


def _to_copy(
    wanted: Mapping[str, FileProof], there: Mapping[str, Remote], tags: Mapping[str, str]
) -> tuple[set[str], set[str]]:
    """What is to be copied, and what of it must first be taken away: proofs of files that are replaced."""
    todo = {key for key in wanted if there.get(key) != Remote(wanted[key].bytes, tags[key])}
    withdrawn = provers_of(todo) & there.keys()
    return todo | withdrawn, withdrawn


def _prove_local(storage: LocalStorage, wanted: Mapping[str, FileProof]) -> dict[str, str]:
    """The ETag that each file will have; every file must be as it was sealed."""
    total = sum(expected.bytes for expected in wanted.values())

    def prove(key: str) -> str:
        if storage.size(key) is None:
            raise CorruptCacheError(f"{storage}/{key} is missing: run `featcache verify {storage}`")
        tag, digest = etag(storage.path(key))
        if digest != wanted[key].sha256:
            raise CorruptCacheError(f"{storage}/{key} is not as it was sealed: run `featcache verify {storage}`")
        progress.advance(wanted[key].bytes)
        return tag

    with ByteProgress("checking", total) as progress, ThreadPoolExecutor(READERS) as pool:
        return dict(zip(wanted, pool.map(prove, wanted), strict=True))


def _prove_remote(
    client: S5cmd,
    url: S3Url,
    wanted: Mapping[str, FileProof],
    tags: Mapping[str, str],
    earlier: Mapping[str, FileProof],
) -> None:
    """What was just copied must have arrived in full length with its ETag, or else be read back.

    Args:
        earlier: what must be there still.
    """
    there = client.list(url)
    for key, expected in {**wanted, **earlier}.items():
        if key not in there or there[key].size != expected.bytes:
            raise JobError(f"{url.of(key)} did not arrive whole: run the same command again")
    for key, expected in wanted.items():
        if there[key].etag != tags[key] and sha256(b"".join(client.read(url.of(key)))) != expected.sha256:
            raise JobError(f"{url.of(key)} is not what was sent; run the same command again")


def _refuse_other_target(
    storage: LocalStorage, client: S5cmd, url: S3Url, wanted: Mapping[str, FileProof], there: Mapping[str, Remote]
) -> None:
    forgotten = b"".join(client.read(url.of(FORGOTTEN))) if FORGOTTEN in there else None
    if layout.ROOT not in there:
        # A push that was killed while the root metadata was withdrawn leaves the log of the cache that was there.
        other = next((key for key in there if key not in wanted and not key.startswith(f"{layout.LOG}/")), None)
        if other is not None:
            raise MismatchError(f"{url} holds other files ({other}) and not this cache: give another prefix")
        refuse_return(storage, wanted, url, forgotten)
        return
    # The root metadata first: what it says of a difference is the most telling.
    provers = (key for key in wanted if phase_of(key) in (SEALS, ROOT) and key in there)
    for key in sorted(provers, key=phase_of, reverse=True):
        if b"".join(client.read(url.of(key))) != storage.read(key):
            raise MismatchError(
                f"{url} holds another cache than {storage} ({key} differs): {forgotten_or(key, storage, url)}"
                "give another prefix"
            )
    refuse_return(storage, wanted, url, forgotten)
    extra = extra_segment((key for key in there if phase_of(key) == SEALS), wanted)
    if extra is not None:
        raise MismatchError(
            f"{url} holds {extra}, which {storage} does not have: if it was forgotten here, forget the same there "
            f"(`featcache forget {url} --where ...`) or give another prefix; if it was added there, "
            f"`featcache pull {url} {storage}` fetches it"
        )
    _refuse_leftovers(storage, client, url, wanted, there)


def _refuse_leftovers(
    storage: LocalStorage, client: S5cmd, url: S3Url, wanted: Mapping[str, FileProof], there: Mapping[str, Remote]
) -> None:
    """A segment that is begun there must be the one that comes: a seal over files of both would prove a mixture.

    They are of a push that was interrupted before something was forgotten here, or of an extraction there.
    """
    begun = [key.removesuffix("seal.json") for key in wanted if phase_of(key) == SEALS and key not in there]
    for name in begun:
        plan = f"{name}plan.json"
        other = next((key for key in there if key.startswith(name) and key not in wanted and _is_own(key)), None)
        if other is None and plan in there and b"".join(client.read(url.of(plan))) != storage.read(plan):
            other = plan
        if other is not None:
            raise MismatchError(
                f"{url} holds an unfinished {name.rstrip('/')} that is not the one of {storage} ({other}): it is of an "
                "extraction, or of a push before something was forgotten here; drop it with "
                f"`featcache gc {url}` and run the same command again"
            )


def _is_own(key: str) -> bool:
    """Whether a file in a segment's folder is one that a cache makes there, and not a file manager."""
    return contents.is_shard(key) or key.split("/")[2] in ("index", "labels", "ledger", "leases")
