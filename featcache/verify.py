"""Prove a cache whole, or say which file is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from featcache import contents, layout
from featcache.cluster import run_tasks
from featcache.description import read_spec
from featcache.errors import CacheError, CorruptCacheError, FeatcacheError
from featcache.ledger import (
    FileProof,
    Seal,
    ShardRecord,
    from_bytes,
    ledger_digest,
    proof,
    read_proofs,
    record_key,
)
from featcache.partial import read_origin
from featcache.storage import Address, Storage, open_storage
from featcache.store import Cache

# Files that one task reads: up to either limit.
TASK_BYTES = 64_000_000
TASK_FILES = 200


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it was written. `key` is the file, relative to the cache.

    `mendable` says whether it is for `repair`: a file is, values that were written as they are proven are not.
    """

    key: str
    what: str
    mendable: bool = True


@dataclass
class Report:
    """What `verify` found."""

    files: int = 0
    bytes: int = 0
    segments: int = 0
    utterances: int = 0
    # Segments that are not finished.
    unsealed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    # Shards that a partial copy does without; see `featcache.partial`.
    not_pulled: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        return not self.problems


def verify(place: str | Path, on_bytes: Callable[[int], None] = lambda size: None, client: Any | None = None) -> Report:
    """Check every file of a cache against its ledger and its seal, in parallel (dask).

    Args:
        on_bytes: called with the number of bytes checked since the last call.
        client: of the cluster that reads the files (`featcache.cluster.connect`); threads where it is None.

    Raises:
        CacheError: there is no cache at all.
    """
    storage = open_storage(place)
    report = Report()
    if not storage.exists(layout.ROOT):
        raise CacheError(f"there is no cache at {storage}: give the path of one")
    try:
        read_spec(storage)
    except FeatcacheError as error:
        report.problems.append(Problem(layout.ROOT, str(error)))
    checks: dict[str, FileProof] = {}
    for name in layout.segments(storage):
        checks |= segment_proofs(storage, name, report)
    report.unknown = [key for key in storage.list_keys() if key not in checks and not _belongs(key, report)]
    if read_origin(storage) is not None:
        report.not_pulled = [key for key in checks if contents.is_shard(key) and not storage.exists(key)]
        for key in report.not_pulled:
            del checks[key]
    report.problems += _run_checks(storage, checks, report, on_bytes, client)
    if report.whole:
        # Every byte is as sealed; that it also opens shows that this installation can read it.
        try:
            Cache.open(storage.address)
        except FeatcacheError as error:
            report.problems.append(Problem("", str(error)))
    return report


def bytes_to_verify(place: str | Path) -> int:
    """What `verify` will read, for its progress; no more than that, as the log and leases are no part of a cache."""
    storage = open_storage(place)
    return sum(storage.size(key) or 0 for key in storage.list_keys() if not contents.is_beside(key))


def _belongs(key: str, report: Report) -> bool:
    """Whether a file that nothing proves is part of the cache all the same, or none of our business.

    A segment that is not finished is whole or nothing. The calibration is proven by the seals, the first of which may
    be still to come.
    """
    open_segments = tuple(f"{name}/" for name in report.unsealed)
    unproven = not report.segments and key.startswith(f"{layout.CALIBRATION}/")
    return key == layout.ROOT or contents.is_beside(key) or unproven or key.startswith(open_segments)


