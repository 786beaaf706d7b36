"""What `extract --strict` asks of a cache beyond its own run: that earlier ones have left no row out either."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from featcache.errors import JobError
from featcache.ledger import Quarantined, ShardRecord, read_records
from featcache.storage import Storage
from featcache.store import Cache


def refuse_complete_without(cache: Cache, ids: Collection[str]) -> None:
    """Of sealed segments, which may hold rows of other manifests too.

    Args:
        ids: the manifest's.

    Raises:
        JobError: one of these rows was left out.
    """
    for segment in cache.segments:
        if not segment.seal.quarantined:
            continue
        found = _left_out(read_records(segment.storage, segment.name, segment.remedy))
        first = next((left for left in found if left.id in ids), None)
        if first is not None:
            raise JobError(
                f"{first.id!r} cannot be used: {first.reason} (--strict); {cache.storage} is complete without it: "
                f"mend it, then `featcache forget {cache.storage} --where id={first.id}` and this command"
            )


def refuse_left_out(storage: Storage, records: Mapping[int, ShardRecord]) -> None:
    """A segment of which a run without --strict has made a part is not finished as if all of it could be used.

    Raises:
        JobError: its records say that a row was left out.
    """
    first = next(iter(_left_out(records)), None)
    if first is not None:
        raise JobError(
            f"{first.id!r} cannot be used: {first.reason} (--strict); a run without --strict has left it out: "
            f"finish without --strict, or mend it and drop what is there with `featcache gc {storage}`"
        )


def _left_out(records: Mapping[int, ShardRecord]) -> list[Quarantined]:
    """In the order of the rows."""
    return sorted((left for record in records.values() for left in record.quarantined), key=lambda left: left.row)
