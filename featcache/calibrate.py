"""The deterministic pass that fixes scales and predictors before the first shard is written.

Utterances are drawn by the hash of their id, so that the choice depends on the set of ids and not on
their order, on the machine or on chance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache import codec as codecs
from featcache.audio import AUDIO_RULES
from featcache.errors import JobError
from featcache.forecast import bits_per_value, forecast
from featcache.geometry import SAMPLE_RATE
from featcache.index import id_hash
from featcache.manifest import Row
from featcache.plan import make_plan
from featcache.progress import AudioProgress
from featcache.reading import load_window, row_samples
from featcache.spec import WINDOW_RULE, CacheSpec, Layout, encoding_id, values_id
from featcache.upstreams import Upstream

SECONDS = 600.0
# Activations of the calibration are held in memory at once, in float32.
MAX_BYTES = 768 * 1024 * 1024


@dataclass(frozen=True)
class Calibrated:
    """What `init` found: the cache's description, its calibration, and how fast the model ran."""

    spec: CacheSpec
    calibration: codecs.Arrays
    realtime: float


def choose(rows: Sequence[Row], seconds: float) -> list[Row]:
    """Utterances for the calibration: those with the smallest id hashes, up to `seconds` in all."""
    chosen: list[Row] = []
    total = 0.0
    for row in sorted(rows, key=lambda row: (id_hash(row.id), row.id)):
        if chosen and total + row.duration > seconds:
            break
        chosen.append(row)
        total += row.duration
    return chosen


def calibrate(
    rows: Sequence[Row],
    manifest: Path,
    upstream: Upstream,
    profile: str,
    parameters: dict[str, object],
    arrangement: Layout,
    seconds: float = SECONDS,
) -> Calibrated:
    """Run the model over the chosen utterances and fit the profile to what it gives.

    Raises:
        JobError: none of them could be used.
    """
    kind = codecs.profile_class(profile)
    taps, channels = upstream.taps, upstream.channels
    draft = CacheSpec(
        upstream=upstream.config.model_dump(mode="json"),
        identity=upstream.identity,
        audio=AUDIO_RULES,
        window_rule=WINDOW_RULE,
        geometry=upstream.geometry,
        can_pad=upstream.can_pad,
        taps=taps,
        channels=channels,
        layout=arrangement,
        profile=profile,
        profile_version=kind.version,
        parameters=parameters,
        bits_per_value=0.0,
        values_id=values_id(upstream.identity, AUDIO_RULES, taps),
        encoding_id="",
    )
    affordable = MAX_BYTES / (4 * len(taps) * channels * upstream.geometry.frame_rate)
    limit = min(seconds, affordable)
    features, realtime = _activations(choose(rows, limit), manifest, upstream, draft, limit)
    fits = codecs.Fits(features)
    calibration = fits(kind, parameters)
    codec = codecs.build(profile, kind.version, len(taps), channels, parameters, calibration)
    spec = draft.model_copy(
        update={
            "bits_per_value": round(bits_per_value(codec, arrangement, features), 4),
            "forecasts": forecast(fits, arrangement),
            "encoding_id": encoding_id(profile, kind.version, parameters, calibration),
        }
    )
    return Calibrated(spec, calibration, realtime)


def _activations(
    rows: Sequence[Row], manifest: Path, upstream: Upstream, spec: CacheSpec, seconds: float
) -> tuple[list[np.ndarray], float]:
    """Finite activations of usable windows in the order of the rows, and the model's speed (x real time).

    Of a recording that is longer than `seconds` by itself, windows spread evenly over it.
    """
    plan = make_plan([row.id for row in rows], [row_samples(row) for row in rows], spec, 1)
    step = max(1, math.ceil(rows[0].duration / seconds)) if len(rows) == 1 else 1
    thin = range(0, plan.rows, step)
    found: dict[int, np.ndarray] = {}
    model_seconds = audio_seconds = 0.0
    reasons: list[str] = []
    with AudioProgress("calibrating", plan.model_seconds(thin)) as progress:
        for group in range(plan.groups):
            for planned in plan.batches(group):
                batch = [row for row in planned if row in thin]
                loaded = [load_window(rows[plan.utterance[r]], manifest, plan, r) for r in batch]
                usable = [(r, pcm.samples) for r, pcm in zip(batch, loaded, strict=True) if pcm.samples is not None]
                reasons += [pcm.reason for pcm in loaded if pcm.reason]
                if usable:
                    began = time.monotonic()
                    outputs = upstream.forward([pcm for _, pcm in usable])
                    model_seconds += time.monotonic() - began
                    audio_seconds += sum(len(pcm) for _, pcm in usable) / SAMPLE_RATE
                    for (row, _), output in zip(usable, outputs, strict=True):
                        if np.isfinite(output).all():
                            found[row] = output[plan.keep[row] : plan.keep[row] + plan.frames[row]]
                progress.advance(plan.model_seconds(batch))
    if not found:
        why = f" (the first: {reasons[0]})" if reasons else ""
        raise JobError(f"none of the {len(rows)} utterances drawn for calibration can be used{why}: check {manifest}")
    return [found[row] for row in sorted(found)], audio_seconds / max(model_seconds, 1e-9)
