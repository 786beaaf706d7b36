"""Writing a cache: create it, write shards, record them, seal the segment. Every step is durable."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from typing import Any

from featcache import contents, layout
from featcache.block import ShardBlock
from featcache.codec import Arrays, Codec
from featcache.digest import canonical_json, digest
from featcache.errors import CorruptCacheError, JobError, MismatchError, UsageError
from featcache.geometry import SAMPLE_RATE
from featcache.index import QUARANTINED, build_columns, label_text, pack_text
from featcache.ledger import (
    FileProof,
    Seal,
    ShardRecord,
    ledger_digest,
    proof,
    read_record,
    read_records,
    record_key,
    to_bytes,
)
from featcache.plan import Plan
from featcache.spec import CacheSpec
from featcache.storage import Storage


def refuse_foreign(storage: Storage) -> None:
    """What an `init` that was killed has left behind is no obstacle to a new cache; anything else is.

    Raises:
        UsageError: the place holds other files, or a cache that lost its description.
    """
    sealed = next((name for name in layout.segments(storage) if storage.exists(f"{name}/seal.json")), None)
    if sealed is not None:
        raise UsageError(
            f"{storage} has lost its {layout.ROOT} and still holds {sealed}: restore that file from a copy of the "
            "cache, or give another folder"
        )
    foreign = next((key for key in storage.list_keys() if contents.is_foreign(key)), None)
    if foreign is not None:
        raise UsageError(f"{storage} holds other files ({foreign}) and no cache: give a new or an empty folder")


def drop_other_calibration(storage: Storage, keys: Container[str]) -> None:
    """A run for another profile, killed before it made a cache, may have left arrays that this one has not.

    Args:
        keys: of the files that are to be there.
    """
    for key in [key for key in storage.list_keys(layout.CALIBRATION) if key not in keys]:
        storage.delete(key)


def create_cache(storage: Storage, spec: CacheSpec, calibration: Arrays) -> None:
    """Write the calibration, then the root metadata, which makes it a cache."""
    files = layout.render_root(spec, calibration)
    drop_other_calibration(storage, files)
    for key in sorted(files, key=lambda key: (key == layout.ROOT, key)):
        storage.write(key, files[key])


class SegmentWriter:
    """One unfinished segment: knows what is done, writes shards in any order, and seals.

    Several processes may hold a writer of the same segment, as long as each shard has one writer at a
    time (`featcache.lease`).
    """

    def __init__(self, storage: Storage, spec: CacheSpec, codec: Codec, name: str, plan: Plan) -> None:
        self.storage = storage
        self.spec = spec
        self.codec = codec
        self.name = name
        self.plan = plan

    @property
    def remedy(self) -> str:
        return f"run `featcache repair MANIFEST {self.storage}`"

    def begin(self) -> None:
        """Write the plan's digest, then the metadata of the arrays; or check that they are this plan's.

        Of several that begin the same segment, the plan that is there first is the segment's.

        Raises:
            MismatchError: the segment was begun from another plan.
        """
        content = {"plan": self.plan.digest, "shards": self.plan.shards, "utterances": len(self.plan.ids)}
        data = canonical_json({"content": content, "sha256": digest(content)})
        key = f"{self.name}/plan.json"
        if self.storage.read(key) != data and not self.storage.create(key, data):
            found = self.storage.read(key)
            if found != data:
                raise MismatchError(self._other_plan(found or b""))
        files = layout.render_segment(self.name, self.codec, self.spec.layout, self.plan.shards, self.plan.shard_frames)
        for path in sorted(files):
            if self.storage.read(path) != files[path]:
                self.storage.write(path, files[path])

    def _other_plan(self, found: bytes) -> str:
        try:
            planned = json.loads(found)["content"]
            what = f"{planned['utterances']} utterances in {planned['shards']} shards"
        except (ValueError, KeyError, TypeError):
            what = "something that can no longer be read"
        here, these = f"{self.storage}/{self.name}", f"these {len(self.plan.ids)} in {self.plan.shards}"
        if self.storage.exists(f"{self.name}/seal.json"):
            return (
                f"{here} is sealed and holds {what}, not {these}: if another command has just written it, "
                "run this one again, else give another path"
            )
        return (
            f"{here} was begun for {what}, not for {these}, their order and durations counted: wait for the command "
            f"that is at work on it, finish it with its own manifest, or drop it with `featcache gc {self.storage}`"
        )

    def records(self) -> dict[int, ShardRecord]:
        """The records of finished shards whose files are there in full length."""
        records = read_records(self.storage, self.name, self.remedy)
        return {shard: record for shard, record in records.items() if self._in_full(record)}

    def is_done(self, shard: int) -> bool:
        """Whether a shard is recorded and its files are there in full length; reads its record alone."""
        record = read_record(self.storage, self.name, shard, self.remedy)
        return record is not None and self._in_full(record)

    def _in_full(self, record: ShardRecord) -> bool:
        span = self.plan.shard_rows(record.shard)
        return (record.first, len(record.audio)) == (span.start, len(span)) and all(
            self.storage.size(f"{self.name}/{key}") == p.bytes for key, p in record.files.items()
        )

    def new_block(self) -> ShardBlock:
        """For the frames of one shard."""
        return ShardBlock(self.codec.planes, self.spec.layout, self.plan.shard_frames)

    def render(self, block: ShardBlock, shard: int, each: layout.Each = map) -> layout.LargeFiles:
        """The bytes of a shard's files, by key relative to the segment; `each` as for `layout.render_shard`."""
        files = block.render(each)
        return {
            layout.shard_key(self.name, plane, shard).removeprefix(f"{self.name}/"): files[plane.name]
            for plane in self.codec.planes
        }

    def write_files(self, files: Mapping[str, bytes | memoryview]) -> dict[str, FileProof]:
        """Make a shard's files durable. The shard counts only once `record` has been called."""
        for key in sorted(files):
            self.storage.write(f"{self.name}/{key}", files[key])
        return {key: proof(files[key]) for key in sorted(files)}

    def record(self, record: ShardRecord) -> None:
        """Enter a finished shard into the ledger, last of all.

        Raises:
            JobError: another process has recorded other bytes for it.
        """
        key = record_key(self.name, record.shard)
        data = to_bytes(record)
        if not self.storage.create(key, data):
            found = read_record(self.storage, self.name, record.shard, self.remedy)
            # Older records say how many values were set to the limit, but not in which rows.
            if found in (record, record.model_copy(update={"saturated_rows": ()})):
                return
            raise JobError(
                f"shard {record.shard} of {self.storage}/{self.name} was recorded by another process with other "
                "values: the two machines compute differently; run all of a segment on one kind of device"
            )

    def seal(self, labels: Mapping[str, Sequence[Any]]) -> Seal:
        """Write index, labels and seal, and remove what killed writers left. All shards must be recorded.

        Args:
            labels: columns of `len(plan.ids)` values each.

        Raises:
            JobError: a shard is not recorded. MismatchError: the segment is another plan's.
        """
        # What is to be proven is there, whatever was removed since.
        self.begin()
        records = self.records()
        missing = [shard for shard in range(self.plan.shards) if shard not in records]
        if missing:
            raise JobError(f"{self.storage}/{self.name} lacks shard {missing[0]}: run the same command again")
        # Everywhere: the one that was killed may have been at the description or at a lease.
        self.storage.delete_temporary("")
        columns = build_columns(self.plan, records)
        for key, data in layout.render_columns(f"{self.name}/index", columns).items():
            self.storage.write(key, data)
        written = write_labels(self.storage, self.name, labels)
        _drop_other_labels(self.storage, self.name, written)
        seal = Seal(
            values_id=self.spec.values_id,
            encoding_id=self.spec.encoding_id,
            root=prove_root(self.storage),
            files=prove_segment(self.storage, self.name, [plane.name for plane in self.codec.planes]),
            ledger=ledger_digest(records),
            ledger_bytes=sum(len(to_bytes(record)) for record in records.values()),
            shards=self.plan.shards,
            utterances=len(self.plan.ids),
            quarantined=int((columns["state"] == QUARANTINED).sum()),
            frames=int(columns["frames"].sum()),
            seconds=float(self.plan.samples[columns["state"] != QUARANTINED].sum()) / SAMPLE_RATE,
            shard_bytes=int(columns["shard_bytes"].sum()),
        )
        self.storage.write(f"{self.name}/seal.json", to_bytes(seal))
        return seal


