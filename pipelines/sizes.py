"""How many parameters a head has, and a rival of the size of another head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from featcache.store import Cache
from fusion import head, labels, tasks
from fusion.modules import count_parameters
from fusion.recipe import Recipe

LARGEST = 1 << 16
"""No size of a fuser or decoder is searched beyond."""


@dataclass(frozen=True)
class Sizes:
    """Parameters of a head's parts."""

    fuser: int
    decoder: int

    @property
    def total(self) -> int:
        return self.fuser + self.decoder


def counter(cache: Cache, recipe: Recipe) -> Callable[[Recipe], Sizes]:
    """A function that counts the parameters of recipes with the task and labels of `recipe` on this cache."""
    resolved = head.resolve(recipe)
    selection = labels.select(cache, resolved)
    task = tasks.fit(resolved.task, selection.labels("train"), head.logit_rate(resolved, cache.frame_rate))

    def count(other: Recipe) -> Sizes:
        with torch.device("meta"):
            built = head.build(head.describe(head.resolve(other), cache, task))
        return Sizes(count_parameters(built.fuser), count_parameters(built.decoder))

    return count


def matched(recipe: Recipe, key: str, target: Sizes, count: Callable[[Recipe], Sizes]) -> Recipe:
    """The recipe with the largest value of `key` at which it is not larger than the target.

    Args:
        key: `fuser.NAME`, of which the fuser grows, to be compared with the target's fuser; or `decoder.NAME`, to
            be compared in total.
    """
    section, _, name = key.partition(".")

    def size(value: int) -> int:
        sizes = count(_with(recipe, section, name, value))
        return sizes.fuser if section == "fuser" else sizes.total

    wanted = target.fuser if section == "fuser" else target.total
    low, high = 1, 2
    while high < LARGEST and size(high) <= wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= wanted else (low, middle)
    return _with(recipe, section, name, low)


def _with(recipe: Recipe, section: str, name: str, value: int) -> Recipe:
    part: Any = getattr(recipe, section)
    return recipe.model_copy(update={section: type(part)(**{**part.model_dump(), name: value})})
