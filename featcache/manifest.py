"""Manifests: which recordings, how long, and what is known about them.

JSON Lines in the style of NeMo, one utterance a line, flat:

    {"id": "a/1", "audio_filepath": "wav/1.flac", "duration": 3.21, "text": "hello", "lang": "en"}

`audio_filepath` is relative to the manifest's folder (or absolute), `duration` and `offset` are seconds.
Without `offset` the row is the whole recording; with it, even with 0, a part of it. Every key that is not
a field of `Row` is a label: a text, number, true, false or null, under a name that `featcache.labels` allows.
A duration of 0 says that the recording could not be read when the manifest was made: the row stays and is
quarantined with its reason.
The labels `view` and `view_of` make a row an augmented copy of another: see `featcache.views`.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from featcache import views
from featcache.errors import ManifestError
from featcache.index import VIEW_OF
from featcache.labels import check_name, check_text

Label = str | int | float | bool | None

LONGEST = 1e7  # seconds, 115 days: more is a duration in samples or milliseconds
FIELDS = ("id", "audio_filepath", "offset", "duration", "text")


class Row(BaseModel):
    """One utterance. `duration` and `offset` in seconds; `labels` are all other columns, in their order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    audio_filepath: str
    duration: float
    offset: float = 0.0
    text: str | None = None
    labels: dict[str, Label] = {}

    @property
    def is_part(self) -> bool:
        """Whether the row names a part of its recording (it has an offset), not the whole of it."""
        return "offset" in self.model_fields_set

    @property
    def view(self) -> views.View | None:
        """What is made of the recording; None where the row is the recording itself."""
        text = self.labels.get(views.VIEW)
        return views.parse(text) if isinstance(text, str) else None

    @property
    def view_of(self) -> str | None:
        """The id of the utterance that the row is a view of; None where it is none."""
        of = self.labels.get(VIEW_OF)
        return None if of is None else str(of)

    @field_validator("id", "audio_filepath", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {_kind(value)}: put it in quotes")
        if not value.strip():
            raise ValueError("is empty: give it a value")
        if any(character in value for character in "\0\n\r\t"):
            raise ValueError("holds a tab, line break or NUL: take it out")
        return _unicode(value)

    @field_validator("duration", "offset", mode="before")
    @classmethod
    def _seconds(cls, value: object) -> object:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number of seconds, not {_kind(value)}: write it as 1.25, unquoted")
        # Compared before any conversion: JSON may hold an integer that no float can.
        if not 0 <= value <= LONGEST:
            limits = f"from 0 to {LONGEST:g}"
            raise ValueError(f"is {_short(value)}, and must be {limits}: write seconds, not samples")
        return float(value) + 0.0  # -0.0 becomes 0.0

    @field_validator("text", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        if value is not None and not isinstance(value, str):
            raise ValueError(f"must be text or null, not {_kind(value)}: put it in quotes")
        if value is not None:
            check_text(_unicode(value))
        return value

    @field_validator("labels", mode="before")
    @classmethod
    def _columns(cls, labels: object) -> object:
        if not isinstance(labels, dict):
            raise ValueError(f"must be a mapping of names to values, not {_kind(labels)}")
        for name, value in labels.items():
            if not isinstance(name, str) or name in FIELDS or name == "labels":
                raise ValueError(f"cannot name a label {name!r}: choose another name")
            try:
                check_name(_unicode(name))
                _label(value)
            except ValueError as error:
                raise ValueError(f"label {_short(name)} {error}") from None
        _view(labels.get(views.VIEW), labels.get(VIEW_OF))
        return dict(labels)


def read(path: str | Path, *, limit: int | None = None) -> list[Row]:
    """The rows of a manifest, in order, the first `limit` of them. Blank lines are passed over.

    Without an `id`, it is the `audio_filepath` without its suffix, and `@offset` where there is one.
    Raises ManifestError, one line that names the file, the line, the field and what to do.
    """
    if limit is not None and limit < 1:
        raise ManifestError(f"a limit of {limit} rows leaves nothing: give 1 or more")
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, line in _lines(Path(path)):
        if limit is not None and len(rows) >= limit:
            break
        where = f"{path}, line {number}"
        row = _parse(line, where)
        if row.id in seen:
            raise ManifestError(
                f"{where}: field 'id' {_short(row.id)} is that of line {seen[row.id]} too: give each its own"
            )
        seen[row.id] = number
        rows.append(row)
    if not rows:
        raise ManifestError(f"{path} has no rows: write one JSON object a line, see `featcache manifest --help`")
    return rows


def write(path: str | Path, rows: Iterable[Row]) -> None:
    """Write a manifest, whole or not at all; the order of rows and labels is kept.

    Raises ManifestError for duplicate ids, no rows, or a folder that cannot be written.
    """
    path = Path(path)
    seen: set[str] = set()
    lines = []
    for row in rows:
        if row.id in seen:
            raise ManifestError(f"{path}: two rows have the id {_short(row.id)}: give each its own")
        seen.add(row.id)
        lines.append(to_json(row) + "\n")
    if not lines:
        raise ManifestError(f"{path}: there are no rows to write: check the source of the manifest")
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            os.fchmod(file.fileno(), 0o644)  # mkstemp's 0600 would shut out the others of a shared data folder
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
        raise ManifestError(f"{path} cannot be written: {error.strerror}: choose another place") from error


def build(where: str, **fields: Any) -> Row:
    """A row, or a ManifestError that begins with `where` and names the field and what to do."""
    try:
        return Row(**fields)
    except ValidationError as error:
        # A derived id fails for the path that it was derived from: the path is what to name.
        first = min(error.errors(include_url=False), key=lambda e: e["loc"][0] == "id")
        message = first["msg"].removeprefix("Value error, ")
        raise ManifestError(f"{where}: field {str(first['loc'][0])!r} {message}") from None


def to_json(row: Row) -> str:
    """A row as its line of a manifest, without the line break."""
    flat: dict[str, Any] = {"id": row.id, "audio_filepath": row.audio_filepath}
    if row.is_part:
        flat["offset"] = row.offset
    flat["duration"] = row.duration
    if row.text is not None:
        flat["text"] = row.text
    return json.dumps(flat | row.labels, ensure_ascii=False, allow_nan=False)


def resolve(row: Row, manifest_path: str | Path) -> Path:
    """The absolute path of a row's recording. Links are left as they are."""
    return Path(os.path.abspath(Path(manifest_path).parent / row.audio_filepath))


def absolute(rows: Iterable[Row], manifest_path: str | Path) -> list[Row]:
    """The rows with their paths resolved from a manifest's folder, to be written to another one."""
    return [row.model_copy(update={"audio_filepath": str(resolve(row, manifest_path))}) for row in rows]


def relative(rows: Iterable[Row], manifest_path: str | Path) -> list[Row]:
    """The same rows, absolute paths below the manifest's folder made relative to it, so that both can move."""
    folder = Path(os.path.abspath(Path(manifest_path).parent))
    moved = []
    for row in rows:
        audio = Path(row.audio_filepath)
        if audio.is_absolute() and audio.is_relative_to(folder):
            row = row.model_copy(update={"audio_filepath": audio.relative_to(folder).as_posix()})
        moved.append(row)
    return moved


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not blank. Read as bytes: a wrong byte then has a line number."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    where = f"{path}, line {number}: byte {error.start + 1}"
                    raise ManifestError(f"{where} is not UTF-8: convert the file with iconv") from None
                if text.strip():
                    yield number, text
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}: check the manifest's path") from error


def _parse(line: str, where: str) -> Row:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
            raise ManifestError(f"{where}: field {_short(twice)} is there twice: keep one")
        return content

    try:
        content = json.loads(line, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        why = f"{error.msg}, column {error.colno}"
        raise ManifestError(f"{where}: not JSON ({why}): write one object a line") from None
    except (ValueError, RecursionError):  # an integer of thousands of digits, thousands of brackets
        raise ManifestError(f"{where}: not JSON that can be read: write one flat object a line") from None
    if not isinstance(content, dict):
        raise ManifestError(f"{where}: {_kind(content)} where an object is expected: write {{...}}")
    for field in ("audio_filepath", "duration"):
        if field not in content:
            raise ManifestError(f"{where}: field {field!r} is missing: add it, or use an importer")
    if "labels" in content:
        raise ManifestError(f"{where}: field 'labels' is not one: write each label beside the other fields")
    fields = {name: content.pop(name) for name in FIELDS if name in content}
    if fields.get("id") is None:
        fields["id"] = _derived_id(fields)
    return build(where, **fields, labels=content)


def _derived_id(fields: dict[str, Any]) -> str:
    audio, offset = fields["audio_filepath"], fields.get("offset")
    if not isinstance(audio, str) or not audio.strip():
        return "?"  # the path itself is refused, with its own message
    stem = audio[: len(audio) - len(PurePosixPath(audio).suffix)]
    return stem if offset is None else f"{stem}@{offset}"


def _label(value: object) -> None:
    if isinstance(value, str):
        check_text(_unicode(value))
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"is {value}: write a finite number or null")
    elif value is not None and not isinstance(value, bool | int):
        raise ValueError(f"is {_kind(value)}: write text, a number, true, false or null")


def _view(view: object, of: object) -> None:
    """Both labels of a view. `view_of` alone is a recording that is a copy of another's in its own right."""
    if of is not None and not (isinstance(of, str) and of.strip()):
        raise ValueError(f"label {VIEW_OF!r} is {_short(of)}: write the id of the utterance that this is a view of")
    if view is None:
        return
    if not isinstance(view, str):
        raise ValueError(f"label {views.VIEW!r} is {_kind(view)}: write it as 'speed=0.9'")
    try:
        views.parse(view)
    except ValueError as error:
        raise ValueError(f"label {views.VIEW!r} {error}") from None
    if of is None:
        raise ValueError(f"label {views.VIEW!r} wants {VIEW_OF!r} beside it: the id of the utterance it is a view of")


def _unicode(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is not Unicode text: correct it") from None
    return text


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)


def _short(value: object) -> str:
    """For a message of one line."""
    shown = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