def segment_proofs(storage: Storage, name: str, report: Report) -> dict[str, FileProof]:
    """Every file that a segment is made of and what it must be, from its ledger, seal and labels' proof.

    What is the matter with those themselves goes into the report. A sealed segment's list includes the
    cache's own metadata and calibration.
    """
    seal = _read_seal(storage, name, report)
    records = _read_ledger(storage, name, report)
    if seal is not None:
        # Others are left over from what was begun there before; with what they name they are no part of the cache.
        records = {shard: record for shard, record in records.items() if shard < seal.shards}
    checks: dict[str, FileProof] = {}
    for shard, record in records.items():
        checks[record_key(name, shard)] = proof(storage.read(record_key(name, shard)) or b"")
        checks |= {f"{name}/{key}": expected for key, expected in record.files.items()}
    checks |= _labels_proofs(storage, name, report, seal is not None)
    if seal is None:
        report.unsealed.append(name)
        return checks
    report.segments += 1
    report.utterances += seal.utterances
    checks[f"{name}/seal.json"] = proof(storage.read(f"{name}/seal.json") or b"")
    for shard in range(seal.shards):
        if shard not in records and not any(p.key == record_key(name, shard) for p in report.problems):
            report.problems.append(Problem(record_key(name, shard), "is missing"))
    if len(records) == seal.shards and ledger_digest(records) != seal.ledger:
        report.problems.append(Problem(f"{name}/ledger", "does not match the seal"))
    return checks | {f"{name}/{key}": expected for key, expected in seal.files.items()} | seal.root


def _read_seal(storage: Storage, name: str, report: Report) -> Seal | None:
    key = f"{name}/seal.json"
    data = storage.read(key)
    if data is None:
        return None
    try:
        return from_bytes(Seal, data, key, "")
    except CorruptCacheError:
        report.problems.append(Problem(key, "is damaged"))
        return None


def _read_ledger(storage: Storage, name: str, report: Report) -> dict[int, ShardRecord]:
    records: dict[int, ShardRecord] = {}
    for key in storage.list_keys(f"{name}/ledger"):
        try:
            record = from_bytes(ShardRecord, storage.read(key) or b"", key, "")
        except CorruptCacheError:
            report.problems.append(Problem(key, "is damaged"))
            continue
        records[record.shard] = record
    return records


def _labels_proofs(storage: Storage, name: str, report: Report, sealed: bool) -> dict[str, FileProof]:
    key = f"{name}/labels/{layout.LABELS_PROOF}"
    data = storage.read(key)
    if data is None:
        if sealed or any(True for _ in storage.list_keys(f"{name}/labels")):
            report.problems.append(Problem(key, "is missing"))
        return {}
    try:
        expected = read_proofs(data, key, "")
    except CorruptCacheError:
        report.problems.append(Problem(key, "is damaged"))
        return {}
    return {key: proof(data)} | {f"{name}/labels/{path}": p for path, p in expected.items()}


def _run_checks(
    storage: Storage,
    checks: dict[str, FileProof],
    report: Report,
    on_bytes: Callable[[int], None],
    client: Any | None,
) -> list[Problem]:
    def count(number: int, found: tuple[list[Problem], int, int]) -> None:
        _, files, size = found
        report.files += files
        report.bytes += size
        on_bytes(size)

    tasks = [(storage.address.absolute(), group) for group in _groups(checks)]
    found = run_tasks(_check, tasks, client, name="verify", on_result=count)
    return [problem for problems, _, _ in found for problem in problems]


def _groups(checks: dict[str, FileProof]) -> Iterator[dict[str, FileProof]]:
    """Files of some megabytes together, so that a task is worth its message."""
    group: dict[str, FileProof] = {}
    size = 0
    for key, expected in checks.items():
        group[key] = expected
        size += expected.bytes
        if size >= TASK_BYTES or len(group) >= TASK_FILES:
            yield group
            group, size = {}, 0
    if group:
        yield group


def _check(address: Address, checks: dict[str, FileProof]) -> tuple[list[Problem], int, int]:
    """Problems of some files, how many files were read, and their bytes."""
    storage = open_storage(address)
    problems: list[Problem] = []
    files = size = 0
    for key, expected in checks.items():
        try:
            data = storage.read(key)
        except FeatcacheError as error:
            problems.append(Problem(key, str(error)))
            continue
        files += 1
        size += len(data or b"")
        if data is None:
            problems.append(Problem(key, "is missing"))
        elif len(data) != expected.bytes:
            problems.append(Problem(key, f"has {len(data)} bytes where {expected.bytes} were written"))
        elif proof(data) != expected:
            problems.append(Problem(key, "does not have the checksum that was recorded"))
    return problems, files, size
