"""What `push` and `pull` share: which files make a cache, and in which order they are copied.

The order is: shards, index, labels and calibration; then ledger records and the labels' proof; then
seals; then the root metadata, without which nothing opens. Each step is checked before the next begins,
so that half a copy is never taken for a cache. Only what a sealed segment names is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from featcache import contents, layout
from featcache.errors import CacheError, CorruptCacheError, UsageError
from featcache.ledger import FileProof
from featcache.s3 import is_s3
from featcache.storage import LocalStorage, Storage
from featcache.verify import Report, segment_proofs

PHASES = DATA, RECORDS, SEALS, ROOT = range(4)
# Threads that read files to prove them.
READERS = 4


@dataclass
class Transfer:
    """What a push or pull did, or would do.

    Attributes:
        not_pulled: number of shard files that a partial copy does without.
        unguarded: why a push could not keep others from its target meanwhile; empty where it did.
    """

    source: str
    target: str
    utterances: int = 0
    files: int = 0
    bytes: int = 0
    present_files: int = 0
    present_bytes: int = 0
    not_pulled: int = 0
    unsealed: list[str] = field(default_factory=list)
    unguarded: str = ""

    def count(self, wanted: Mapping[str, FileProof], todo: set[str]) -> None:
        sizes = {key: wanted[key].bytes for key in wanted}
        self.files, self.bytes = len(todo), sum(sizes[key] for key in todo)
        self.present_files = len(sizes) - len(todo)
        self.present_bytes = sum(sizes.values()) - self.bytes


def inventory(storage: Storage, result: Transfer) -> dict[str, FileProof]:
    """Every file that the sealed segments name, and what it must be."""
    report = Report()
    wanted: dict[str, FileProof] = {}
    for name in layout.segments(storage):
        if storage.exists(f"{name}/seal.json"):
            wanted |= segment_proofs(storage, name, report)
        else:
            result.unsealed.append(name)
    if report.problems:
        problem = report.problems[0]
        raise CorruptCacheError(f"{result.source}/{problem.key} {problem.what}: run `featcache verify {result.source}`")
    if not wanted:
        raise CacheError(f"{result.source} has no finished segment yet: `featcache extract` finishes one")
    for key in wanted:
        check_key(key, result.source)
    result.utterances = report.utterances
    return wanted


def phase_of(key: str) -> int:
    """In which step a file is copied."""
    if key == layout.ROOT:
        return ROOT
    if contents.is_seal(key):
        return SEALS
    return RECORDS if contents.is_record(key) else DATA


def provers_of(keys: set[str]) -> set[str]:
    """Seals, and the root metadata, that must not stand while these files are replaced."""
    provers = set()
    for key in keys:
        parts = key.split("/")
        if parts[0] == layout.SEGMENTS:
            provers.add(f"{parts[0]}/{parts[1]}/seal.json")
        else:
            provers.add(layout.ROOT)
    return provers


def extra_segment(sealed: Iterable[str], wanted: Mapping[str, FileProof]) -> str | None:
    """The first segment that is finished where a copy goes to, and not where it comes from.

    Left alone it would bring back what was forgotten on the other side.

    Args:
        sealed: the keys of the seals there.
        wanted: every file of the source.
    """
    return next((key.removesuffix("/seal.json") for key in sorted(sealed) if key not in wanted), None)


def forgotten_or(key: str, source: object, target: object) -> str:
    """What to do about a file that differs, where that may be for a removal on one side."""
    if phase_of(key) != SEALS:
        return ""
    forget = "`featcache forget {} --where ...`"
    return (
        f"if something was forgotten in one of them, forget the same in the other ({forget.format(source)} or "
        f"{forget.format(target)}), else "
    )


def check_key(key: str, place: str) -> None:
    """Keys come from a listing or a ledger: none may leave the folder that it is copied to."""
    if key.startswith("/") or any(part in ("", ".", "..") for part in key.split("/")) or "\n" in key or "\\" in key:
        raise CorruptCacheError(f"{place} names a file {key!r}, which no cache holds: do not use it")


def local_storage(place: str | Path) -> LocalStorage:
    if is_s3(place):
        raise UsageError(f"{place} is on S3: push copies a folder to S3, pull copies from there to a folder")
    return LocalStorage(place)
