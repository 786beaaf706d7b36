"""Cuts of lhotse, from a manifest of a CutSet (`.jsonl` or `.jsonl.gz`). Needs the package lhotse."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from featcache.errors import ManifestError
from featcache.importers._common import described, infos, located, seconds
from featcache.manifest import Label, Row, build

SAVE = "save it with cut.save_audio first"


def lhotse(cuts: str | Path) -> list[Row]:
    """Rows of a CutSet, which lhotse reads lazily.

    The text is that of the supervisions in the order of their starts. Labels: `speaker`, `lang`, `gender`
    (where all supervisions of a cut agree; null where not) and those of the cut's own fields that are
    text, numbers or true and false, under other names than a manifest's own fields. A cut that is less
    than its recording becomes a row with an offset.
    Raises ManifestError where lhotse is missing and for cuts that no file holds as they are: mixed or
    padded, with transforms, with one channel of several, from a command, URL or memory.
    """
    if not os.path.isfile(cuts):
        raise ManifestError(f"{cuts} is no file: give a CutSet as .jsonl or .jsonl.gz")
    try:
        from lhotse import CutSet
    except ImportError as error:
        raise ManifestError(f"lhotse cannot be imported ({error}): `pip install lhotse`") from error
    try:
        found = [_described(cut, cuts) for cut in CutSet.from_jsonl_lazy(cuts)]
    except ManifestError:
        raise
    except Exception as error:  # whatever lhotse makes of a file that is not a CutSet
        why = " ".join(str(error).split())[:80] or type(error).__name__
        raise ManifestError(f"{cuts} is no CutSet to lhotse ({why}): write it with CutSet.to_file") from error
    if not found:
        raise ManifestError(f"{cuts} has no cuts: give a CutSet as .jsonl or .jsonl.gz")
    info = infos(audio for audio, _, _ in found)
    rows = []
    for audio, part, fields in found:
        # A whole recording is as long as its file says, a part as long as the cut says.
        length = part or {"duration": seconds(info[audio])}
        where = f"{cuts}, cut {fields['id']!r}"
        rows.append(build(where, audio_filepath=audio, **length, **fields))
    return rows


def _described(cut: Any, source: str | Path) -> tuple[str, dict[str, float] | None, dict[str, Any]]:
    """Path; offset and duration if the cut is a part of its recording; and the other fields of its row."""
    where = f"{source}, cut {cut.id!r}"
    recording = getattr(cut, "recording", None)
    if recording is None:
        raise ManifestError(f"{where}: a {type(cut).__name__} without one recording: {SAVE}")
    if recording.transforms:
        raise ManifestError(f"{where}: its recording has transforms: {SAVE}")
    if len(recording.sources) != 1 or recording.sources[0].type != "file":
        kinds = ", ".join(sorted({s.type for s in recording.sources}))
        raise ManifestError(f"{where}: its audio is not one file ({kinds}): {SAVE}")
    channels = cut.channel if isinstance(cut.channel, list) else [cut.channel]
    if set(channels) != set(recording.channel_ids):
        raise ManifestError(f"{where}: takes channel {cut.channel} of several: {SAVE}")
    # lhotse's times are floats of sums; half a sample at 16 kHz decides.
    whole = abs(cut.start) < 3e-5 and abs(cut.duration - recording.duration) < 3e-5
    supervisions = sorted(cut.supervisions, key=lambda supervision: supervision.start)
    texts = [s.text for s in supervisions if s.text]
    labels: dict[str, Label] = {}
    for name, attribute in (("speaker", "speaker"), ("lang", "language"), ("gender", "gender")):
        value = _agreed(getattr(s, attribute) for s in supervisions)
        if value is not None:
            labels[name] = value
    custom = [cut.custom or {}, *(s.custom or {} for s in supervisions[:1])]
    for name, value in itertools.chain.from_iterable(columns.items() for columns in custom):
        if value is not None and described(name, value):
            labels.setdefault(name, value)
    return (
        located(str(recording.sources[0].source), Path(source).parent),
        None if whole else {"offset": float(cut.start), "duration": float(cut.duration)},
        {"id": str(cut.id), "text": " ".join(texts) if texts else None, "labels": labels},
    )


def _agreed(values: Iterable[str | None]) -> str | None:
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None
