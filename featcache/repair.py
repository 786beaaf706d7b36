"""Compute what `verify` finds broken again, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from featcache import layout
from featcache.errors import JobError
from featcache.extract import run_shards
from featcache.job import Job, Request, label_columns, rows_not_in
from featcache.manifest import Row
from featcache.plan import make_plan
from featcache.progress import AudioProgress
from featcache.reading import row_samples
from featcache.verify import Problem, verify
from featcache.writer import SegmentWriter


def repair(manifest: str | Path, place: str | Path, device: str = "cpu") -> list[str]:
    """Repair a cache from its manifest; returns the files that were made again.

    Shards are computed by the model, index and labels rebuilt. The result is proven against the seal: a
    repair that does not give the same bytes fails.

    Raises:
        JobError: the damage is to what proves the rest, the manifest lacks utterances of the cache, or the
            bytes come out otherwise (another kind of device, changed audio).
    """
    report = verify(place)
    beyond = [p for p in report.problems if not p.key.startswith(f"{layout.SEGMENTS}/") or p.key.endswith("/seal.json")]
    if beyond:
        raise JobError(
            f"{place}/{beyond[0].key} {beyond[0].what}, and everything else is proven against it: "
            "restore it from a copy of the cache, or make the cache anew"
        )
    if not report.problems:
        return []
    job = Job(manifest, place, Request(), device)
    broken: dict[str, list[Problem]] = {}
    for problem in report.problems:
        broken.setdefault("/".join(problem.key.split("/")[:2]), []).append(problem)
    for name, problems in broken.items():
        _repair_segment(job, name, problems)
    left = verify(place).problems
    if left:
        raise JobError(
            f"{place}/{left[0].key} {left[0].what} even after the repair: restore it from a copy of the cache"
        )
    return [problem.key for problem in report.problems]


def _repair_segment(job: Job, name: str, problems: Sequence[Problem]) -> None:
    storage, cache = job.storage, job.cache
    rows = _rows_of(job, name, any("/index/" in p.key for p in problems))
    plan = make_plan(
        [row.id for row in rows], [row_samples(row) for row in rows], job.spec, cache.codec.bytes_per_frame
    )
    writer = SegmentWriter(storage, job.spec, cache.codec, name, plan)
    seal = storage.read(f"{name}/seal.json")
    for problem in problems:
        storage.delete(problem.key)
    writer.begin()
    records = writer.records()
    missing = [shard for shard in range(plan.shards) if shard not in records]
    if missing:
        seconds = sum(map(plan.shard_seconds, missing))
        with AudioProgress(f"repairing {len(missing)} of {plan.shards} shards", seconds) as progress:
            run_shards(writer, rows, job.manifest, job.upstream, missing, progress.advance)
    if seal is not None:
        try:
            writer.seal(label_columns(rows))
        finally:
            changed = storage.read(f"{name}/seal.json") != seal
            if changed:
                storage.write(f"{name}/seal.json", seal)
        if changed:
            raise JobError(
                f"{storage}/{name} came out otherwise than it was sealed: the manifest's labels or audio have changed "
                "since; restore the damaged files from a copy of the cache, or make the cache anew"
            )


def _rows_of(job: Job, name: str, index_is_broken: bool) -> list[Row]:
    """The manifest rows of a segment, in the segment's order."""
    others = [segment for segment in job.cache.segments if segment.name != name]
    own = next((segment for segment in job.cache.segments if segment.name == name), None)
    if own is None or index_is_broken:
        return rows_not_in(others, job.rows)
    known = {row.id: row for row in job.rows}
    missing = [utterance_id for utterance_id in own.ids if utterance_id not in known]
    if missing:
        raise JobError(
            f"{job.manifest} lacks {len(missing)} utterances of {job.storage}/{name} (the first: {missing[0]!r}): "
            "repair with the manifest that the cache was made from"
        )
    return [known[utterance_id] for utterance_id in own.ids]
