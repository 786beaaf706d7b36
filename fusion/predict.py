"""Run a head over a split of a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fusion.data import Loader, plan_evaluation
from fusion.distributed import World, autocast
from fusion.head import Head
from fusion.labels import Split

if TYPE_CHECKING:
    from featcache.store import Cache
    from fusion.tasks.base import Task


@dataclass(frozen=True)
class Predictions:
    values: tuple[Any, ...]
    """The task's predictions, one an utterance, in the order of the split."""
    loss: float
    """Mean over batches; infeasible rows count as zero."""


@torch.no_grad()
def predict(
    head: Head,
    task: Task,
    cache: Cache,
    split: Split,
    world: World,
    *,
    taps: tuple[str, ...],
    batch_seconds: float,
    precision: str = "auto",
    workers: int = 2,
) -> Predictions:
    """What a head says of every utterance of a split; each process does its share, all get the whole."""
    training = head.training
    head.eval()
    found: dict[int, Any] = {}
    losses: list[float] = []
    slots = plan_evaluation(split.frames, round(batch_seconds * cache.frame_rate))[world.rank :: world.size]
    try:
        with Loader(cache, split, world.device, taps, workers) as loader:
            for batch in loader.batches(slots):
                with autocast(precision, world.device):
                    logits, lengths = head(batch.features, batch.lengths)
                losses.append(float(task.loss(logits, lengths, batch.targets)))
                values = task.predict(logits.float(), lengths)
                found.update(zip((int(position) for position in batch.slot.positions), values, strict=True))
    finally:
        head.train(training)
    everything: dict[int, Any] = {}
    all_losses: list[float] = []
    for part in world.gather({"values": list(found.items()), "losses": losses}):
        everything.update((position, value) for position, value in part["values"])
        all_losses += part["losses"]
    return Predictions(tuple(everything[i] for i in range(len(split))), sum(all_losses) / max(len(all_losses), 1))
