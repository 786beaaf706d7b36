"""What the views of a manifest cost, beside the recordings themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from featcache.manifest import Row
from featcache.plan import SAMPLE_RATE, make_plan, predicted_bytes
from featcache.reading import row_samples
from featcache.spec import CacheSpec
from featcache.views import VIEW


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
    through_the_model = float((plan.stop - plan.start).sum()) / SAMPLE_RATE  # windows overlap
    return ViewCost(
        view=kind,
        utterances=len(rows),
        to_add=sum(row.id in missing for row in rows),
        hours=plan.seconds / 3600,
        bytes=predicted_bytes(plan.total_frames, len(rows), spec, spec.bits_per_value),
        seconds=through_the_model / realtime if realtime else None,
    )
