"""Run heads over a split of a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fusion.crew import Crew
from fusion.data import Batch, Loader, Workers, pick_taps, plan_evaluation, union_of_taps
from fusion.distributed import World, autocast
from fusion.head import Head
from fusion.labels import Split

if TYPE_CHECKING:
    from featcache.store import Cache
    from fusion.tasks.base import Task


@dataclass(frozen=True)
class Reader:
    """A head and what it is to read."""

    head: Head
    task: Task
    split: Split
    taps: tuple[str, ...]
    precision: str = "auto"


@dataclass(frozen=True)
class Predictions:
    values: tuple[Any, ...]
    """The task's predictions, one an utterance, in the order of the split."""
    loss: float
    """Mean over batches; infeasible rows count as zero."""


def predict_together(
    readers: Sequence[Reader],
    cache: Cache,
    world: World,
    *,
    batch_seconds: float,
    workers: Workers = "auto",
    threads: int = 0,
) -> list[Predictions]:
    """What each head says of every utterance, in one pass; each process does its share, all get the whole.

    Args:
        readers: all of splits with the same rows.
        threads: of the arithmetic of each head, as for `Crew`.
    """
    split = readers[0].split
    taps = union_of_taps([reader.taps for reader in readers], cache.taps)
    found: list[dict[int, Any]] = [{} for _ in readers]
    losses: list[list[float]] = [[] for _ in readers]

    @torch.no_grad()
    def read(number: int, batch: Batch) -> None:
        reader, positions = readers[number], batch.slot.positions
        with autocast(reader.precision, world.device):
            logits, lengths = reader.head(pick_taps(batch.features, taps, reader.taps), batch.lengths)
        losses[number].append(float(reader.task.loss(logits, lengths, reader.split.targets_of(positions))))
        values = reader.task.predict(logits.float(), lengths)
        found[number].update(zip(positions.tolist(), values, strict=True))

    slots = plan_evaluation(split.frames, round(batch_seconds * cache.frame_rate))[world.rank :: world.size]
    with (
        _evaluating(readers),
        Crew(len(readers), world, threads) as crew,
        Loader(cache, split, world.device, taps, workers) as loader,
    ):
        for batch in loader.batches(slots):
            crew.map(partial(read, batch=batch), range(len(readers)))
    return [_gathered(world, values, losses[i], len(split)) for i, values in enumerate(found)]


def _gathered(world: World, values: dict[int, Any], losses: list[float], utterances: int) -> Predictions:
    everything: dict[int, Any] = {}
    all_losses: list[float] = []
    for part in world.gather({"values": list(values.items()), "losses": losses}):
        everything.update((position, value) for position, value in part["values"])
        all_losses += part["losses"]
    return Predictions(tuple(everything[i] for i in range(utterances)), sum(all_losses) / max(len(all_losses), 1))


@contextmanager
def _evaluating(readers: Sequence[Reader]) -> Iterator[None]:
    """The heads in evaluation mode; as they were afterwards."""
    training = [reader.head.training for reader in readers]
    for reader in readers:
        reader.head.eval()
    try:
        yield
    finally:
        for reader, was in zip(readers, training, strict=True):
            reader.head.train(was)
