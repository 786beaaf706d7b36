"""What is done, and proof of it: one small immutable record per finished shard, and the seal.

A record or seal on disk is `{"content": ..., "sha256": digest of the content}`, so that each proves
itself. Records hold no times and no host names: the same work leaves the same bytes.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from featcache.digest import canonical_json, digest, sha256
from featcache.errors import CorruptCacheError
from featcache.storage import Storage


class FileProof(BaseModel):
    """Size and SHA-256 of one file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Quarantined(BaseModel):
    """A row that could not be used; its range in the shard is left empty (zeros)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: int
    id: str
    reason: str


class Saturated(BaseModel):
    """How many values of a row lay beyond what the profile can hold and were set to its limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: int
    values: int


class ShardRecord(BaseModel):
    """One finished shard: its files, its rows `first .. first + len(audio) - 1`, and what was left out.

    `audio[i]` is the SHA-256 of the decoded PCM of row `first + i`, or "" where the row is quarantined.
    `saturated_rows` says where the `saturated` values are; records without such values do without it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    files: dict[str, FileProof]
    first: int
    audio: tuple[str, ...]
    quarantined: tuple[Quarantined, ...] = ()
    saturated: int = 0
    saturated_rows: tuple[Saturated, ...] = ()

    @model_serializer(mode="wrap")
    def _leave_out_what_is_empty(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        if not self.saturated_rows:
            # As records were before they named rows, so that those stay as they were sealed.
            del content["saturated_rows"]
        return content


class Seal(BaseModel):
    """The root digest of a finished segment.

    `files` proves every file of the segment but the shards, which the ledger proves, and the labels,
    which may be replaced and prove themselves; `root` proves the cache's own metadata and calibration.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    values_id: str
    encoding_id: str
    root: dict[str, FileProof]
    files: dict[str, FileProof]
    ledger: str
    ledger_bytes: int
    shards: int
    utterances: int
    quarantined: int
    frames: int
    seconds: float
    shard_bytes: int


Proven = TypeVar("Proven", bound=BaseModel)


def to_bytes(record: BaseModel) -> bytes:
    """The self-proving JSON of a record."""
    content = record.model_dump(mode="json")
    return canonical_json({"content": content, "sha256": digest(content)})


def from_bytes(kind: type[Proven], data: bytes, name: str, remedy: str) -> Proven:
    """The record in these bytes.

    Raises:
        CorruptCacheError: a byte is not as it was written; names the file and the remedy.
    """
    try:
        document = json.loads(data)
        record = kind.model_validate(document["content"])
        # The whole file is compared, so that a changed blank or spelling is noticed too.
        intact = to_bytes(record) == data
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise CorruptCacheError(f"{name} is damaged ({type(error).__name__}): {remedy}") from error
    if not intact:
        raise CorruptCacheError(f"{name} is damaged (its content and its digest differ): {remedy}")
    return record


def proof(data: bytes | memoryview) -> FileProof:
    """Size and digest of a file's bytes."""
    return FileProof(bytes=len(data), sha256=sha256(data))


def read_proofs(data: bytes, name: str, remedy: str) -> dict[str, FileProof]:
    """The proofs of files by name that a self-proving file holds.

    Raises:
        CorruptCacheError: a byte is not as it was written.
    """
    try:
        content = json.loads(data)["content"]
        if canonical_json({"content": content, "sha256": digest(content)}) != data:
            raise ValueError("its content and its digest differ")
        return {path: FileProof.model_validate(p) for path, p in content.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptCacheError(f"{name} is damaged or missing: {remedy}") from error


def record_key(segment: str, shard: int) -> str:
    return f"{segment}/ledger/{shard:06d}.json"


def read_record(storage: Storage, segment: str, shard: int, remedy: str) -> ShardRecord | None:
    """The record of one shard; None where it is not done."""
    key = record_key(segment, shard)
    data = storage.read(key)
    return None if data is None else from_bytes(ShardRecord, data, f"{storage}/{key}", remedy)


def read_records(storage: Storage, segment: str, remedy: str) -> dict[int, ShardRecord]:
    """All records of a segment by shard number."""
    records: dict[int, ShardRecord] = {}
    for key in storage.list_keys(f"{segment}/ledger"):
        data = storage.read(key)
        if data is not None:
            record = from_bytes(ShardRecord, data, f"{storage}/{key}", remedy)
            records[record.shard] = record
    return records


def ledger_digest(records: dict[int, ShardRecord]) -> str:
    """One digest over all records, in the order of their shards."""
    return digest([digest(records[shard].model_dump(mode="json")) for shard in sorted(records)])
