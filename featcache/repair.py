"""Compute what `verify` finds broken again, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from featcache import layout
from featcache.contents import is_mendable, shard_of
from featcache.errors import JobError, UsageError
from featcache.extract import run_shards
from featcache.index import build_columns, label_text, pack_text
from featcache.job import Job, Request, label_columns
from featcache.ledger import ShardRecord, ledger_digest, proof, read_proofs, read_record, read_records, record_key
from featcache.manifest import Row
from featcache.plan import Plan, make_plan
from featcache.progress import AudioProgress
from featcache.reading import row_samples
from featcache.recode import made_again, open_parent
from featcache.segment import Segment
from featcache.store import Cache
from featcache.turns import adding
from featcache.upstreams import UpstreamConfig
from featcache.verify import verify
from featcache.writer import SegmentWriter, write_labels


def repair(
    manifest: str | Path,
    place: str | Path,
    device: str = "cpu",
    upstream: UpstreamConfig | None = None,
    source: str | Path | None = None,
) -> list[str]:
    """Repair a cache from its manifest; returns the files that were made again.

    Shards are computed by the model, or from the cache that this one was recoded from; files of index and labels are
    rebuilt. Each is proven against the seal, the ledger or the labels' proof: a repair that does not give the same
    bytes fails. What is whole is not touched, so that labels which the manifest has otherwise stay, and a partial copy
    stays a part.

    Args:
        upstream: names the cache's model where that was moved since.
        source: the cache that this one was recoded from, of whose codes its shards are made.

    Raises:
        UsageError: `source` of a cache that was not recoded.
        MismatchError: `upstream` is another model, or `source` another cache.
        JobError: the damage is to what proves the rest, the manifest lacks utterances or labels of the cache, shards
            of a recoded cache are broken and there is no `source`, or the bytes come out otherwise (another kind of
            device, changed audio).
    """
    report = verify(place)
    beyond = next((problem for problem in report.problems if not is_mendable(problem.key)), None)
    if beyond is not None:
        raise JobError(
            f"{place}/{beyond.key} {beyond.what}, and everything else is proven against it: "
            "restore it from a copy of the cache, or make the cache anew"
        )
    if not report.problems:
        return []
    job = Job(manifest, place, Request(upstream), device)
    job.check_request()
    if job.relocated:
        job.check_values()
    broken: dict[str, set[str]] = {}
    for problem in report.problems:
        folder, number, key = problem.key.split("/", 2)
        broken.setdefault(f"{folder}/{number}", set()).add(key)
    lost = {name for name, keys in broken.items() if any(key.startswith(_IDS) for key in keys)}
    parent = _parent(job, source, broken)
    with adding(job.storage):
        for name in sorted(broken):
            _repair_segment(job, name, broken[name], lost, parent)
            lost.discard(name)
    left = verify(place).problems
    if left:
        raise JobError(
            f"{place}/{left[0].key} {left[0].what} even after the repair: restore it from a copy of the cache"
        )
    return [problem.key for problem in report.problems]


# What a segment's ids are read from.
_IDS = ("index/id_bytes/", "index/id_offsets/")


def _parent(job: Job, source: str | Path | None, broken: Mapping[str, set[str]]) -> Cache | None:
    """The cache that shards are made again from, before anything is touched; None where the model makes them.

    Its codes are those of features that were rounded before: the model's own would give others.
    """
    spec = job.spec
    if source is not None:
        if spec.parent is None:
            raise UsageError(f"{job.storage} was not recoded from another cache: leave out --source {source}")
        return open_parent(source, spec, job.storage)
    keys = (f"{name}/{key}" for name in sorted(broken) for key in sorted(broken[name]))
    key = next((key for key in keys if shard_of(key) is not None), None)
    if spec.parent is not None and key is not None:
        raise JobError(
            f"{job.storage}/{key} is broken, and this cache was recoded from one with encoding id {spec.parent}, of "
            f"whose codes its shards are made: run `featcache repair {job.manifest} {job.storage} --source CACHE` with "
            "that one; where it is gone, restore the file from a copy, or make the cache anew"
        )
    return None


def _repair_segment(job: Job, name: str, broken: set[str], lost: Container[str], parent: Cache | None) -> None:
    """`broken` are the segment's files by their keys relative to it, `lost` as for `_rows_of`."""
    storage, cache = job.storage, job.cache
    own = next((segment for segment in cache.segments if segment.name == name), None)
    rows = _rows_of(job, name, lost)
    plan = make_plan(
        [row.id for row in rows], [row_samples(row) for row in rows], job.spec, cache.codec.bytes_per_frame
    )
    if own is not None:
        _refuse_other_plan(job, own, plan, broken)
    writer = SegmentWriter(storage, job.spec, cache.codec, name, plan)
    shards = sorted({shard for key in broken if (shard := shard_of(f"{name}/{key}")) is not None})
    again = None
    if parent is not None and shards:
        again = made_again(parent, writer, _whole_records(writer, broken))
    labels = {key for key in broken if key.startswith("labels/")}
    if labels and own is not None:
        _repair_labels(job, own, labels, rows)
    elif labels:
        # They are written just before the seal, so those of an unfinished segment are nothing yet.
        storage.delete_folder(f"{name}/labels")
    for key in broken - labels:
        storage.delete(f"{name}/{key}")
    writer.begin()
    if shards:
        seconds = sum(map(plan.shard_seconds, shards))
        with AudioProgress(f"repairing {len(shards)} of {plan.shards} shards", seconds) as progress:
            if again is None:
                run_shards(writer, rows, job.manifest, job.upstream, shards, progress.advance)
            else:
                again(shards, progress.advance)
    if own is not None:
        _repair_index(writer, own, {key for key in broken if key.startswith("index/")})
    storage.delete_temporary(name)


