"""A shard that is being filled with encoded rows."""

from __future__ import annotations

from featcache.block import ShardBlock
from featcache.ledger import Quarantined, Saturated
from featcache.plan import Plan


class ShardState:
    """What is known of a shard so far; `missing`: rows that are still to be computed."""

    def __init__(self, shard: int, plan: Plan, block: ShardBlock) -> None:
        self.shard = shard
        self.span = plan.shard_rows(shard)
        self.missing = plan.rows_with_frames(shard)
        self.block = block
        self.audio = dict.fromkeys(self.span, "")
        self.quarantined: list[Quarantined] = []
        self.saturated: list[Saturated] = []
        self.seconds = 0.0

    def leave_out(self, plan: Plan, row: int, reason: str) -> None:
        self.quarantined.append(Quarantined(row=row, id=plan.ids[plan.utterance[row]], reason=reason))
