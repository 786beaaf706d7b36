"""Turn a cache of one profile into one of another, without the model: only downwards in quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache import codec as codecs
from featcache import layout
from featcache.cores import hold_torch_to_them
from featcache.description import read_spec
from featcache.errors import JobError, MismatchError, UsageError
from featcache.forecast import bits_per_value
from featcache.index import id_hash
from featcache.ledger import ShardRecord
from featcache.plan import Plan, make_plan
from featcache.rewrite import (
    Chosen,
    Made,
    Progress,
    begin_or_find,
    left_to_write,
    named,
    open_source,
    origin_of,
    other_recordings,
    refuse_more,
    write_shards,
)
from featcache.segment import Segment
from featcache.spec import CacheSpec, encoding_id
from featcache.storage import Storage, open_storage
from featcache.store import Cache
from featcache.turns import adding, making
from featcache.writer import SegmentWriter, create_cache, refuse_foreign

CALIBRATION_SECONDS = 600.0
# Decoded activations of the calibration are held in memory at once.
CALIBRATION_BYTES = 768 * 1024 * 1024
# Frames that go to the codec together.
TOGETHER_FRAMES = 1024


@dataclass
class Recoded:
    """What a run did."""

    shards: int = 0
    bytes: int = 0
    bits_before: float = 0.0
    bits_after: float = 0.0


def recode(
    source: str | Path,
    target: str | Path,
    profile: str,
    on_progress: Progress = lambda seconds, written: None,
) -> Recoded:
    """Write `target` as `source` in another profile. Finished shards of an earlier run are kept.

    Args:
        profile: as `featcache.codec.parse_profile` takes it, for example `residual:1.5`.
        on_progress: called with the seconds of audio done and the bytes written since the last call.

    Raises:
        UsageError: the profile does not make the cache smaller, or `target` holds something else or is `source`.
        CacheError: the source is not complete, or its shards do not fit its index.
        MismatchError: `target` was begun from another source or for another profile, or holds what the source
            no longer has.
    """
    hold_torch_to_them()
    storage = open_storage(target)
    cache = open_source(source, storage)
    name, parameters = codecs.parse_profile(profile)
    spec, codec = _prepare(cache, storage, name, parameters)
    refuse_more(storage, [segment.name for segment in cache.segments])
    done = Recoded(bits_before=cache.spec.bits_per_value, bits_after=spec.bits_per_value)
    with adding(storage):
        for segment in cache.segments:
            _segment(cache, segment, storage, spec, codec, done, on_progress)
    return done


def _prepare(cache: Cache, storage: Storage, name: str, parameters: dict[str, Any]) -> tuple[CacheSpec, codecs.Codec]:
    """The description and the codec of the target: those that are there, or new ones."""
    kind = codecs.profile_class(name)
    shape = len(cache.taps), cache.channels
    if storage.exists(layout.ROOT):
        opened = Cache.open(str(storage))
        spec = opened.spec
        same = (spec.profile, spec.parameters, spec.values_id, spec.parent) == (
            name, parameters, cache.values_id, cache.encoding_id,
        )  # fmt: skip
        if not same:
            raise MismatchError(
                f"{storage} holds a cache of another source or profile ({spec.profile}): give another path for {name}"
            )
        return spec, opened.codec
    refuse_foreign(storage)
    rows = _calibration(cache)
    calibration = kind.fit(rows, parameters)
    codec = codecs.build(name, kind.version, *shape, parameters, calibration)
    bits = round(bits_per_value(codec, cache.spec.layout, rows), 4)
    if bits >= cache.spec.bits_per_value:
        raise UsageError(
            f"profile {name} takes {bits:.2f} bits per value and {cache.path} has {cache.spec.bits_per_value:.2f}: "
            "recoding only goes downwards; extract again for a finer one"
        )
    spec = cache.spec.model_copy(
        update={
            "profile": name,
            "profile_version": kind.version,
            "parameters": parameters,
            "bits_per_value": bits,
            "encoding_id": encoding_id(name, kind.version, parameters, calibration),
            "parent": cache.encoding_id,
        }
    )
    with making(storage):
        create_cache(storage, spec, calibration)
    # As it will be read: parameters and arrays that went through the store.
    return read_spec(storage)[0], codec


def _calibration(cache: Cache) -> list[np.ndarray]:
    """Activations of the utterances with the smallest id hashes, as a calibration with the model would draw."""
    lengths, seconds, ids = cache.lengths, cache.seconds, cache.ids
    limit = CALIBRATION_BYTES // (4 * len(cache.taps) * cache.channels)
    rows: list[np.ndarray] = []
    frames, total = 0, 0.0
    for row in sorted(np.flatnonzero(lengths).tolist(), key=lambda row: (id_hash(ids[row]), ids[row])):
        if rows and (total + seconds[row] > CALIBRATION_SECONDS or frames + lengths[row] > limit):
            break
        rows.append(cache.read(row))
        frames += int(lengths[row])
        total += float(seconds[row])
    if not rows:
        raise JobError(f"{cache.path} holds no usable utterance to calibrate on: extract some first")
    return rows


def _segment(
    cache: Cache,
    segment: Segment,
    storage: Storage,
    spec: CacheSpec,
    codec: codecs.Codec,
    done: Recoded,
    on_progress: Progress,
) -> None:
    plan = make_plan(list(segment.ids), segment.column("samples"), spec, codec.bytes_per_frame)
    writer = SegmentWriter(storage, spec, codec, segment.name, plan)
    if begin_or_find(writer, segment.column("audio_sha256")) is not None:
        return
    chosen = [Chosen(cache, segment, range(len(segment)))]
    origin = origin_of(chosen, plan)

    def count(seconds: float, written: int) -> None:
        done.shards += 1
        done.bytes += written
        on_progress(seconds, written)

    write_shards(writer, origin, left_to_write(writer, origin), _encoding(chosen, writer), count)
    if not storage.exists(f"{segment.name}/seal.json"):
        writer.seal({label: segment.labels(label) for label in segment.label_names})
    storage.delete_folder(f"{segment.name}/leases")


def open_parent(place: str | Path, spec: CacheSpec, storage: Storage) -> Cache:
    """The cache that the one at `storage` was recoded from.

    Raises:
        MismatchError: that at `place` is another. UsageError, CacheError: as `open_source`.
    """
    parent = open_source(place, storage)
    if (parent.values_id, parent.encoding_id) != (spec.values_id, spec.parent):
        raise MismatchError(
            f"{storage} was not recoded from {place}: its codes are made of those of a cache with encoding id "
            f"{spec.parent}, and this one's is {parent.encoding_id}; give that one"
        )
    return parent


def made_again(
    parent: Cache, writer: SegmentWriter, records: Mapping[int, ShardRecord]
) -> Callable[[Sequence[int], Progress], None]:
    """What makes shards of a recoded segment again, as they were, from the cache that it was recoded from.

    Args:
        records: those of the segment that are whole, by shard.

    Raises:
        UtteranceNotFound: the parent does not hold an utterance of the segment.
        MismatchError: the parent holds another recording of one.
    """
    hold_torch_to_them()
    chosen = named(parent, writer.plan.ids)
    origin = origin_of(chosen, writer.plan)
    if other_recordings(writer.plan, origin, records) is not None:
        raise MismatchError(
            f"{parent.path} holds other recordings than {writer.storage}/{writer.name} was made of: give the cache as "
            "it was recoded from, or recode it into a new folder"
        )
    encoding = _encoding(chosen, writer)
    return lambda shards, on_shard: write_shards(writer, origin, shards, encoding, on_shard)


def _encoding(chosen: Sequence[Chosen], writer: SegmentWriter) -> Callable[[int], Made]:
    """What makes a shard of these utterances, which are those of the plan, in the writer's profile."""
    plan, codec = writer.plan, writer.codec
    owners = [(part.segment, utterance) for part in chosen for utterance in part.utterances]

    def encoded(shard: int) -> Made:
        block = writer.new_block()
        saturated: dict[int, int] = {}
        for rows, features in _together(_decoded(chosen[0].cache, owners, plan, shard)):
            for row, rest in zip(rows, codec.encode_rows(features), strict=True):
                made = rest()
                block.put(made.planes, int(plan.position[row]) - shard * plan.shard_frames)
                saturated[row] = made.saturated
        return Made(block, saturated)

    return encoded


def _decoded(
    cache: Cache, owners: Sequence[tuple[Segment, int]], plan: Plan, shard: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The usable rows of a shard, each with its features as the cache has them.

    Args:
        owners: where each utterance of the plan lies in the cache.
    """
    utterance, features = -1, np.zeros((0, 0, 0), np.float32)
    for row in plan.shard_rows(shard):
        owner = int(plan.utterance[row])
        segment, place = owners[owner]
        if not segment.usable[place]:
            continue
        if owner != utterance:
            utterance = owner
            features = cache.codec.decode_row(segment.read(place), int(segment.frames[place]))
        offset = int(plan.frames[plan.first_row[owner] : row].sum())
        yield row, features[offset : offset + int(plan.frames[row])]


def _together(decoded: Iterator[tuple[int, np.ndarray]]) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Rows for one call of the codec, which encodes several at a time faster than each alone."""
    rows: list[int] = []
    features: list[np.ndarray] = []
    for row, frames in decoded:
        rows.append(row)
        features.append(frames)
        if sum(map(len, features)) >= TOGETHER_FRAMES:
            yield rows, features
            rows, features = [], []
    if rows:
        yield rows, features
