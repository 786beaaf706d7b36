"""Writing a segment from rows that a cache holds already: whole shards under leases, as extraction does."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np

from featcache import layout
from featcache.block import ShardBlock
from featcache.codec import Arrays, Codec
from featcache.errors import CacheError, CorruptCacheError, MismatchError, UsageError
from featcache.index import pack_text
from featcache.lease import Leases
from featcache.ledger import Quarantined, Saturated, Seal, ShardRecord, read_records, record_key
from featcache.plan import Plan, make_plan
from featcache.segment import Segment, open_segment
from featcache.shards import finish, leased
from featcache.sizes import refuse_without_space, shard_bytes
from featcache.storage import LocalStorage, Storage
from featcache.store import Cache
from featcache.writer import SegmentWriter

Progress = Callable[[float, int], None]


@dataclass(frozen=True)
class Origin:
    """What the ledgers say of rows, in the order of a new plan.

    Digests of their audio, reasons against them, and how many of their values were set to a profile's limit.
    """

    audio: Sequence[str]
    reasons: Mapping[int, str]
    saturated: Mapping[int, int]


@dataclass(frozen=True)
class Made:
    """All frames of one shard, and by row the values that were set to the limit in making them."""

    block: ShardBlock
    saturated: Mapping[int, int] = field(default_factory=dict)


def open_source(place: str | Path, target: Storage) -> Cache:
    """The cache to copy from: a whole one.

    Raises:
        UsageError: it is the place to copy to.
        CacheError: it is not complete, or only a part of it is here.
    """
    cache = Cache.open(place)
    if _is_same(cache.storage, target):
        raise UsageError(f"{target} is both the cache to read and the one to write: give a new folder for the result")
    if cache.origin is not None:
        raise CacheError(f"{place} is a partial copy: `featcache pull {cache.origin} {place}` fetches the rest first")
    if not cache.complete:
        raise CacheError(f"{place} is not complete: first run the command that makes it again (extract, recode, ...)")
    return cache


def _is_same(a: Storage, b: Storage) -> bool:
    """Whether both are one place, by whatever path it is reached."""
    if isinstance(a, LocalStorage) and isinstance(b, LocalStorage):
        return b.root.exists() and b.root.samefile(a.root)
    return a.address == b.address


def refuse_more(target: Storage, names: Collection[str]) -> None:
    """A target of an earlier run must not keep segments that this one would not write.

    Raises:
        MismatchError: it has one: what was in it was forgotten since, is not chosen, or was added to the target.
    """
    for name in layout.segments(target):
        if name not in names:
            raise MismatchError(
                f"{target} holds {name}, which this command would not write: give a new or an empty folder; if "
                f"something was forgotten in the source since, `featcache forget {target} --where ...` does the same"
            )


def begin_or_find(writer: SegmentWriter, audio: np.ndarray) -> Seal | None:
    """Begin the segment, or go on with it; its seal where it is finished already.

    A finished one may be from before the source changed: it must hold the same utterances and recordings.

    Args:
        audio: `(utterances, 32)` uint8, the digests of the plan's recordings, zeros where quarantined.

    Raises:
        MismatchError: the segment was begun, or finished, for other utterances.
    """
    storage, name, plan = writer.storage, writer.name, writer.plan
    found = open_segment(storage, name, lambda: writer.codec, writer.remedy)
    if found is None:
        try:
            writer.begin()
        except MismatchError:
            raise MismatchError(
                f"{storage}/{name} was begun for other utterances than these {len(plan.ids):,}: drop it with "
                f"`featcache gc {storage}` and run the same command again, or give a new or an empty folder"
            ) from None
        return None
    ids = pack_text(plan.ids)
    wanted = {"id_bytes": ids["bytes"], "id_offsets": ids["offsets"], "samples": plan.samples, "audio_sha256": audio}
    if not all(np.array_equal(found.column(column), values) for column, values in wanted.items()):
        raise MismatchError(
            f"{storage}/{name} is finished and holds other utterances than these {len(plan.ids):,} (some were added, "
            f"forgotten or chosen otherwise since): give a new or an empty folder, or delete {storage} first"
        )
    return found.seal


def left_to_write(writer: SegmentWriter, origin: Origin) -> list[int]:
    """The shards that an unfinished segment lacks.

    Raises:
        MismatchError: shards that are there were made of other recordings.
        JobError: there is no room for those that are not.
    """
    records = writer.records()
    other = other_recordings(writer.plan, origin, records)
    if other is not None:
        raise MismatchError(
            f"shard {other} of {writer.storage}/{writer.name} was made of other recordings: drop it with "
            f"`featcache gc {writer.storage}` and run the same command again"
        )
    left = [shard for shard in range(writer.plan.shards) if shard not in records]
    refuse_without_space(
        writer.storage, shard_bytes(writer.plan, left, writer.spec), "free some space, or choose another path"
    )
    return left


def other_recordings(plan: Plan, origin: Origin, records: Mapping[int, ShardRecord]) -> int | None:
    """The first shard that was made of others: a plan knows ids and lengths, and not which recordings they are of."""
    for shard, record in records.items():
        if list(record.audio) != [origin.audio[row] for row in plan.shard_rows(shard)]:
            return shard
    return None


def write_shards(
    writer: SegmentWriter, origin: Origin, shards: Sequence[int], block_of: Callable[[int], Made], on_shard: Progress
) -> None:
    """Write and record these shards; several processes may do so at once.

    Args:
        block_of: makes one shard.
        on_shard: called with the seconds of audio and the bytes of each shard written.
    """
    plan = writer.plan
    leases = Leases(writer.storage)
    try:
        for shard in leased(writer, leases, shards):
            span = plan.shard_rows(shard)
            quarantined = [
                Quarantined(row=row, id=plan.ids[plan.utterance[row]], reason=origin.reasons[row])
                for row in span
                if row in origin.reasons
            ]
            made = block_of(shard)
            # A value at the limit of the old profile is most likely at that of the new one too: it counts once.
            counts = {row: max(origin.saturated.get(row, 0), made.saturated.get(row, 0)) for row in span}
            saturated = [Saturated(row=row, values=count) for row, count in counts.items() if count]
            audio = [origin.audio[row] for row in span]
            written = finish(writer, leases, shard, made.block, audio, quarantined, saturated)
            on_shard(plan.shard_seconds(shard), written)
    finally:
        leases.close()


@dataclass(frozen=True)
class Chosen:
    """Utterances of a cache by their positions in one of its segments, in the order wanted."""

    cache: Cache
    segment: Segment
    utterances: Sequence[int]


def copy_segment(
    chosen: Sequence[Chosen],
    storage: Storage,
    name: str,
    labels: Sequence[str],
    on_shard: Progress = lambda seconds, written: None,
) -> Seal:
    """Write the codes of these utterances as segment `name`, unchanged, and seal it. Goes on where it stopped.

    All come from caches of one encoding, whose description `storage` has already.

    Args:
        labels: the columns to write; None where an utterance has no such label.

    Raises:
        MismatchError: the segment was begun, or finished, for other utterances.
        CorruptCacheError: a shard to copy from is not as it was written.
    """
    spec, codec = chosen[0].cache.spec, chosen[0].cache.codec
    owners = [(part.segment, utterance) for part in chosen for utterance in part.utterances]
    ids = [segment.ids[utterance] for segment, utterance in owners]
    samples = [int(segment.column("samples")[utterance]) for segment, utterance in owners]
    plan = make_plan(ids, samples, spec, codec.bytes_per_frame)
    writer = SegmentWriter(storage, spec, codec, name, plan)
    audio = [part.segment.column("audio_sha256")[list(part.utterances)] for part in chosen]
    found = begin_or_find(writer, np.concatenate(audio))
    if found is not None:
        return found
    origin = origin_of(chosen, plan)

    def block_of(shard: int) -> Made:
        block = writer.new_block()
        for row in plan.shard_rows(shard):
            # Also of an utterance that is not usable for another row's sake: `repair` computes what is here again.
            if not origin.audio[row]:
                continue
            owner = int(plan.utterance[row])
            segment, place = owners[owner]
            codes = segment.read_row(place, row - int(plan.first_row[owner]))
            _put(block, codec, codes, int(plan.position[row]) - shard * plan.shard_frames)
        return Made(block)

    write_shards(writer, origin, left_to_write(writer, origin), block_of, on_shard)
    seal = writer.seal({label: _column(chosen, label) for label in labels})
    storage.delete_folder(f"{name}/leases")
    return seal


def _put(block: ShardBlock, codec: Codec, codes: Arrays, at: int) -> None:
    """The codes of a row, as `Segment.read_row` gives them, from frame `at` of the block on."""
    frames = len(codes[codec.planes[0].name])
    for name, values in codes.items():
        # Of a plane that is needed for some frames there are no more than those: the others are zeros, as they were.
        block.put({name: values}, at + codec.needed(name, codes, frames).start)


def origin_of(chosen: Sequence[Chosen], plan: Plan) -> Origin:
    """The ledger's word on the rows of these utterances, which are those of the plan.

    Raises:
        CorruptCacheError: a record is missing or damaged.
        CacheError: rows are cut otherwise today, so that the stored ones are not those that are planned.
    """
    if not np.array_equal(_row_frames(chosen), plan.frames):
        raise CacheError(
            f"{chosen[0].cache.path} was planned by other rules than this version's: extract it again with this one"
        )
    audio: list[str] = []
    reasons: dict[int, str] = {}
    saturated: dict[int, int] = {}
    for part in chosen:
        whole = _origin_of_all(part.segment)
        first_row = part.segment.column("first_row")
        for utterance in part.utterances:
            for row in range(int(first_row[utterance]), int(first_row[utterance + 1])):
                if row in whole.reasons:
                    reasons[len(audio)] = whole.reasons[row]
                if row in whole.saturated:
                    saturated[len(audio)] = whole.saturated[row]
                audio.append(whole.audio[row])
    return Origin(audio, reasons, saturated)


def _origin_of_all(segment: Segment) -> Origin:
    """The ledger's word on all rows of a segment.

    Raises:
        CorruptCacheError: a record is missing or damaged.
    """
    records = read_records(segment.storage, segment.name, segment.remedy)
    missing = [shard for shard in range(segment.seal.shards) if shard not in records]
    if missing:
        raise CorruptCacheError(
            f"{segment.storage}/{record_key(segment.name, missing[0])} is missing or cannot be read: {segment.remedy}"
        )
    return Origin(
        [digest for shard in sorted(records) for digest in records[shard].audio],
        {q.row: q.reason for record in records.values() for q in record.quarantined},
        {s.row: s.values for record in records.values() for s in record.saturated_rows},
    )


def _row_frames(chosen: Sequence[Chosen]) -> np.ndarray:
    """`(rows,)` int64: the frames of all rows."""
    found = [np.zeros(0, np.int64)]
    for part in chosen:
        first_row, frames = part.segment.column("first_row").tolist(), part.segment.column("row_frames")
        found += [frames[first_row[u] : first_row[u + 1]] for u in part.utterances]
    return np.concatenate(found)


def _column(chosen: Sequence[Chosen], label: str) -> list[str | None]:
    columns = [part.segment.labels(label) for part in chosen]
    return [column[u] for part, column in zip(chosen, columns, strict=True) for u in part.utterances]


def choose(cache: Cache, keep: np.ndarray) -> list[Chosen]:
    """The utterances of a cache for which `keep` `(utterances,)` is true, segment by segment."""
    chosen = []
    offset = 0
    for segment in cache.segments:
        positions = np.flatnonzero(keep[offset : offset + len(segment)]).tolist()
        if positions:
            chosen.append(Chosen(cache, segment, positions))
        offset += len(segment)
    return chosen


def named(cache: Cache, ids: Sequence[str]) -> list[Chosen]:
    """These utterances of a cache, in this order.

    Raises:
        UtteranceNotFound: it does not hold one of them.
    """
    ends = np.cumsum([len(segment) for segment in cache.segments])
    rows = [cache.row(utterance_id) for utterance_id in ids]
    chosen = []
    for number, of_one in groupby(rows, lambda row: int(np.searchsorted(ends, row, side="right"))):
        segment = cache.segments[number]
        chosen.append(Chosen(cache, segment, [row - int(ends[number]) + len(segment) for row in of_one]))
    return chosen
