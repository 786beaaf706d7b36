"""What differs between two caches: recipe, taps, utterances, labels, values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.digest import json_differences
from featcache.select import audio_digests
from featcache.store import Cache


@dataclass
class Differences:
    """`recipe` are lines of `field: of A -> of B`; the lists below hold taps, ids, or names of labels.

    Values are compared for utterances and taps that both have: `compared` counts the utterances, `values`
    lists those whose values differ at all, and `worst_nmse` is the largest error, as a share of the
    variance of A's values.
    """

    recipe: list[str] = field(default_factory=list)
    taps_only_a: list[str] = field(default_factory=list)
    taps_only_b: list[str] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    audio: list[str] = field(default_factory=list)
    usable: list[str] = field(default_factory=list)
    labels: dict[str, list[str]] = field(default_factory=dict)
    compared: int = 0
    values: list[str] = field(default_factory=list)
    worst_nmse: float = 0.0

    @property
    def same(self) -> bool:
        return not any(value for name, value in vars(self).items() if name != "compared")


# What two recipes may differ in without being other recipes: it follows from the rest.
DERIVED = {"taps", "bits_per_value", "parent"}


def diff(a: str | Path, b: str | Path, limit: int | None = None) -> Differences:
    """Compare two caches; the values of `limit` utterances spread over those that both hold, or of all.

    Raises:
        CacheError: one of them cannot be opened or read.
    """
    first, second = Cache.open(a), Cache.open(b)
    audio_a, audio_b = audio_digests(first), audio_digests(second)
    both = [utterance_id for utterance_id in audio_a if utterance_id in audio_b]
    found = Differences(
        recipe=json_differences(_recipe(first), _recipe(second)),
        taps_only_a=[tap for tap in first.taps if tap not in second.taps],
        taps_only_b=[tap for tap in second.taps if tap not in first.taps],
        only_a=[utterance_id for utterance_id in audio_a if utterance_id not in audio_b],
        only_b=[utterance_id for utterance_id in audio_b if utterance_id not in audio_a],
    )
    rows = {utterance_id: (first.row(utterance_id), second.row(utterance_id)) for utterance_id in both}
    usable = []
    for utterance_id, (i, j) in rows.items():
        if (first.lengths[i] > 0) != (second.lengths[j] > 0):
            found.usable.append(utterance_id)
        elif audio_a[utterance_id] != audio_b[utterance_id]:
            found.audio.append(utterance_id)
        elif first.lengths[i] > 0:
            usable.append(utterance_id)
    _compare_labels(first, second, rows, found)
    taps = [tap for tap in first.taps if tap in second.taps]
    if taps and first.channels == second.channels:
        if limit is not None and limit < len(usable):
            usable = [usable[k] for k in np.linspace(0, len(usable) - 1, limit).round().astype(int)]
        for utterance_id in usable:
            _compare_values(first, second, utterance_id, taps, found)
    return found


def _recipe(cache: Cache) -> dict[str, Any]:
    return cache.spec.model_dump(mode="json", exclude=DERIVED)


def _compare_labels(first: Cache, second: Cache, rows: dict[str, tuple[int, int]], found: Differences) -> None:
    for name in sorted({*first.label_names, *second.label_names}):
        columns = [cache.labels(name) if name in cache.label_names else None for cache in (first, second)]
        x, y = columns
        changed = [u for u, (i, j) in rows.items() if (x[i] if x else None) != (y[j] if y else None)]
        if changed:
            found.labels[name] = changed


def _compare_values(first: Cache, second: Cache, utterance_id: str, taps: list[str], found: Differences) -> None:
    x, y = first.read(utterance_id, taps), second.read(utterance_id, taps)
    found.compared += 1
    if x.shape == y.shape and np.array_equal(x, y):
        return
    found.values.append(utterance_id)
    found.worst_nmse = max(found.worst_nmse, nmse(x, y))


def nmse(expected: np.ndarray, found: np.ndarray) -> float:
    """Mean squared error as a share of the variance; 1 where the shapes differ."""
    if expected.shape != found.shape:
        return 1.0
    error = float(((expected.astype(np.float64) - found) ** 2).mean())
    variance = float(expected.var(dtype=np.float64))
    return error / variance if variance > 0 else error
