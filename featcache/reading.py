"""From a manifest row to the samples of one planned window, or to the reason why there are none."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache import audio
from featcache.errors import AudioError
from featcache.manifest import Row, resolve
from featcache.plan import SAMPLE_RATE, Plan


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
    start, stop = int(plan.start[planned]), int(plan.stop[planned])
    try:
        path = recording(row, manifest)
        # Without an offset in the manifest the row means the whole file: one more second shows whether
        # the file goes on where the manifest says that it ends.
        beyond = 1.0 if stop == row_samples(row) and not row.is_part else 0.0
        duration = (stop - start) / SAMPLE_RATE + beyond
        pcm = audio.load(path, offset=row.offset + start / SAMPLE_RATE, duration=duration)
        pcm = audio.fit_length(pcm, stop - start)
    except AudioError as error:
        return Pcm(None, reason=error.reason)
    return Pcm(pcm, digest=audio.content_hash(pcm).hex())


def measured(row: Row, manifest: Path) -> Row:
    """The row with the duration that its recording has; 0 where it cannot be read. Parts keep theirs."""
    if row.is_part:
        return row
    try:
        found = audio.probe(recording(row, manifest))
    except AudioError:
        return row.model_copy(update={"duration": 0.0})
    seconds = found.samples / found.sample_rate
    return row if audio.samples_of(seconds) == row_samples(row) else row.model_copy(update={"duration": seconds})
