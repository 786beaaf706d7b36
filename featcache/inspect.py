"""What the inspection commands show, as plain data: `info`, `ls`, `show`, `status`."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featcache import layout
from featcache.errors import CorruptCacheError, UsageError
from featcache.index import USABLE
from featcache.lease import living
from featcache.ledger import read_records
from featcache.storage import Storage
from featcache.store import Cache

SPARKS = "▁▂▃▄▅▆▇█"
# What `ls` says of every utterance beside its labels.
COLUMNS = ("id", "seconds", "frames", "usable")


def info(cache: Cache) -> dict[str, Any]:
    """The identity card of a cache. `bytes` counts everything: shards, index, labels, ledger, calibration."""
    frames = sum(segment.seal.frames for segment in cache.segments)
    size = total_bytes(cache)
    values = frames * len(cache.taps) * cache.channels
    return {
        "path": cache.path,
        "upstream": cache.upstream,
        "values_id": cache.values_id,
        "encoding_id": cache.encoding_id,
        "utterances": len(cache),
        "quarantined": sum(segment.seal.quarantined for segment in cache.segments),
        "hours": sum(segment.seal.seconds for segment in cache.segments) / 3600,
        "frames": frames,
        "taps": list(cache.taps),
        "channels": cache.channels,
        "frame_rate": cache.frame_rate,
        "profile": cache.profile,
        "bytes": size,
        "bits_per_value": 8 * size / values if values else None,
        "segments": len(cache.segments),
        "shards": sum(segment.seal.shards for segment in cache.segments),
        "labels": list(cache.label_names),
        "complete": cache.complete,
        "partial_copy_of": cache.origin,
    }


def total_bytes(cache: Cache) -> int:
    """Bytes of a cache's sealed part, without listing its shards: of the whole, where it is a partial copy."""
    size = 0
    for number, segment in enumerate(cache.segments):
        seal = segment.seal
        size += seal.shard_bytes + seal.ledger_bytes + sum(proof.bytes for proof in seal.files.values())
        if number == 0:
            size += sum(proof.bytes for proof in seal.root.values())
        size += sum(cache.storage.size(key) or 0 for key in cache.storage.list_keys(f"{segment.name}/labels"))
        size += cache.storage.size(f"{segment.name}/seal.json") or 0
    return size


def parse_where(conditions: Sequence[str]) -> dict[str, set[str]]:
    """`["lang=en", "lang=it", "split=train"]` to sets of accepted values by label.

    Raises:
        UsageError: a condition is not `label=value`.
    """
    where: dict[str, set[str]] = {}
    for condition in conditions:
        label, equals, value = condition.partition("=")
        if not equals or not label:
            raise UsageError(f"--where {condition!r} is not label=value: write for instance --where lang=en")
        where.setdefault(label, set()).add(value)
    return where


def matching(cache: Cache, where: Mapping[str, set[str]]) -> np.ndarray:
    """`(utterances,)` bool: which ones have an accepted value of every label in `where`. `id` counts as one.

    Raises:
        UsageError: no utterance has such a label.
    """
    chosen = np.ones(len(cache), bool)
    for label, accepted in where.items():
        values = cache.ids if label == "id" else cache.labels(label)
        chosen &= np.fromiter((value in accepted for value in values), bool, len(cache))
    return chosen


def refuse_unknown(
    cache: Cache, where: Mapping[str, set[str]], name: str | None = None, also: Collection[str] = ()
) -> None:
    """A value that no utterance has is most likely mistyped: it is not passed over beside others that some have.

    Args:
        name: of the cache, in the error.
        also: ids that count as known, though no utterance here has them.

    Raises:
        UsageError: no utterance has such a label, or such a value of it.
    """
    for label, accepted in where.items():
        unknown = accepted.difference(cache.ids, also) if label == "id" else accepted.difference(cache.labels(label))
        if unknown:
            place = name or cache.path
            asked = f"{label}={min(unknown)}"
            raise UsageError(f"no utterance of {place} has {asked}: `featcache ls {place}` lists all with their labels")


def label_key(label: str, taken: Sequence[str]) -> str:
    """Under what a label is shown beside other things: `frames` as `label frames` where there are `frames` already."""
    return f"label {label}" if label in taken else label


def utterances(cache: Cache, where: Mapping[str, set[str]] | None = None) -> Iterator[dict[str, Any]]:
    """Every utterance as id, seconds, frames, usable or not, and labels; filtered by labels."""
    refuse_unknown(cache, where or {})
    wanted = matching(cache, where or {})
    columns = {label_key(name, COLUMNS): cache.labels(name) for name in cache.label_names}
    lengths, seconds = cache.lengths, cache.seconds
    states = np.concatenate([np.zeros(0, np.uint8), *(segment.column("state") for segment in cache.segments)])
    for i, utterance_id in enumerate(cache.ids):
        if wanted[i]:
            own = (utterance_id, round(float(seconds[i]), 4), int(lengths[i]), bool(states[i] == USABLE))
            yield dict(zip(COLUMNS, own, strict=True)) | {name: column[i] for name, column in columns.items()}


