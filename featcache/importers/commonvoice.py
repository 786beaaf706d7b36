"""A Common Voice release: a TSV (`train.tsv`, `validated.tsv`, ...) beside its folder `clips`."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from featcache.errors import ManifestError
from featcache.importers._common import described, infos, label_names, lines, seconds
from featcache.manifest import Row, build


def commonvoice(tsv: str | Path, clips: str | Path | None = None) -> list[Row]:
    """Rows of one TSV; `clips` is the folder of recordings, by default the one beside it.

    The id is the clip's name without suffix. Labels: `speaker` (client_id), `lang` (locale), `accent`,
    `split` (the TSV's name) and every other column as it is, also one whose label another column has already; an
    empty cell is null. Columns named as a manifest's own fields (`id`, `text`, `duration`, ...) are left out.
    Raises ManifestError naming the line and the column.
    """
    tsv = Path(tsv)
    folder = Path(os.path.abspath(clips if clips is not None else tsv.parent / "clips"))
    # Common Voice does not quote: a quotation mark is part of the sentence.
    table = ((number, line.split("\t")) for number, line in lines(tsv))
    _, header = next(table, (0, []))
    for column in ("path", "sentence"):
        if column not in header:
            raise ManifestError(f"{tsv}, line 1: no column {column!r}: give a TSV of a Common Voice release")
    names = label_names(column for column in header if column not in ("path", "sentence"))
    twice = [column for column in header if column == "split" or header.count(column) > 1]
    if twice:
        raise ManifestError(f"{tsv}, line 1: column {twice[0]!r} would be there twice: rename it")
    found = []
    for number, cells in table:
        if len(cells) != len(header):
            short = f"{len(cells)} cells for {len(header)} columns"
            raise ManifestError(f"{tsv}, line {number}: {short}: mend the line")
        row = dict(zip(header, cells, strict=True))
        if not row["path"]:
            raise ManifestError(f"{tsv}, line {number}: column 'path' is empty: drop the line")
        clip = row["path"] if PurePosixPath(row["path"]).suffix else f"{row['path']}.mp3"
        labels = {name: row[column] or None for column, name in names.items() if described(column, row[column])}
        labels["split"] = tsv.stem
        found.append((number, str(folder / clip), row["sentence"], labels))
    if not found:
        raise ManifestError(f"{tsv} has no rows: give a TSV of a Common Voice release")
    info = infos(audio for _, audio, _, _ in found)
    return [
        build(
            f"{tsv}, line {number}",
            id=PurePosixPath(audio).stem,
            audio_filepath=audio,
            duration=seconds(info[audio]),
            text=text,
            labels=labels,
        )
        for number, audio, text, labels in found
    ]