def _whole_records(writer: SegmentWriter, broken: Container[str]) -> dict[int, ShardRecord]:
    """Those of a segment of which these files are broken."""
    whole = (s for s in range(writer.plan.shards) if record_key("", s).removeprefix("/") not in broken)
    found = {shard: read_record(writer.storage, writer.name, shard, writer.remedy) for shard in whole}
    return {shard: record for shard, record in found.items() if record is not None}


def _repair_index(writer: SegmentWriter, own: Segment, broken: set[str]) -> None:
    """Write these files of the index anew, if the ledger is the one that was sealed."""
    records = read_records(writer.storage, writer.name, writer.remedy)
    files = layout.render_columns(f"{own.name}/index", build_columns(writer.plan, records)) if broken else {}
    made = {key: files.get(f"{own.name}/{key}", b"") for key in sorted(broken)}
    if ledger_digest(records) != own.seal.ledger or any(proof(made[key]) != own.seal.files.get(key) for key in made):
        raise JobError(
            f"{writer.storage}/{own.name} came out otherwise than it was sealed: the manifest's audio has changed "
            "since; restore the damaged files from a copy of the cache, or make the cache anew"
        )
    for key, data in made.items():
        writer.storage.write(f"{own.name}/{key}", data)


def _repair_labels(job: Job, own: Segment, broken: set[str], rows: Sequence[Row]) -> None:
    """Write these files below `labels/` anew from the manifest: as they were, or not at all."""
    storage, folder = job.storage, f"{own.name}/labels"
    columns = label_columns(rows)

    def refuse(what: str) -> JobError:
        return JobError(
            f"{job.manifest} does not have the labels of {storage}/{own.name} ({what}): repair with the manifest that "
            "the cache was made from, or restore the damaged files from a copy of the cache"
        )

    if f"labels/{layout.LABELS_PROOF}" in broken:
        # Nothing tells any more what the columns were, so the manifest's take their place; but none is lost.
        lost = [name for name in storage.folders(folder) if name not in columns]
        if lost:
            raise refuse(f"no {lost[0]!r}")
        write_labels(storage, own.name, columns)
        return
    expected = read_proofs(storage.read(f"{folder}/{layout.LABELS_PROOF}") or b"", f"{storage}/{folder}", own.remedy)
    files = layout.render_columns(folder, {})
    for name in {key.split("/")[1] for key in broken} & columns.keys():
        files |= layout.render_columns(f"{folder}/{name}", pack_text([label_text(v) for v in columns[name]]))
    for key in sorted(broken):
        made = files.get(f"{own.name}/{key}")
        if made is None or proof(made) != expected[key.removeprefix("labels/")]:
            raise refuse(f"{'no' if made is None else 'other values of'} {key.split('/')[1]!r}")
    for key in sorted(broken):
        storage.write(f"{own.name}/{key}", files[f"{own.name}/{key}"])


def _rows_of(job: Job, name: str, lost: Container[str]) -> list[Row]:
    """The manifest rows of a segment, in the segment's order.

    Where its own ids are lost, they are the first rows that no other segment is known to hold: rows are added in
    the manifest's order, and `_refuse_other_plan` says whether it was so.

    Args:
        lost: segments whose ids cannot be read.
    """
    segments = {segment.name: segment for segment in job.cache.segments}
    own = segments.get(name)
    if own is None or name in lost:
        others = {i for other in segments.values() if other.name not in lost for i in other.ids}
        rest = [row for row in job.rows if row.id not in others]
        return rest if own is None else rest[: len(own)]
    known = {row.id: row for row in job.rows}
    missing = [utterance_id for utterance_id in own.ids if utterance_id not in known]
    if missing:
        raise JobError(
            f"{job.manifest} lacks {len(missing)} utterances of {job.storage}/{name} (the first: {missing[0]!r}): "
            "repair with the manifest that the cache was made from"
        )
    return [known[utterance_id] for utterance_id in own.ids]


def _refuse_other_plan(job: Job, own: Segment, plan: Plan, broken: Container[str]) -> None:
    """Nothing is to be written, or removed, for rows that are not the segment's."""
    found = (len(plan.ids), plan.shards)
    same = found == (own.seal.utterances, own.seal.shards)
    if same and "plan.json" not in broken:
        content = json.loads(job.storage.read(f"{own.name}/plan.json") or b"{}").get("content", {})
        same = content.get("plan") == plan.digest
    if not same:
        raise JobError(
            f"{job.manifest} does not give the {own.seal.utterances} utterances of {job.storage}/{own.name} in their "
            "order and with their lengths: repair with the manifest that the cache was made from"
        )
