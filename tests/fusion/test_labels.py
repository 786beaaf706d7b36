"""Which rows a run uses: columns of the cache, the task's own file, filters, and what is skipped and why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache import Cache
from featcache.errors import UsageError
from fusion import labels, recipe
from fusion.labels import Skipped, Unusable
from tests.helpers import make_cache

ROWS: dict[str, dict[str, Any]] = {
    "a": {"text": "one", "split": "train", "lang": "en", "take": 1},
    "b": {"text": "two", "split": "train", "lang": "it", "take": 2},
    "c": {"text": "three", "split": "dev", "lang": "en", "take": 1},
    "d": {"text": "four", "split": "test", "lang": "en", "take": True},
    "e": {"text": None, "split": "train", "lang": "en", "take": 1},
    "f": {"text": "six", "split": "train", "lang": "en", "take": 1},
    "g": {"text": "seven", "split": "elsewhere", "lang": "en", "take": 1},
    "h": {"text": "eight", "lang": "en", "take": 1},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    rng = np.random.default_rng(0)
    features = {id_: rng.standard_normal((5 + i, 2, 4)).astype(np.float32) for i, id_ in enumerate(ROWS)}
    return Cache.open(make_cache(tmp_path_factory.mktemp("labels") / "cache", features, ROWS, quarantine={"f": "NaN"}))


def select(cache: Cache, *overrides: str) -> labels.Selection:
    return labels.select(cache, recipe.parse(f'cache = "{cache.path}"', overrides))


def ids(selection: labels.Selection) -> dict[str, list[str]]:
    return {name: [example.id for example in examples] for name, examples in selection.splits.items()}


def test_splits_and_labels_come_from_the_cache(cache: Cache) -> None:
    selection = select(cache)
    assert ids(selection) == {"train": ["a", "b"], "dev": ["c"], "test": ["d"]}
    assert selection.labels("train") == ["one", "two"]
    assert [example.frames for example in selection.splits["train"]] == [5, 6]
    assert [cache.ids[example.row] for example in selection.splits["dev"]] == ["c"]
    assert set(selection.skipped) == {
        Skipped("e", "train", "no label 'text'"),
        Skipped("f", "train", "quarantined in the cache"),
    }


@pytest.mark.parametrize(
    ("where", "train"),
    [
        ('task.where.lang="en"', ["a"]),
        ('task.where.lang=["en", "it"]', ["a", "b"]),
        ("task.where.take=1", ["a"]),
    ],
)
def test_where_keeps_rows_of_the_given_values(cache: Cache, where: str, train: list[str]) -> None:
    assert ids(select(cache, where))["train"] == train


def test_a_limit_takes_some_of_each_split(cache: Cache) -> None:
    found = ids(select(cache, "limit=1"))
    assert found["train"][0] in ("a", "b") and found == {"train": found["train"], "dev": ["c"], "test": ["d"]}
    assert found == ids(select(cache, "limit=1", "seed=7"))
    assert ids(select(cache, "limit=5")) == ids(select(cache))


@pytest.mark.parametrize("order", ["sorted", "in turns"])
def test_a_limit_sees_every_part_of_a_manifest(order: str) -> None:
    """Five languages of which each has 200 rows, one after the other or in turns."""
    rows = [labels.Example(i, f"u{i}", "x", 9) for i in range(1000)]
    chosen = [example.row for example in labels.spread(rows, 60)]
    assert len(chosen) == 60 and chosen == sorted(set(chosen))
    languages = [row // 200 if order == "sorted" else row % 5 for row in chosen]
    assert all(languages.count(language) >= (12 if order == "sorted" else 5) for language in range(5))


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_the_tasks_own_file_goes_before_the_cache(cache: Cache, tmp_path: Path, form: str) -> None:
    place = tmp_path / f"own.{form}"
    records: list[dict[str, str | None]] = [
        {"id": "b", "text": "zwei, ja", "split": "dev"}, {"id": "e", "text": "fünf", "split": "train"},
        {"id": "a", "text": None, "split": "train"}, {"id": "nowhere", "text": "x", "split": "train"},
    ]  # fmt: skip
    if form == "jsonl":
        place.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        mark = "," if form == "csv" else "\t"
        lines = [mark.join(f'"{record[key] or ""}"' for key in ("id", "text", "split")) for record in records]
        place.write_text("\n".join([mark.join(("id", "text", "split")), *lines]))
    selection = select(cache, f"task.labels_file={place}")
    assert ids(selection) == {"train": ["e"], "dev": ["b", "c"], "test": ["d"]}
    assert selection.labels("dev") == ["zwei, ja", "three"] and selection.labels("train") == ["fünf"]
    assert Skipped("a", "train", "no label 'text'") in selection.skipped
    assert selection.notes == (f"{place}: 1 of 4 ids are not in the cache",)


def test_a_column_of_its_own_is_a_label(cache: Cache, tmp_path: Path) -> None:
    place = tmp_path / "accent.jsonl"
    place.write_text("".join(json.dumps({"id": id_, "accent": i}) + "\n" for i, id_ in enumerate("acd")))
    selection = select(cache, f"task.labels_file={place}", "task.label=accent")
    assert selection.labels("train") == ["0"] and Skipped("b", "train", "no label 'accent'") in selection.skipped


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.csv", "name,text\na,b\n", "no column `id`"),
        ("x.csv", "id,text\na,b,c\n", "line 2: another number of cells"),
        ("x.csv", "id,text\na,b\na,c\n", "line 3: id 'a' is there twice"),
        ("x.csv", 'id,text\na,"b\nb,c\n', "line 2: unexpected end of data; a cell that has the separator"),
        ("x.csv", 'id,text\na,"b" c\n', "line 2: .* expected after"),
        ("x.csv", 'id,"te"xt\n', "line 1: .* expected after"),
        ("x.jsonl", '{"id": "a"}\n{"text": 1}\n', "line 2: no `id`"),
        ("x.jsonl", "{id}\n", "line 1: not JSON"),
        ("x.jsonl", "[1]\n", "line 1: not a JSON object"),
        ("x.jsonl", "[" * 100_000 + "\n", "line 1: not JSON"),
        ("x.jsonl", '{"id": "zz"}\n', "no id of it is in the cache"),
        ("x.jsonl", "", "no id of it is in the cache"),
        ("x.xls", "", "neither .csv"),
    ],
)
def test_a_bad_labels_file_is_explained(cache: Cache, tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=words.replace("`", ".")):
        select(cache, f"task.labels_file={tmp_path / name}")


def test_a_bad_encoding_is_named_as_such_and_a_long_cell_is_read(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("id,text\na,\xfcber\n".encode("latin-1"))
    with pytest.raises(UsageError, match="save it as UTF-8"):
        select(cache, f"task.labels_file={tmp_path}/x.csv")
    (tmp_path / "long.csv").write_text("id,text\na," + "x" * 300_000 + "\n")
    assert len(select(cache, f"task.labels_file={tmp_path}/long.csv").labels("train")[0]) == 300_000


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("task.label=txt", ["key task.label", "'txt'", "lang, split, take, text"]),
        ("split.column=part", ["key split.column", "'part'", "columns id and part with --set task.labels_file"]),
        ("task.where.who=1", ["key task.where.who"]),
        ("split.dev=valid", ["key split.dev", "'valid'", "train (4)", "(none) (1)", "--set split.dev=VALUE"]),
        ('task.where.lang="it"', ["key split.dev", "after task.where"]),
        ("split.dev=train", ["three different"]),
        ("task.labels_file=none.csv", ["none.csv", "cannot be read"]),
    ],
)
def test_what_is_not_there_is_named_with_what_is(cache: Cache, override: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        select(cache, override)
    for word in words:
        assert word in str(caught.value)


class Spelling:
    """As much of a task as `prepare` needs."""

    def reference(self, label: str) -> str:
        if label == "two":
            raise Unusable("empty text after normalisation")
        return label.upper()

    def target(self, reference: str, frames: int) -> list[int]:
        return [ord(letter) for letter in reference]

    def check(self, target: list[int], frames: int) -> None:
        if len(target) > frames:
            raise Unusable("more labels than frames")


def test_rows_that_a_task_cannot_use_are_listed_with_the_reason(cache: Cache) -> None:
    examples = select(cache).splits["train"]
    learnt = labels.prepare(examples, "train", Spelling(), [2, 2], learn=True)  # type: ignore[arg-type]
    assert len(learnt) == 0
    assert learnt.skipped == (
        Skipped("a", "train", "more labels than frames"),
        Skipped("b", "train", "empty text after normalisation"),
    )  # fmt: skip
    assert labels.count_reasons(learnt.skipped) == {
        "more labels than frames": 1,
        "empty text after normalisation": 1,
    }
    scored = labels.prepare(examples, "test", Spelling(), [2, 2])  # type: ignore[arg-type]
    assert scored.ids == ("a",) and scored.references == ("ONE",) and scored.targets == ((79, 78, 69),)
    assert scored.rows.tolist() == [examples[0].row] and scored.frames.tolist() == [5]
