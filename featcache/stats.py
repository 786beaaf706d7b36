"""What the activations are like: moments, outlier channels and similarity of taps, computed with dask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featcache.cluster import run_tasks
from featcache.errors import UsageError
from featcache.storage import Address
from featcache.store import Cache

# A channel is an outlier where its deviation exceeds the median of its tap's channels by this factor.
OUTLIER_FACTOR = 6.0
# Frames over which the similarity of taps is computed.
SIMILARITY_FRAMES = 2000
TASK_FRAMES = 20_000


@dataclass(frozen=True)
class TapStatistics:
    """One tap over all frames: moments of all its values, and its outlier channels.

    `kurtosis` is the excess kurtosis (0 for a normal distribution) of values standardised per tap.
    """

    tap: str
    mean: float
    deviation: float
    kurtosis: float
    minimum: float
    maximum: float
    outlier_channels: list[int]


@dataclass(frozen=True)
class Statistics:
    """All taps; `similarity[i][j]` is the linear CKA of taps i and j (Kornblith et al. 2019), 1 for equal."""

    utterances: int
    frames: int
    taps: list[TapStatistics]
    similarity: list[list[float]]


def compute(
    cache: Cache,
    limit: int | None = None,
    on_frames: Callable[[int], None] = lambda frames: None,
    client: Any | None = None,
) -> Statistics:
    """Statistics over a cache, or over `limit` utterances spread evenly over it.

    Work is cut into dask tasks of about 20,000 frames, for the cluster of `client`
    (`featcache.cluster.connect`) or for threads of this process.

    Raises:
        UsageError: the cache holds no usable utterance.
    """
    usable = np.flatnonzero(cache.lengths > 0)
    if limit is not None and limit < len(usable):
        usable = usable[np.linspace(0, len(usable) - 1, limit).round().astype(int)]
    if not len(usable):
        raise UsageError(
            f"{cache.path} holds no usable utterance yet: `featcache status {cache.path}` says what is there"
        )
    lengths = cache.lengths[usable]
    every = max(1, int(lengths.sum()) // SIMILARITY_FRAMES)
    # First about the mean of some frames: fourth powers about 0 would lose a channel far from it.
    centre = np.concatenate([cache.read(int(r)) for r in usable[:: max(1, len(usable) // 8)][:8]]).mean(axis=0)
    # A cluster's scheduler unpacks what passes through it, and need not see the cache.
    source = cache if client is None else cache.storage.address.absolute()
    tasks = [(source, group, centre, every) for group in _groups(usable, lengths)]
    parts = run_tasks(
        _partial, tasks, client, name="stats", on_result=lambda number, part: on_frames(int(part["frames"]))
    )
    return _combine(cache, parts, centre, len(usable))


def _groups(rows: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    cuts = np.flatnonzero(np.diff(np.cumsum(lengths) // TASK_FRAMES)) + 1
    return [group.tolist() for group in np.split(rows, cuts)]


def _partial(source: Cache | Address, rows: Sequence[int], centre: np.ndarray, every: int) -> dict[str, Any]:
    """Sums over some utterances: powers of the centred values per tap and channel, and sampled frames."""
    cache = Cache.open(source) if isinstance(source, Address) else source
    powers = np.zeros((4, *centre.shape))
    low, high = np.full(len(cache.taps), np.inf), np.full(len(cache.taps), -np.inf)
    sample, frames = [], 0
    for row in rows:
        features = cache.read(row)
        low, high = np.minimum(low, features.min(axis=(0, 2))), np.maximum(high, features.max(axis=(0, 2)))
        centred = (features - centre).astype(np.float64)
        squared = centred * centred
        powers += np.stack([p.sum(axis=0) for p in (centred, squared, squared * centred, squared * squared)])
        sample.append(features[-frames % every :: every])
        frames += len(features)
    return {"powers": powers, "low": low, "high": high, "sample": np.concatenate(sample), "frames": frames}


def _combine(cache: Cache, parts: Sequence[dict[str, Any]], centre: np.ndarray, utterances: int) -> Statistics:
    frames = sum(part["frames"] for part in parts)
    m1, m2, m3, m4 = sum(part["powers"] for part in parts) / frames
    mean = centre + m1
    variance = np.maximum(m2 - m1**2, 0)
    taps = []
    for i, tap in enumerate(cache.taps):
        # Moments of the tap's values about the tap's mean, from those about each channel's centre.
        shift = centre[i].astype(np.float64) - mean[i].mean()
        second = (m2[i] + 2 * shift * m1[i] + shift**2).mean()
        fourth = (m4[i] + 4 * shift * m3[i] + 6 * shift**2 * m2[i] + 4 * shift**3 * m1[i] + shift**4).mean()
        deviation = np.sqrt(variance[i])
        median = float(np.median(deviation))
        taps.append(
            TapStatistics(
                tap=tap,
                mean=float(mean[i].mean()),
                deviation=float(np.sqrt(second)),
                kurtosis=float(fourth / second**2 - 3) if second > 0 else 0.0,
                minimum=float(min(part["low"][i] for part in parts)),
                maximum=float(max(part["high"][i] for part in parts)),
                outlier_channels=np.flatnonzero(deviation > OUTLIER_FACTOR * median).tolist() if median > 0 else [],
            )
        )
    sample = np.concatenate([part["sample"] for part in parts])[: 2 * SIMILARITY_FRAMES].astype(np.float64)
    return Statistics(utterances, frames, taps, similarity(sample).tolist())


def similarity(features: np.ndarray) -> np.ndarray:
    """Linear CKA between taps, `(taps, taps)`, of features `(frames, taps, channels)`.

    Channels are standardised first: otherwise one loud channel decides the figure alone.
    """
    features = features - features.mean(axis=0)
    deviation = features.std(axis=0)
    features = features / np.where(deviation > 0, deviation, 1)
    grams = []
    for tap in range(features.shape[1]):
        gram = features[:, tap] @ features[:, tap].T
        norm = np.linalg.norm(gram)
        grams.append(gram / norm if norm > 0 else gram)
    return np.array([[float((a * b).sum()) for b in grams] for a in grams])
