"""Which rows of a cache a run uses, for which split, and what their labels are.

Labels and splits come from the cache's columns, or from the task's own CSV or JSON Lines keyed by `id`,
whose cells go before the cache's. Features are not touched or read here.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from featcache.errors import UsageError
from featcache.index import VIEW_OF
from fusion.recipe import Recipe, as_text

if TYPE_CHECKING:
    from featcache.store import Cache
    from fusion.tasks.base import Task

# csv's own limit is less than the spans of a long recording take.
_LONGEST_CELL = 2**31 - 1
SPLITS = ("train", "dev", "test")
VIEWS = "views"
"""What stands for a split where a view of a row of train is skipped."""


class Unusable(Exception):
    """A row that a task cannot use; the text is the reason, the same for all rows of its sort."""


@dataclass(frozen=True)
class Skipped:
    id: str
    split: str
    reason: str


@dataclass(frozen=True)
class Example:
    """A row of the cache and its label as written."""

    row: int
    id: str
    label: str
    frames: int
    view_of: str = ""
    """The id of the utterance that it is a view of; empty for all that stand for themselves."""


@dataclass(frozen=True)
class Selection:
    """Examples by split, before a task has looked at the labels."""

    splits: dict[str, tuple[Example, ...]]
    views: tuple[Example, ...] = ()
    """Of the rows of train, with their labels. No split has one."""
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    """What a user may want to know, one line each."""

    def labels(self, split: str) -> list[str]:
        return [example.label for example in self.splits[split]]


@dataclass(frozen=True)
class Split:
    """Rows that a task can use, with what it compares and what it learns."""

    name: str
    ids: tuple[str, ...]
    rows: np.ndarray
    """int64 (utterances,), rows of the cache."""
    frames: np.ndarray
    """int64 (utterances,)."""
    references: tuple[str, ...]
    targets: tuple[tuple[int, ...], ...]
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def targets_of(self, positions: np.ndarray) -> list[tuple[int, ...]]:
        return [self.targets[position] for position in positions]


class Columns:
    """The label columns of a cache with the task's own file laid over them."""

    def __init__(self, cache: Cache, labels_file: str = "") -> None:
        self._cache = cache
        self._file: dict[str, dict[int, str | None]] = {}
        self.notes: list[str] = []
        if labels_file:
            self._overlay(labels_file)

    @property
    def names(self) -> list[str]:
        return [
            *self._cache.label_names,
            *(name for name in self._file if name not in self._cache.label_names),
        ]

    @property
    def of_file(self) -> list[str]:
        """Those that the task's own file has."""
        return list(self._file)

    def column(self, name: str, key: str) -> list[str | None]:
        """The values of a column, one a row of the cache.

        Args:
            key: the recipe's key that names it, for the error.

        Raises:
            UsageError: no such column.
        """
        if name not in self.names:
            known = ", ".join(self.names)
            raise UsageError(
                f"key {key}: there is no label {name!r}; the cache and labels_file have: {known}; name one of these, "
                f"or a CSV with columns id and {name} with --set task.labels_file=FILE.csv"
            )
        stored = name in self._cache.label_names
        values: list[str | None] = list(self._cache.labels(name)) if stored else [None] * len(self._cache)
        for row, value in self._file.get(name, {}).items():
            values[row] = value
        return values

    def _overlay(self, labels_file: str) -> None:
        rows = {id_: row for row, id_ in enumerate(self._cache.ids)}
        seen: set[str] = set()
        unknown = 0
        for line, record in _read_records(Path(labels_file)):
            id_ = record.pop("id", None)
            if not id_:
                raise UsageError(f"{labels_file} line {line}: no `id`; every line needs the id of an utterance")
            if id_ in seen:
                raise UsageError(f"{labels_file} line {line}: id {id_!r} is there twice; keep one of them")
            seen.add(id_)
            if id_ not in rows:
                unknown += 1
                continue
            for name, value in record.items():
                self._file.setdefault(name, {})[rows[id_]] = value
        if unknown == len(seen):
            example = f"{next(iter(seen))!r}" if seen else "none"
            raise UsageError(
                f"{labels_file}: no id of it is in the cache (first of the file {example}, of the cache "
                f"{next(iter(rows), None)!r}); use the ids that `featcache ls` prints"
            )
        if unknown:
            self.notes.append(f"{labels_file}: {unknown} of {len(seen)} ids are not in the cache")


