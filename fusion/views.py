"""Views in training: now and then an augmented copy of an utterance in its place.

A view counts only through the utterance that it is a view of: it is drawn where that one is learnt from, and has
its label. What it says of a split or a class itself is not looked at, so that no copy of a row of dev or test is
ever learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from fusion import labels
from fusion.labels import VIEWS, Example, Skipped, Split

if TYPE_CHECKING:
    from fusion.tasks.base import Task


@dataclass(frozen=True)
class Pool:
    """What training draws from: the rows of train, and behind them their views."""

    split: Split
    originals: int
    """How many rows of the split are no views; they come first."""
    of: np.ndarray
    """int64 (views,), the position of each view's original."""
    share: float = 0.0
    """The probability that an utterance which has views is drawn as one of them."""

    @classmethod
    def plain(cls, train: Split) -> Pool:
        """Without views."""
        return cls(train, len(train), np.zeros(0, np.int64))

    @cached_property
    def _by_original(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions of the views in the order of their originals, and of each original its first there and how many."""
        counts = np.bincount(self.of, minlength=self.originals)
        return self.originals + np.argsort(self.of, kind="stable"), np.cumsum(counts) - counts, counts

    def draw(self, seed: int, epoch: int) -> np.ndarray:
        """What stands for each utterance in an epoch: itself or one of its views, each as likely as the others.

        Returns:
            int64 (originals,) positions in the split, a pure function of the pool, seed and epoch.
        """
        views, first, counts = self._by_original
        drawn = np.arange(self.originals)
        rng = np.random.default_rng([seed, epoch, 1])  # [seed, epoch] orders the batches
        takes = (rng.random(self.originals) < self.share) & (counts > 0)
        which = first + (rng.random(self.originals) * counts).astype(np.int64)
        drawn[takes] = views[which[takes]]
        return drawn


def pool(
    train: Split, views: Sequence[Example], share: float, task: Task, output_frames: Callable[..., Sequence[int]]
) -> Pool:
    """The rows of train with those views that the task can learn from; `Pool.split.skipped` has the others.

    Args:
        views: of any rows; those whose original is not in `train` are not for this pool.
        share: of draws; see `Pool`.
        output_frames: the frames of logits that each of some examples gets.
    """
    position = {id_: at for at, id_ in enumerate(train.ids)}
    usable: list[Example] = []
    skipped: list[Skipped] = []
    for view in views:
        at = position.get(view.view_of)
        if at is None:
            continue
        if task.timed and view.frames != train.frames[at]:
            skipped.append(Skipped(view.id, VIEWS, "not as long as its original, whose label holds times"))
        else:
            usable.append(view)
    found = labels.prepare(usable, VIEWS, task, output_frames(usable), learn=True)
    original_of = {view.id: position[view.view_of] for view in usable}
    both = replace(
        train,
        ids=train.ids + found.ids,
        rows=np.concatenate([train.rows, found.rows]),
        frames=np.concatenate([train.frames, found.frames]),
        references=train.references + found.references,
        targets=train.targets + found.targets,
        skipped=(*skipped, *found.skipped),
    )
    return Pool(both, len(train), np.array([original_of[id_] for id_ in found.ids], np.int64), share)