def write_labels(storage: Storage, segment: str, labels: Mapping[str, Sequence[Any]]) -> set[str]:
    """Write or replace the label columns of a segment, and the proof of them, last. Gives the keys of all."""
    folder = f"{segment}/labels"
    written: dict[str, FileProof] = {}
    files = layout.render_columns(folder, {})
    for name in sorted(labels):
        files |= layout.render_columns(f"{folder}/{name}", pack_text([label_text(v) for v in labels[name]]))
    for key in sorted(files):
        storage.write(key, files[key])
        written[key.removeprefix(f"{folder}/")] = proof(files[key])
    proven = f"{folder}/{layout.LABELS_PROOF}"
    content = {key: p.model_dump() for key, p in written.items()}
    storage.write(proven, canonical_json({"content": content, "sha256": digest(content)}))
    return {*files, proven}


def _drop_other_labels(storage: Storage, segment: str, written: set[str]) -> None:
    """Of a seal that was killed, and had other columns. What another process writes of these same ones stays."""
    folder = f"{segment}/labels"
    for name in storage.folders(folder):
        if f"{folder}/{name}/zarr.json" not in written and name != "leases":
            storage.delete_folder(f"{folder}/{name}")
    for key in [*storage.list_keys(folder)]:
        if key not in written and not contents.is_beside(key):
            storage.delete(key)


def prove_root(storage: Storage) -> dict[str, FileProof]:
    """Proofs of a cache's own metadata and calibration."""
    keys = [key for key in storage.list_keys(layout.CALIBRATION) if contents.is_calibration(key)]
    return {key: proof(_read(storage, key)) for key in (layout.ROOT, *keys)}


def prove_segment(storage: Storage, segment: str, planes: Sequence[str]) -> dict[str, FileProof]:
    """Proofs of a segment's files but the shards, the ledger, the labels and the seal.

    What others have put there, as file managers do, is no part of it.
    """
    keys = (key.removeprefix(f"{segment}/") for key in storage.list_keys(segment))
    return {key: proof(_read(storage, f"{segment}/{key}")) for key in keys if contents.is_metadata(key, planes)}


def _read(storage: Storage, key: str) -> bytes:
    data = storage.read(key)
    if data is None:
        raise CorruptCacheError(f"{storage}/{key} went missing while it was being sealed")
    return data