def select(cache: Cache, recipe: Recipe) -> Selection:
    """The rows of each split with their labels; quarantined and unlabelled ones are skipped with the reason.

    Views are in none, whatever their columns say: they follow their originals (`fusion.views`).

    Raises:
        UsageError: a column is missing, or train or dev would be empty.
    """
    task, split = recipe.task, recipe.split
    columns = Columns(cache, task.labels_file)
    keep = np.ones(len(cache), dtype=bool)
    for name, allowed in task.where.items():
        values = {as_text(value) for value in (allowed if isinstance(allowed, tuple) else (allowed,))}
        keep &= np.array([value in values for value in columns.column(name, f"task.where.{name}")], dtype=bool)
    view_of = columns.column(VIEW_OF, VIEW_OF) if VIEW_OF in columns.names else []
    if view_of:
        keep &= np.array([of is None for of in view_of], dtype=bool)
    split_of = columns.column(split.column, "split.column")
    labels = columns.column(task.label, "task.label")
    names = {split.value(name): name for name in SPLITS}
    if len(names) < len(SPLITS):
        raise UsageError("section split: train, dev and test must be three different values")
    examples: dict[str, list[Example]] = {name: [] for name in SPLITS}
    skipped: list[Skipped] = []
    ids, frames = cache.ids, np.asarray(cache.lengths)
    for row in np.flatnonzero(keep).tolist():
        value = split_of[row]
        if value not in names:
            continue
        name = names[value]
        label = labels[row]
        if frames[row] == 0:
            skipped.append(Skipped(ids[row], name, "quarantined in the cache"))
        elif label is None:
            skipped.append(Skipped(ids[row], name, f"no label {task.label!r}"))
        else:
            examples[name].append(Example(row, ids[row], label, int(frames[row])))
    for name in ("train", "dev"):
        if not examples[name]:
            _explain_empty(name, recipe, [split_of[row] for row in np.flatnonzero(keep).tolist()], skipped)
    chosen = {name: tuple(spread(rows, recipe.limit)) for name, rows in examples.items()}
    label_of = {example.id: example.label for example in chosen["train"]} if view_of else {}
    views = [
        Example(row, ids[row], label_of[of], int(frames[row]), of)
        for row, of in enumerate(view_of)
        if of is not None and of in label_of
    ]
    if recipe.train.views:
        skipped += [Skipped(view.id, VIEWS, "quarantined in the cache") for view in views if not view.frames]
    return Selection(chosen, tuple(view for view in views if view.frames), tuple(skipped), tuple(columns.notes))


def spread(examples: Sequence[Example], limit: int) -> Sequence[Example]:
    """`limit` of the examples at most, in their order, one of each of as many equal stretches; 0 takes all.

    Manifests are often sorted, by language say, and every part of one shall be seen. Which one of a stretch is
    drawn by a fixed seed: not always the first, since rows may also take turns, and the same in every run.
    """
    if not limit or limit >= len(examples):
        return examples
    ends = np.linspace(0, len(examples), limit + 1).astype(np.int64)
    chosen = np.random.default_rng(0).integers(ends[:-1], ends[1:])
    return [examples[at] for at in chosen.tolist()]


