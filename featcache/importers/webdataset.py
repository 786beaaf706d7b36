"""A WebDataset: tar files in which the members of one sample share a name. Needs the package webdataset."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from featcache.errors import ManifestError
from featcache.importers._common import described, infos, keep_audio, label_names, seconds
from featcache.manifest import Label, Row, build

AUDIO = ("flac", "wav", "mp3", "ogg", "opus", "m4a", "webm", "g722")
TEXT = ("txt", "text", "transcript")


def webdataset(shards: str | Path, audio: str | Path, *, split: str | None = None) -> list[Row]:
    """Rows of the samples of shards; recordings are written as they are to the folder `audio`.

    The id is the sample's key. The text is its member `.txt`, else `text` of its `.json`, whose other text, numbers,
    true and false are labels; `.cls` is the label `class`.

    Args:
        shards: a tar file, a folder of them, or a pattern such as `train-{000000..000009}.tar`.
        split: the label `split` of all rows.

    Raises:
        ManifestError: webdataset is missing, a shard cannot be read, a sample has no recording, or the folder
            `audio` holds other recordings of the same names.
    """
    try:
        import braceexpand
        import webdataset as wds
    except ImportError as error:
        raise ManifestError(f"webdataset cannot be imported ({error}): `pip install webdataset`") from error
    paths = _paths(shards, braceexpand.braceexpand)
    found: list[tuple[str, str, dict[str, Any]]] = []
    seen: set[str] = set()
    for path in paths:
        try:
            # "file:" keeps webdataset from taking a name for a command
            for sample in wds.WebDataset(f"file:{path}", shardshuffle=False, empty_check=False):
                where = f"{path}, sample {sample['__key__']!r}"
                if sample["__key__"] in seen:
                    raise ManifestError(f"{where}: its key is there twice: give each sample its own")
                seen.add(sample["__key__"])
                found.append((where, *_described(where, sample, Path(audio), split)))
        except ManifestError:
            raise
        except Exception as error:  # whatever webdataset makes of a file that is no tar
            why = " ".join(str(error).split())[:80] or type(error).__name__
            raise ManifestError(f"{path} is no shard to webdataset ({why}): give a tar file") from error
    if not found:
        raise ManifestError(f"{shards} has no samples: give the tar files of a WebDataset")
    names = label_names(column for _, _, row in found for column in row["labels"])
    info = infos(path for _, path, _ in found)
    rows = []
    for where, path, row in found:
        row["labels"] = {names[column]: value for column, value in row["labels"].items()}
        rows.append(build(where, audio_filepath=path, duration=seconds(info[path]), **row))
    return rows


def _paths(shards: str | Path, expand: Any) -> list[str]:
    if os.path.isdir(shards):
        paths = sorted(str(path) for path in Path(shards).iterdir() if path.name.endswith((".tar", ".tar.gz", ".tgz")))
        if not paths:
            raise ManifestError(f"{shards} has no tar files: give the folder of the shards")
        return paths
    paths = [str(shards)] if os.path.exists(shards) else list(expand(str(shards)))
    for path in paths:
        if not os.path.isfile(path):
            raise ManifestError(f"{path} is no file: download the shards, then give their path")
    return paths


def _described(where: str, sample: dict[str, Any], folder: Path, split: str | None) -> tuple[str, dict[str, Any]]:
    kinds = [kind for kind in AUDIO if kind in sample]
    if len(kinds) != 1:
        members = ", ".join(kind for kind in sample if not kind.startswith("__"))
        raise ManifestError(f"{where}: {len(kinds)} recordings among its members ({members}): it needs one")
    columns: dict[str, Any] = {}
    if "json" in sample:
        try:
            columns = json.loads(sample["json"])
        except ValueError as error:
            raise ManifestError(f"{where}: its .json is not JSON ({error}): correct it") from error
        if not isinstance(columns, dict):
            raise ManifestError(f"{where}: its .json is no object: write {{...}}")
    try:
        texts = [sample[kind].decode() for kind in TEXT if kind in sample]
        classes = {"class": sample["cls"].decode().strip()} if "cls" in sample else {}
    except UnicodeDecodeError as error:
        raise ManifestError(f"{where}: its text is not UTF-8: convert it with iconv") from error
    # Under their own names: those of all samples decide which become labels of another name.
    text = texts[0].strip() if texts else columns.get("text")
    labels: dict[str, Label] = {} if split is None else {"split": split}
    for column, value in (columns | classes).items():
        if described(column, value):
            labels.setdefault(column, value)
    path = keep_audio(folder, sample["__key__"], sample[kinds[0]], f"x.{kinds[0]}")
    return path, {"id": sample["__key__"], "text": text, "labels": labels}
