"""From a manifest row to the samples of one planned window, or to the reason why there are none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache import audio
from featcache.augment import augment
from featcache.errors import AudioError
from featcache.geometry import SAMPLE_RATE
from featcache.manifest import Row, resolve
from featcache.plan import Plan


@dataclass(frozen=True)
class Pcm:
    """Samples of one window, float32 `(samples,)` at 16 kHz, and their digest; or the reason against it."""

    samples: np.ndarray | None
    digest: str = ""
    reason: str = ""


def recording(row: Row, manifest: Path) -> Path:
    """The absolute path of a row's recording.

    Raises:
        AudioError: a relative path leads out of the manifest's folder. An absolute one says what it means.
    """
    if not os.path.isabs(row.audio_filepath) and os.path.normpath(row.audio_filepath).split(os.sep)[0] == os.pardir:
        raise AudioError("the relative path leaves the manifest's folder; write it absolute if that is meant")
    return resolve(row, manifest)


def row_samples(row: Row) -> int:
    """Samples at 16 kHz that the manifest promises."""
    return audio.samples_of(row.duration)


def load_window(row: Row, manifest: Path, plan: Plan, planned: int) -> Pcm:
    """Read the samples of a planned row; what cannot be used comes back as a reason, never as an error."""
    try:
        pcm = load_part(row, manifest, int(plan.start[planned]), int(plan.stop[planned]))
    except AudioError as error:
        return Pcm(None, reason=error.reason)
    return Pcm(pcm, digest=audio.content_hash(pcm).hex())


def load_part(row: Row, manifest: Path, start: int, stop: int) -> np.ndarray:
    """Samples `start .. stop` of a row, float32 `(stop - start,)` at 16 kHz.

    A view is made of the part alone, so that a long recording is never in memory as a whole: its noise is set
    against the speech of the part, and what reverberates into it from before is missing.

    Raises:
        AudioError: as `audio.load`, or the recording has another length than the manifest says.
    """
    path, view = recording(row, manifest), row.view
    first, end = (start, stop) if view is None else (view.source(start), view.source(stop))
    # Without an offset in the manifest the row means the whole file: one more second shows whether
    # the file goes on where the manifest says that it ends.
    beyond = 1.0 if stop == row_samples(row) and not row.is_part else 0.0
    duration = (end - first) / SAMPLE_RATE + beyond
    pcm = audio.load(path, offset=row.offset + first / SAMPLE_RATE, duration=duration)
    samples = row_samples(row)
    promised = samples if view is None else view.source(samples)
    pcm = audio.fit_length(pcm, end - first, before=first, promised=promised, more=audio.samples_of(beyond))
    return pcm if view is None else augment(pcm, view, stop - start, row.id, start)


def measured(row: Row, manifest: Path) -> Row:
    """The row with the duration that its recording has; 0 where it cannot be read. Parts keep theirs."""
    if row.is_part:
        return row
    try:
        found = audio.probe(recording(row, manifest))
    except AudioError:
        return row.model_copy(update={"duration": 0.0})
    seconds = found.samples / found.sample_rate / (row.view.speed if row.view else 1.0)
    return row if audio.samples_of(seconds) == row_samples(row) else row.model_copy(update={"duration": seconds})
