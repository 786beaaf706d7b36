"""Whole shards, one writer each: which are ours to write, and how one is finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from featcache.block import ShardBlock
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
    waiting = list(shards)
    while waiting and not stopped():
        others: list[int] = []
        for shard in waiting:
            if stopped():
                return
            if leases.acquire(_lease_key(writer, shard)):
                # Another process may have finished it since we looked.
                if writer.is_done(shard):
                    leases.release(_lease_key(writer, shard))
                else:
                    yield shard
            else:
                others.append(shard)
        waiting = [shard for shard in others if not writer.is_done(shard)]
        if waiting:
            leases.wait(POLL_SECONDS)


def finish(
    writer: SegmentWriter,
    leases: Leases,
    shard: int,
    block: ShardBlock,
    audio: Sequence[str],
    quarantined: Sequence[Quarantined],
    saturated: Sequence[Saturated] = (),
) -> int:
    """Write a leased shard, then its record, and give the lease back; returns the bytes written.

    The lease is looked at before the bytes and before the record, so that a process that stood still for too
    long overwrites nothing and records nothing.

    Args:
        block: all its frames.
        audio: digests of its rows' audio.
        saturated: rows with values at the profile's limit, in order.

    Raises:
        JobError: the lease was lost, or the place cannot be written to.
    """
    lease = _lease_key(writer, shard)
    files = writer.render(block, shard)
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
