"""A Kaldi data directory: `wav.scp`, and where they are there `segments`, `text`, `utt2spk`, ..."""

from __future__ import annotations

import math
import os
import re
import shlex
from pathlib import Path

from featcache.audio import AudioInfo
from featcache.errors import ManifestError
from featcache.importers._common import infos, lines, located, seconds
from featcache.manifest import Row, build

Utterance = tuple[str, tuple[float, float] | None]
"""Path of the recording; offset and duration in seconds where it is a part of it."""

OVERSHOOT = 0.5  # seconds by which a segment may end after its recording: the default of extract-segments
_FLAC = {"-c", "-d", "-s", "-dc", "-cd", "--stdout", "--decode", "--silent"}
"""Options of flac that decode a file whole, to standard output."""
FIX = "run utils/fix_data_dir.sh"


def kaldi(directory: str | Path, *, split: str | None = None) -> list[Row]:
    """Rows of a data directory: one a segment, or one a recording where there is no `segments`.

    A relative path in `wav.scp` is meant from the working directory, as Kaldi means it, else from the data
    directory. A segment's end of -1 is the end of its recording, and one at most 0.5 s beyond it is cut
    there, as extract-segments does. Labels: `speaker` (utt2spk), `gender` (spk2gender), `lang` (utt2lang), and
    `split`, the same of all rows, where it is given.
    `flac -c -d -s FILE |`, as Kaldi's recipe for LibriSpeech writes it, is the recording FILE; no command is run.
    Raises ManifestError for other commands and archives in `wav.scp`, one channel of several, and files that
    do not fit together.
    """
    folder = Path(directory)
    recordings = {name: _recording(folder, name, value) for name, value in _table(folder / "wav.scp").items()}
    if not recordings:
        raise ManifestError(f"{folder / 'wav.scp'} is empty: give a Kaldi data directory")
    info = infos(recordings.values())
    utterances: dict[str, Utterance] = {name: (path, None) for name, path in recordings.items()}
    if (folder / "segments").exists():
        utterances = _segments(folder / "segments", recordings, info)
    columns = {
        "text": _table(folder / "text", optional=True, of=utterances),
        "speaker": _table(folder / "utt2spk", optional=True, of=utterances),
        "lang": _table(folder / "utt2lang", optional=True, of=utterances),
    }
    genders = _table(folder / "spk2gender", optional=True)
    rows = []
    for name, (path, part) in utterances.items():
        labels = {column: columns[column].get(name) for column in ("speaker", "lang") if columns[column]}
        if genders:
            labels["gender"] = genders.get(labels.get("speaker") or "")
        if split is not None:
            labels["split"] = split
        fields: dict[str, float] = {"duration": seconds(info[path])}
        if part is not None:
            fields = {"offset": part[0], "duration": part[1]}
        text = columns["text"].get(name)
        where = f"{folder}, utterance {name!r}"
        rows.append(build(where, id=name, audio_filepath=path, text=text, labels=labels, **fields))
    return rows


def _table(path: Path, *, optional: bool = False, of: object = None) -> dict[str, str]:
    """A file of `key value` lines. Keys outside `of` are refused: the directory does not fit together."""
    table: dict[str, str] = {}
    if optional and not path.exists():
        return table
    for number, line in lines(path):
        key, _, value = re.sub(r"\s", " ", line.strip(), count=1).partition(" ")
        if key in table:
            raise ManifestError(f"{path}, line {number}: {key!r} is there twice: {FIX}")
        if isinstance(of, dict) and key not in of:
            raise ManifestError(f"{path}, line {number}: there is no utterance {key!r}: {FIX}")
        table[key] = value.strip()
    return table


def _recording(folder: Path, name: str, value: str) -> str:
    where = f"{folder / 'wav.scp'}, recording {name!r}"
    value = _decoded(value) or value
    if value.endswith("|") or value.startswith("|"):
        raise ManifestError(
            f"{where}: a command ({value[:40]!r}) is not run: write its output to files first, with "
            "wav-copy or ffmpeg, and name those in wav.scp"
        )
    if not value or value == "-":
        raise ManifestError(f"{where}: no file is named: write the path of the recording")
    path = located(value, folder)
    if re.search(r":\d+$", value) and not os.path.exists(path):
        raise ManifestError(f"{where}: archives ({value[:40]!r}) are not read: unpack them with wav-copy")
    return path


def _decoded(value: str) -> str | None:
    """The file that a command of `wav.scp` only decodes, as is done here anyway; None for all else."""
    if not value.endswith("|"):
        return None
    try:
        program, *arguments = shlex.split(value.removesuffix("|")) or [""]
    except ValueError:  # a quotation mark without its other
        return None
    files = [argument for argument in arguments if not argument.startswith("-")]
    flags = {argument for argument in arguments if argument.startswith("-")}
    decodes = os.path.basename(program) == "flac" and flags <= _FLAC and flags & {"-d", "-dc", "-cd", "--decode"}
    return files[0] if decodes and len(files) == 1 else None


def _segments(path: Path, recordings: dict[str, str], info: dict[str, AudioInfo | None]) -> dict[str, Utterance]:
    found: dict[str, Utterance] = {}
    for number, line in lines(path):
        where, cells = f"{path}, line {number}", line.split()
        if len(cells) not in (4, 5):
            raise ManifestError(f"{where}: {len(cells)} cells: write UTTERANCE RECORDING START END")
        name, recording = cells[:2]
        if name in found:
            raise ManifestError(f"{where}: {name!r} is there twice: {FIX}")
        if recording not in recordings:
            raise ManifestError(f"{where}: wav.scp has no recording {recording!r}: {FIX}")
        audio = recordings[recording]
        known = info[audio]
        if len(cells) == 5 and known is not None and known.channels > 1:
            several = f"one channel of {known.channels} is not picked"
            raise ManifestError(f"{where}: {several}: write each channel to its own file first")
        start, end = _time(cells[2], where), _time(cells[3], where)
        if end == -1 or (known is not None and known.duration < end <= known.duration + OVERSHOOT):
            end = max(seconds(known), start)
        if start < 0 or end < start:
            raise ManifestError(f"{where}: {cells[2]} to {cells[3]} is not a time range: {FIX}")
        # The difference of two decimal times carries noise in its last digits; a microsecond is below a sample.
        found[name] = (audio, (start, round(end - start, 6)))
    if not found:
        raise ManifestError(f"{path} is empty: delete it, or fill it")
    return found


def _time(cell: str, where: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ManifestError(f"{where}: {cell!r} is not a time in seconds: correct it")
    return value
