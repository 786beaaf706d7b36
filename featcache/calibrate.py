"""The deterministic pass that fixes scales and predictors before the first shard is written.

Utterances are drawn by the hash of their id, so that the choice depends on the set of ids and not on
their order, on the machine or on chance.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from featcache import codec as codecs
from featcache.audio import AUDIO_RULES, OTHER_LENGTH
from featcache.codec.base import bad_taps
from featcache.errors import JobError, ManifestError
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
ENOUGH = 1 / 3  # of the seconds: with less, an utterance that does not fit is drawn from all the same
LEAST = 1 / 4  # of the seconds, usable: with less, further utterances are drawn
MOST_TRIED = 1000  # utterances, however many of them cannot be used
# Of the utterances that were tried. With more, the manifest's durations are rounded or not in seconds, and extraction
# would leave out as many of all, which is better said before hours of work.
MOST_OF_OTHER_LENGTH = 1 / 2
# Activations of the calibration are held in memory at once, in float32.
MAX_BYTES = 768 * 1024 * 1024


@dataclass(frozen=True)
class Calibrated:
    """What `init` found: the cache's description, its calibration, and how fast the model ran."""

    spec: CacheSpec
    calibration: codecs.Arrays
    realtime: float


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The utterances in the order in which they are drawn; those of duration 0 could not be read and are left out."""
    return sorted((row for row in rows if row.duration > 0), key=lambda row: (id_hash(row.id), row.id))


def choose(ordered: Iterable[Row], seconds: float) -> tuple[list[Row], int]:
    """Utterances for the calibration, up to `seconds` in all, and of which the last gives every how manieth window.

    They are drawn until one does not fit. Where they are `ENOUGH` by then, it is left out; else windows of it,
    spread evenly, fill the rest.
    """
    chosen: list[Row] = []
    total = 0.0
    for row in ordered:
        fits = total + row.duration <= seconds
        if not fits and total >= ENOUGH * seconds:
            break
        chosen.append(row)
        if not fits:
            return chosen, math.ceil(row.duration / (seconds - total))
        total += row.duration
    return chosen, 1


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
        ManifestError: most of them are not as long as the manifest says.
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
    features, realtime = _features(rows, manifest, upstream, draft, limit)
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


def _features(
    rows: Sequence[Row], manifest: Path, upstream: Upstream, spec: CacheSpec, seconds: float
) -> tuple[list[np.ndarray], float]:
    """Finite activations of about `seconds` of usable windows, and the model's speed (x real time).

    Raises:
        JobError: there are none.
        ManifestError: most recordings are not as long as the manifest says.
    """
    ordered = in_order(rows)
    run = _Run(manifest, upstream, spec)
    tried = 0
    # What cannot be used is made up for by further utterances, unless the model itself is to blame.
    while run.usable < LEAST * seconds and tried < min(len(ordered), MOST_TRIED) and run.heard < 2 * seconds:
        drawn, step = choose(islice(ordered, tried, None), seconds - run.usable)
        run.over(drawn, step)
        tried += len(drawn)
    if len(run.other_length) > MOST_OF_OTHER_LENGTH * tried:
        first, why = next(iter(run.other_length.items()))
        raise ManifestError(
            f"{manifest}: {len(run.other_length)} of the {tried} recordings drawn for calibration are not as long as "
            f"it says ({first}: {why}): `featcache manifest check {manifest} --measure -o FIXED.jsonl` writes it with "
            "their true durations"
        )
    if run.features:
        return run.features, run.heard / max(run.model_seconds, 1e-9)
    if run.not_finite:
        raise JobError(
            f"none of the {tried} utterances drawn for calibration can be used ({run.not_finite}): "
            "check the model's weights, or choose another --dtype"
        )
    if not ordered:
        why = "all have a duration of 0, as their recordings could not be read when the manifest was made"
        raise JobError(f"none of the {len(rows)} utterances can be used for calibration ({why}): check {manifest}")
    why = f" (the first: {run.unreadable})" if run.unreadable else ""
    raise JobError(f"none of the {tried} utterances drawn for calibration can be used{why}: check {manifest}")


@dataclass
class _Run:
    """What the model gives for the utterances drawn so far.

    Attributes:
        features: finite activations of usable windows, in the order of the rows.
        usable, heard: seconds of audio in `features`, and of all that the model was given, in `model_seconds`.
        other_length: the reasons against whole recordings that are not as long as the manifest says, by id.
        unreadable, not_finite: the first reason against a recording, and against what the model makes of one.
    """

    manifest: Path
    upstream: Upstream
    spec: CacheSpec
    features: list[np.ndarray] = field(default_factory=list)
    usable: float = 0.0
    heard: float = 0.0
    model_seconds: float = 0.0
    other_length: dict[str, str] = field(default_factory=dict)
    unreadable: str = ""
    not_finite: str = ""

    def over(self, rows: Sequence[Row], step: int) -> None:
        """Add these utterances; of the last, every `step`-th window."""
        plan = make_plan([row.id for row in rows], [row_samples(row) for row in rows], self.spec, 1)
        thin = [*range(plan.first_row[-2]), *range(plan.first_row[-2], plan.rows, step)]
        wanted = set(thin)
        found: dict[int, np.ndarray] = {}
        with AudioProgress("calibrating", plan.model_seconds(thin)) as progress:
            for group in range(plan.groups):
                for planned in plan.batches(group):
                    batch = [row for row in planned if row in wanted]
                    loaded = [load_window(rows[plan.utterance[r]], self.manifest, plan, r) for r in batch]
                    usable = [(r, pcm.samples) for r, pcm in zip(batch, loaded, strict=True) if pcm.samples is not None]
                    for r, part in zip(batch, loaded, strict=True):
                        row = rows[plan.utterance[r]]
                        if part.reason.startswith(OTHER_LENGTH) and not row.is_part:
                            self.other_length.setdefault(row.id, part.reason)
                    self.unreadable = self.unreadable or next((pcm.reason for pcm in loaded if pcm.reason), "")
                    if usable:
                        outputs = self._forward([pcm for _, pcm in usable])
                        for (planned_row, pcm), output in zip(usable, outputs, strict=True):
                            bad = bad_taps(output)
                            if len(bad):
                                tap = self.spec.taps[bad[0]]
                                said = f"the model's activations are not finite from tap {tap} on"
                                self.not_finite = self.not_finite or said
                                continue
                            keep = plan.keep[planned_row]
                            found[planned_row] = output[keep : keep + plan.frames[planned_row]]
                            self.usable += len(pcm) / SAMPLE_RATE
                    progress.advance(plan.model_seconds(batch))
        self.features += [found[row] for row in sorted(found)]

    def _forward(self, pcms: list[np.ndarray]) -> list[np.ndarray]:
        began = time.monotonic()
        outputs = self.upstream.forward(pcms)
        self.model_seconds += time.monotonic() - began
        self.heard += sum(len(pcm) for pcm in pcms) / SAMPLE_RATE
        return outputs
