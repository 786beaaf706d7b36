"""Whole shards, one writer each: which are ours to write, and how one is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from featcache.block import ShardBlock
from featcache.layout import Each
from featcache.lease import Leases
from featcache.ledger import Quarantined, Saturated, ShardRecord
from featcache.writer import SegmentWriter

# How long to wait before looking again for a shard that another process is writing.
POLL_SECONDS = 1.0


def leased(
    writer: SegmentWriter, leases: Leases, shards: Sequence[int], stopped: Callable[[], bool] = lambda: False
) -> Iterator[int]:
    """The shards that are ours to write, each under a lease; comes back to those of others until they are recorded.

    Args:
        stopped: no more shards are wanted.
    """
    for [shard] in leased_groups(writer, leases, [[shard] for shard in shards], stopped):
        yield shard


def leased_groups(
    writer: SegmentWriter,
    leases: Leases,
    groups: Iterable[Sequence[int]],
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[list[int]]:
    """As `leased`, of shards that are computed together: those of a group that are free at the same time."""
    waiting = [list(group) for group in groups]
    while waiting and not stopped():
        others: list[list[int]] = []
        for group in waiting:
            if stopped():
                return
            ours, theirs = _lease_group(writer, leases, group)
            if ours:
                yield ours
            others.append(theirs)
        waiting = [left for theirs in others if (left := [s for s in theirs if not writer.is_done(s)])]
        if waiting:
            leases.wait(POLL_SECONDS)


def _lease_group(writer: SegmentWriter, leases: Leases, group: Sequence[int]) -> tuple[list[int], list[int]]:
    """Which of these shards are ours now, and which are left to others.

    Whoever has the first that is not done is about to take the rest: of two processes that begin a group at the same
    time, only one is to compute it.
    """
    ours: list[int] = []
    theirs: list[int] = []
    for at, shard in enumerate(group):
        if not leases.acquire(_lease_key(writer, shard)):
            if not ours:
                return [], list(group[at:])
            theirs.append(shard)
        # Another process may have finished it since we looked.
        elif writer.is_done(shard):
            leases.release(_lease_key(writer, shard))
        else:
            ours.append(shard)
    return ours, theirs


def finish(
    writer: SegmentWriter,
    leases: Leases,
    shard: int,
    block: ShardBlock,
    audio: Sequence[str],
    quarantined: Sequence[Quarantined],
    saturated: Sequence[Saturated] = (),
    each: Each = map,
) -> int:
    """Write a leased shard, then its record, and give the lease back; returns the bytes written.

    The lease is looked at before the bytes and before the record, so that a process that stood still for too
    long overwrites nothing and records nothing.

    Args:
        block: all its frames.
        audio: digests of its rows' audio.
        saturated: rows with values at the profile's limit, in order.
        each: as for `layout.render_shard`.

    Raises:
        JobError: the lease was lost, or the place cannot be written to.
    """
    lease = _lease_key(writer, shard)
    files = writer.render(block, shard, each)
    leases.check(lease)
    proofs = writer.write_files(files)
    leases.check(lease)
    writer.record(
        ShardRecord(
            shard=shard,
            files=proofs,
            first=writer.plan.shard_rows(shard).start,
            audio=tuple(audio),
            quarantined=tuple(quarantined),
            saturated=sum(found.values for found in saturated),
            saturated_rows=tuple(saturated),
        )
    )
    leases.release(lease)
    return sum(map(len, files.values()))


def _lease_key(writer: SegmentWriter, shard: int) -> str:
    return f"{writer.name}/leases/{shard:06d}"
