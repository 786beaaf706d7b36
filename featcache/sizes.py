"""What a manifest takes on disk, in each profile that the calibration has tried, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from featcache.errors import JobError
from featcache.plan import Plan
from featcache.progress import size_text
from featcache.spec import CacheSpec
from featcache.storage import Storage

# Bytes of index, labels and ledger for one utterance, measured on the demo's cache.
OVERHEAD_PER_UTTERANCE = 150


def predicted_bytes(frames: int, utterances: int, spec: CacheSpec, bits_per_value: float) -> int:
    """Size of a segment of so many frames and utterances, from the calibration's bits per value."""
    values = frames * len(spec.taps) * spec.channels
    return int(values * bits_per_value / 8) + OVERHEAD_PER_UTTERANCE * utterances


def shard_bytes(plan: Plan, shards: Sequence[int], spec: CacheSpec) -> int:
    """Predicted size of these shards of a plan, and of their rows in index, labels and ledger."""
    spans = [plan.shard_rows(shard) for shard in shards]
    frames = sum(int(plan.frames[span.start : span.stop].sum()) for span in spans)
    utterances = round(len(plan.ids) * sum(map(len, spans)) / max(plan.rows, 1))
    return predicted_bytes(frames, utterances, spec, spec.bits_per_value)


def refuse_without_space(storage: Storage, need: int, remedy: str) -> None:
    """Before anything is written.

    Raises:
        JobError: less than `need` bytes are free; `remedy` says what to do.
    """
    free = storage.free_bytes()
    if need > free:
        raise JobError(f"{storage} needs about {size_text(need)} and its disk has {size_text(free)} free: {remedy}")


@dataclass(frozen=True)
class ProfileSize:
    """What a manifest takes in one profile; `nmse` is the worst tap's, None where it was not measured."""

    profile: str
    bits_per_value: float
    bytes: int
    nmse: float | None


def profile_sizes(samples: Sequence[int], spec: CacheSpec) -> list[ProfileSize]:
    """A whole manifest in every profile that the calibration has tried; the cache's own comes first.

    Args:
        samples: length of each utterance at 16 kHz.
    """
    frames = int(spec.geometry.frames_of(np.asarray(samples, np.int64)).sum())
    own = spec.forecasts.get(spec.profile_text)
    tried = {spec.profile_text: (spec.bits_per_value, own.nmse if own else None)}
    for text, found in spec.forecasts.items():
        tried.setdefault(text, (found.bits_per_value, found.nmse))
    return [
        ProfileSize(text, bits, predicted_bytes(frames, len(samples), spec, bits), nmse)
        for text, (bits, nmse) in tried.items()
    ]
