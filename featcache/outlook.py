"""What `plan` prints: what is there, what is missing, and what that will cost, by profile and by view."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featcache.manifest import Row
from featcache.plan import make_plan
from featcache.reading import row_samples
from featcache.sizes import ProfileSize, predicted_bytes, profile_sizes, shard_bytes
from featcache.spec import CacheSpec
from featcache.views import VIEW

if TYPE_CHECKING:
    from featcache.job import Job


@dataclass(frozen=True)
class ViewCost:
    """All rows of a manifest that are of one view; `to_add` of them are not in the cache yet.

    `seconds` is the time of extraction, None where this kind of device was not measured yet.
    """

    view: str
    utterances: int
    to_add: int
    hours: float
    bytes: int
    seconds: float | None


@dataclass(frozen=True)
class Outlook:
    """What `plan` prints: what is there, what is missing, and what that will cost.

    `planned` to `padding_waste` are of the whole segment, `bytes` and `seconds` of the shards that are not finished;
    `profiles` and `views` are of the whole manifest.
    """

    utterances: int
    present: int
    planned: int
    hours: float
    frames: int
    shards: int
    shards_done: int
    batches: int
    padding_waste: float
    bytes: int
    free_bytes: int
    seconds: float | None
    unusable: list[tuple[str, str]]
    profiles: list[ProfileSize]
    views: list[ViewCost]


def outlook(job: Job) -> Outlook:
    """The plan of what is missing. Needs the cache's description, so `init` comes first.

    Raises:
        MismatchError: `extract` would not add it; see `Job.refuse_recoded`.
    """
    job.refuse_recoded()
    plan, spec = job.plan, job.spec
    records = job.writer.records() if plan.rows else {}
    left = [shard for shard in range(plan.shards) if shard not in records]
    todo = sum(plan.shard_seconds(shard) for shard in left)
    rate = job.realtime()
    unusable = [
        (plan.ids[u], "too short for the model to make a frame of")
        for u in np.flatnonzero(spec.geometry.frames_of(plan.samples) <= 0).tolist()
    ]
    batches, padding_waste = plan.passes
    return Outlook(
        utterances=len(job.rows),
        present=len(job.rows) - len(job.new_rows),
        planned=len(plan.ids),
        hours=plan.seconds / 3600,
        frames=plan.total_frames,
        shards=plan.shards,
        shards_done=plan.shards - len(left),
        batches=batches,
        padding_waste=padding_waste,
        bytes=shard_bytes(plan, left, spec),
        free_bytes=job.storage.free_bytes(),
        seconds=todo / rate if rate else None,
        unusable=unusable,
        profiles=profile_sizes([row_samples(row) for row in job.rows], spec),
        views=view_costs(job.rows, job.new_rows, spec, rate),
    )


def view_costs(rows: Sequence[Row], new: Collection[Row], spec: CacheSpec, realtime: float | None) -> list[ViewCost]:
    """The originals first, then each view in the order of the manifest; nothing where it has no views.

    Args:
        new: those of the rows that the cache lacks.
        realtime: seconds of speech a second that extraction takes.
    """
    kinds: dict[str, list[Row]] = {"originals": []}
    for row in rows:
        kinds.setdefault(_kind(row), []).append(row)
    if len(kinds) == 1:
        return []
    missing = {row.id for row in new}
    return [_cost(kind, found, missing, spec, realtime) for kind, found in kinds.items()]


def _kind(row: Row) -> str:
    if row.view_of is None:
        return "originals"
    return str(row.labels.get(VIEW) or "recorded apart")


def _cost(kind: str, rows: Sequence[Row], missing: set[str], spec: CacheSpec, realtime: float | None) -> ViewCost:
    plan = make_plan([row.id for row in rows], [row_samples(row) for row in rows], spec, 1)
    through_the_model = plan.model_seconds()
    return ViewCost(
        view=kind,
        utterances=len(rows),
        to_add=sum(row.id in missing for row in rows),
        hours=plan.seconds / 3600,
        bytes=predicted_bytes(plan.total_frames, len(rows), spec, spec.bits_per_value),
        seconds=through_the_model / realtime if realtime else None,
    )