def prepare(
    examples: Sequence[Example], name: str, task: Task, output_frames: Sequence[int], *, learn: bool = False
) -> Split:
    """What a task makes of the rows of a split.

    Args:
        output_frames: the frames of logits that each example gets.
        learn: leave out what cannot be learnt from so many frames (`task.check`). In evaluation a reference is
            enough, so that a score is not flattered by leaving hard utterances out.
    """
    kept: list[tuple[Example, str, tuple[int, ...]]] = []
    skipped: list[Skipped] = []
    for example, frames in zip(examples, output_frames, strict=True):
        try:
            reference = task.reference(example.label)
            target = tuple(task.target(reference, frames))
            if learn:
                task.check(target, frames)
        except Unusable as reason:
            skipped.append(Skipped(example.id, name, str(reason)))
        else:
            kept.append((example, reference, target))
    return Split(
        name=name,
        ids=tuple(example.id for example, _, _ in kept),
        rows=np.array([example.row for example, _, _ in kept], dtype=np.int64),
        frames=np.array([example.frames for example, _, _ in kept], dtype=np.int64),
        references=tuple(reference for _, reference, _ in kept),
        targets=tuple(target for _, _, target in kept),
        skipped=tuple(skipped),
    )


def count_reasons(skipped: Iterable[Skipped]) -> dict[str, int]:
    """Reasons and how many rows each has, most frequent first."""
    return dict(Counter(skip.reason for skip in skipped).most_common())


def list_reasons(skipped: Iterable[Skipped], split: str) -> str:
    """Why rows of a split were skipped, and how many for each reason; empty where none was."""
    reasons = count_reasons(skip for skip in skipped if skip.split == split)
    return ", ".join(f"{reason} ({count})" for reason, count in reasons.items())


def _explain_empty(name: str, recipe: Recipe, found: Sequence[str | None], skipped: Sequence[Skipped]) -> None:
    split = recipe.split
    reasons = list_reasons(skipped, name)
    if reasons:
        why = f"all its rows are unusable: {reasons}"
        next_ = ""
    else:
        counts = Counter("(none)" if value is None else value for value in found).most_common(6)
        why = f"column {split.column!r} holds " + (
            ", ".join(f"{value} ({count})" for value, count in counts) or "nothing"
        )
        next_ = (
            f": name another value with --set split.{name}=VALUE, add such utterances to the cache, or give a CSV with "
            f"columns id and {split.column} with --set task.labels_file=FILE.csv"
        )
    where = " after task.where" if recipe.task.where else ""
    raise UsageError(f"key split.{name}: no usable row has {split.column} = {split.value(name)!r}{where}; {why}{next_}")


def _read_records(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Lines of a CSV (with a header) or JSON Lines file, values as text; empty cells and nulls are None."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
                for line, text in enumerate(file, start=1):
                    if text.strip():
                        yield line, _json_record(path, line, text)
            elif path.suffix.lower() in (".csv", ".tsv"):
                csv.field_size_limit(_LONGEST_CELL)
                reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
                header = _csv_header(path, reader)
                if "id" not in header:
                    raise UsageError(f"{path} line 1: no column `id`; the header is {', '.join(header)}")
                for record in _csv_records(path, reader):
                    if None in record or None in record.values():
                        raise UsageError(f"{path} line {reader.line_num}: another number of cells than in the header")
                    yield reader.line_num, {name: value or None for name, value in record.items()}
            else:
                raise UsageError(f"key task.labels_file: {path} is neither .csv, .tsv nor .jsonl")
    except OSError as error:
        raise UsageError(f"key task.labels_file: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"key task.labels_file: {path} cannot be read: {error}; save it as UTF-8") from error


def _csv_header(path: Path, reader: csv.DictReader[str]) -> Sequence[str]:
    with _csv_explained(path, reader):
        return reader.fieldnames or []


def _csv_records(path: Path, reader: csv.DictReader[str]) -> Iterator[dict[str, str]]:
    with _csv_explained(path, reader):
        yield from reader


@contextmanager
def _csv_explained(path: Path, reader: csv.DictReader[str]) -> Iterator[None]:
    try:
        yield
    except csv.Error as error:
        raise UsageError(
            f"{path} line {reader.line_num + 1}: {error}; a cell that has the separator, a quote or a line break in it "
            "stands in quotes, with every quote in it doubled"
        ) from error


def _json_record(path: Path, line: int, text: str) -> dict[str, str | None]:
    try:
        record: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} line {line}: not JSON ({error}); write one object a line") from error
    if not isinstance(record, Mapping):
        raise UsageError(f"{path} line {line}: not a JSON object; write one object a line")
    return {name: None if value is None else as_text(value) for name, value in record.items()}
