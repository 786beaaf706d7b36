"""A data set of Hugging Face: on the hub, a folder of its files, or one of `save_to_disk`. Needs the package datasets.

Recordings are taken as they are stored, never decoded: those inside Arrow, Parquet or an archive, or on a server, are
written to a folder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from featcache.errors import ManifestError
from featcache.importers._common import described, infos, keep_audio, label_names, seconds
from featcache.manifest import Label, Row, build

TEXT = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_transcription")
"""Columns that are taken for the text, the first that is there."""


def huggingface(
    source: str | Path, audio: str | Path, *, config: str | None = None, split: str | None = None, text: str = ""
) -> list[Row]:
    """Rows of a data set with one audio column.

    The id is `SPLIT/ID` of a column `id`, else `SPLIT/NUMBER`. Labels: `split`, `speaker` and `lang` under their
    usual names, and every other column that is text, a number, true or false; a class by its name. A column keeps
    its own name where another one has the usual name; those named as a manifest's own fields (`duration`, ...) are
    left out.

    Args:
        audio: the folder for recordings that are inside the data set.
        config: of a data set that has several.
        split: only this one.
        text: the column of the text; one of TEXT by default.

    Raises:
        ManifestError: datasets is missing, cannot read the source, there is not one audio column, an id is there
            twice, a column `split` says something else than the split's name, or the folder `audio` holds other
            recordings of the same names.
    """
    try:
        import datasets
    except ImportError as error:
        raise ManifestError(f"datasets cannot be imported ({error}): `pip install datasets`") from error
    try:
        splits = _splits(datasets, source, config)
    except Exception as error:  # whatever datasets makes of a source
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise ManifestError(
            f"{source} is no data set to datasets ({why}): give a name on the hub or a folder"
        ) from error
    if split is not None:
        if split not in splits:
            raise ManifestError(f"{source} has no split {split!r}: it has {', '.join(splits)}")
        splits = {split: splits[split]}
    names = label_names(column for part in splits.values() for column in part.features or ())
    found: list[tuple[str, str, dict[str, Any]]] = []
    for name, part in splits.items():
        rows = _rows(datasets, name, part, audio, text, names)
        found += [(f"{source}, {name}, row {i}", path, fields) for i, (path, fields) in enumerate(rows)]
    if not found:
        raise ManifestError(f"{source} has no rows: give a data set with recordings")
    info = infos(path for _, path, _ in found)
    return [build(where, audio_filepath=path, duration=seconds(info[path]), **row) for where, path, row in found]


def _splits(datasets: Any, source: str | Path, config: str | None) -> dict[str, Any]:
    folder = Path(source)
    if (folder / "dataset_dict.json").exists() or (folder / "dataset_info.json").exists() and config is None:
        loaded = datasets.load_from_disk(str(folder))
    else:
        loaded = datasets.load_dataset(str(source), config, streaming=True)  # without a second copy in its cache
    if isinstance(loaded, Mapping):
        return dict(loaded)
    return {str(loaded.split or "all"): loaded}


def _rows(
    datasets: Any, split: str, part: Any, folder: str | Path, text: str, names: Mapping[str, str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Path of the recording and the other fields of each row; `names` are the labels of the columns."""
    features = part.features
    if features is None:
        raise ManifestError(f"split {split!r} does not say what its columns are: load it once and save_to_disk it")
    audio = [name for name, kind in features.items() if isinstance(kind, datasets.Audio)]
    if len(audio) != 1:
        raise ManifestError(f"split {split!r} has {len(audio)} audio columns of {', '.join(features)}: leave one")
    spoken = text or next((name for name in TEXT if name in features), "")
    if text and text not in features:
        raise ManifestError(f"split {split!r} has no column {text!r}: it has {', '.join(features)}")
    classes = {name: kind for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)}
    seen: set[str] = set()
    for number, row in enumerate(_as_stored(datasets, split, part, audio[0])):
        name = f"{split}/{row.get('id') if row.get('id') not in (None, '') else f'{number:06d}'}"
        if name in seen:
            raise ManifestError(f"split {split!r}, row {number}: the id {name!r} is there twice: give each row its own")
        seen.add(name)
        stored = row.pop(audio[0]) or {}
        labels: dict[str, Label] = {"split": split}
        for column, value in row.items():
            if column in classes and value is not None:
                value = classes[column].int2str(value) if value >= 0 else None
            if column == "split" and value not in (None, split):
                raise ManifestError(
                    f"split {split!r}, row {number}: a column 'split' says {value!r}: save_to_disk the data set with "
                    "that column renamed"
                )
            if column not in (spoken, "split") and described(column, value):
                labels[names[column]] = value
        data, path = stored.get("bytes"), stored.get("path") or ""
        if data is None and "://" in path:
            data = _fetched(f"split {split!r}, row {number}", path)
            path = path.partition("::")[0]  # zip://clips/1.wav::/data/train.zip
        yield keep_audio(Path(folder), name, data, path), {"id": name, "text": row.get(spoken), "labels": labels}


def _as_stored(datasets: Any, split: str, part: Any, audio: str) -> Iterator[dict[str, Any]]:
    """Rows with the column `audio` as {"bytes": ..., "path": ...}, either of which may be None; nothing is decoded."""

    class Stored(datasets.Audio):
        def encode_example(self, value: Any) -> dict[str, Any]:
            # That of datasets imports torchcodec first, also to pass on the path of a file in an audiofolder.
            if not isinstance(value, Mapping):
                return {"bytes": None, "path": str(value)}
            return {"bytes": value.get("bytes"), "path": value.get("path")}

    try:
        yield from part.cast_column(audio, Stored(decode=False))
    except Exception as error:  # whatever datasets makes of its files
        why = " ".join(str(error).split())[:120] or type(error).__name__
        remedy = "download it again, or save_to_disk what loads"
        raise ManifestError(f"split {split!r} stops datasets ({why}): {remedy}") from error


def _fetched(where: str, address: str) -> bytes:
    """The bytes of a recording that is inside an archive or on a server, by the address that datasets gives it."""
    import fsspec  # type: ignore[import-untyped]  # comes with datasets

    try:
        with fsspec.open(address, "rb") as file:
            return bytes(file.read())
    except Exception as error:  # whatever a file system makes of its address
        why = " ".join(str(error).split())[:80] or type(error).__name__
        raise ManifestError(f"{where}: {address} cannot be read ({why}): unpack it into a local folder") from error