@dataclass(frozen=True)
class TapView:
    """One tap of one utterance: moments, the channel that deviates most, and the course of its energy."""

    tap: str
    mean: float
    deviation: float
    minimum: float
    maximum: float
    loudest_channel: int
    spark: str


def show(cache: Cache, utterance_id: str) -> dict[str, Any]:
    """Shape, labels and per-tap statistics of an utterance."""
    row = cache.row(utterance_id)
    features = cache.read(row)
    labels = {name: cache.labels(name)[row] for name in cache.label_names}
    taps = []
    for i, tap in enumerate(cache.taps if len(features) else ()):
        values = features[:, i]
        taps.append(
            TapView(
                tap=tap,
                mean=float(values.mean()),
                deviation=float(values.std()),
                minimum=float(values.min()),
                maximum=float(values.max()),
                loudest_channel=int(values.std(axis=0).argmax()),
                spark=sparkline(np.linalg.norm(values - values.mean(axis=0), axis=1)),
            )
        )
    return {
        "id": utterance_id,
        "shape": list(features.shape),
        "seconds": float(cache.seconds[row]),
        "labels": labels,
        "taps": [vars(tap) for tap in taps],
    }


def sparkline(values: np.ndarray, width: int = 40) -> str:
    """A curve in block characters, averaged down to at most `width` of them."""
    pieces = np.array_split(values, min(width, len(values)))
    means = np.array([piece.mean() for piece in pieces])
    low, high = means.min(), means.max()
    span = high - low if high > low else 1.0
    return "".join(SPARKS[int(level)] for level in (means - low) / span * (len(SPARKS) - 1))


def heat_map(cache: Cache, utterance_id: str, png: str | Path) -> None:
    """One panel a tap: channels standardised over the utterance, against time; written as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    features = cache.read(utterance_id)
    if not len(features):
        raise UsageError(f"{utterance_id!r} is quarantined, so there is nothing to draw")
    deviation = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    taps = len(cache.taps)
    figure, axes = pyplot.subplots(
        taps, 1, sharex=True, figsize=(10, 1.2 * taps + 1), squeeze=False, layout="constrained"
    )
    seconds = len(features) / cache.frame_rate
    for i, axis in enumerate(axes[:, 0]):
        image = axis.imshow(
            standard[:, i].T, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-3, vmax=3,
            extent=(0, seconds, 0, cache.channels), interpolation="nearest",
        )  # fmt: skip
        axis.set_ylabel(f"tap {cache.taps[i]}", rotation=0, ha="right", va="center")
        axis.set_yticks([])
    axes[-1, 0].set_xlabel("seconds")
    axes[0, 0].set_title(f"{utterance_id}, {cache.upstream}: {cache.channels} channels a tap")
    figure.colorbar(image, ax=axes[:, 0], label="deviations from the channel's mean")
    figure.savefig(png, dpi=110)
    pyplot.close(figure)


def status(place: str | Path) -> dict[str, Any]:
    """What is done, what is not, and which utterances were left out and why. Works on unfinished caches."""
    cache = Cache.open(place)
    storage: Storage = cache.storage
    segments: list[dict[str, Any]] = []
    quarantined: list[dict[str, Any]] = []
    for name in layout.segments(storage):
        records = read_records(storage, name, f"run `featcache verify {place}`")
        quarantined += [{"id": q.id, "reason": q.reason} for record in records.values() for q in record.quarantined]
        sealed = next((segment for segment in cache.segments if segment.name == name), None)
        # Leases of shards are named by their number; those of the dead are no work.
        leases = [key for key in living(storage, f"{name}/leases") if key.rpartition("/")[2].isdecimal()]
        segments.append(
            {
                "segment": name.removeprefix(f"{layout.SEGMENTS}/"),
                "sealed": sealed is not None,
                "shards": sealed.seal.shards if sealed else _planned_shards(storage, name),
                "shards_done": len(records),
                "in_work": len(leases),
                "saturated_values": sum(record.saturated for record in records.values()),
            }
        )
    return {"path": str(place), "complete": cache.complete, "segments": segments, "quarantined": quarantined}


def _planned_shards(storage: Storage, name: str) -> int | None:
    data = storage.read(f"{name}/plan.json")
    if data is None:
        return None
    try:
        return int(json.loads(data)["content"]["shards"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptCacheError(f"{storage}/{name}/plan.json is damaged: run `featcache gc {storage}`") from error
