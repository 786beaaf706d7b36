from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.errors import ManifestError
from featcache.index import MISSING, VIEW_OF
from featcache.labels import check_name
from featcache.manifest import FIELDS, Row, read, relative, resolve, write
from featcache.views import VIEW

GOOD = {"audio_filepath": "wav/1.flac", "duration": 3.21}


def manifest(folder: Path, *lines: object) -> Path:
    path = folder / "m.jsonl"
    path.write_text("".join((x if isinstance(x, str) else json.dumps(x)) + "\n" for x in lines), "utf-8")
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    assert caught.value.exit_code == 2
    return message.removeprefix(str(path))


def test_reads_flat_lines_with_labels_in_order(tmp_path: Path) -> None:
    line = {"lang": "it", **GOOD, "id": "a", "offset": 1.5, "text": "ciao", "age": 41, "native": True, "note": None}
    (row,) = read(manifest(tmp_path, line))
    assert row == Row(
        id="a",
        audio_filepath="wav/1.flac",
        duration=3.21,
        offset=1.5,
        text="ciao",
        labels={"lang": "it", "age": 41, "native": True, "note": None},
    )
    assert list(row.labels) == ["lang", "age", "native", "note"]
    assert row.labels["native"] is True


def test_byte_order_mark_blank_lines_and_crlf(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n\r\n" + b'{"audio_filepath": 1}\r\n')
    assert "line 3" in refusal(path)
    assert len(read(path, limit=1)) == 1


def test_limit_does_not_look_at_the_rest(tmp_path: Path) -> None:
    path = manifest(tmp_path, {**GOOD, "id": "a"}, {**GOOD, "id": "b"}, "broken")
    assert [row.id for row in read(path, limit=2)] == ["a", "b"]
    with pytest.raises(ManifestError, match="limit of 0"):
        read(path, limit=0)


def test_ids_are_derived_from_path_and_offset(tmp_path: Path) -> None:
    path = manifest(
        tmp_path,
        GOOD,
        {**GOOD, "offset": 12.5},
        {"audio_filepath": "v1.2/x", "duration": 1},
        {**GOOD, "id": None, "audio_filepath": "q.wav"},
    )
    assert [row.id for row in read(path)] == ["wav/1", "wav/1@12.5", "v1.2/x", "q"]


def test_an_offset_of_zero_still_means_a_part(tmp_path: Path) -> None:
    path = manifest(tmp_path, {**GOOD, "id": "whole"}, {**GOOD, "id": "part", "offset": 0})
    rows = read(path)
    assert [row.is_part for row in rows] == [False, True]
    write(path, rows)
    assert [row.is_part for row in read(path)] == [False, True]
    assert [row.is_part for row in relative(read(path), path)] == [False, True]


@pytest.mark.parametrize(
    ("line", "field", "hint"),
    [
        ({"audio_filepath": "a.wav"}, "'duration'", "missing"),
        ({"duration": 1.0}, "'audio_filepath'", "missing"),
        ({**GOOD, "duration": -0.5}, "'duration'", "-0.5"),
        ({**GOOD, "duration": "1.5"}, "'duration'", "unquoted"),
        ({**GOOD, "duration": True}, "'duration'", "true or false"),
        ({**GOOD, "duration": None}, "'duration'", "null"),
        ({**GOOD, "duration": 10**400}, "'duration'", "seconds"),
        ({**GOOD, "duration": 48000000000}, "'duration'", "not samples"),
        ('{"audio_filepath": "a.wav", "duration": NaN}', "'duration'", "nan"),
        ('{"audio_filepath": "a.wav", "duration": 1e999}', "'duration'", "inf"),
        ({**GOOD, "offset": -1}, "'offset'", "-1"),
        ({**GOOD, "offset": [0]}, "'offset'", "a list"),
        ({**GOOD, "audio_filepath": " "}, "'audio_filepath'", "empty"),
        ({**GOOD, "audio_filepath": "a\0.wav"}, "'audio_filepath'", "NUL"),
        ({**GOOD, "audio_filepath": 7}, "'audio_filepath'", "quotes"),
        ({**GOOD, "id": 7}, "'id'", "quotes"),
        ({**GOOD, "id": ""}, "'id'", "empty"),
        ({**GOOD, "text": ["a"]}, "'text'", "a list"),
        ({**GOOD, "text": "\ud800"}, "'text'", "Unicode"),
        ({**GOOD, "words": [1, 2]}, "'words'", "a list"),
        ({**GOOD, "who": {"name": "x"}}, "'who'", "an object"),
        ('{"audio_filepath": "a.wav", "duration": 1, "snr": NaN}', "'snr'", "finite"),
        ({**GOOD, "labels": {"lang": "en"}}, "'labels'", "beside"),
        ({**GOOD, " ": 1}, "' '", "name"),
        ({**GOOD, "who": "\0"}, "'who'", "write null"),
        ({**GOOD, "text": "\0"}, "'text'", "write null"),
        ({**GOOD, "a/b": 1}, "'a/b'", "slash"),
        ({**GOOD, "../../../../esc": 1}, "'../../../../esc'", "slash"),
        ({**GOOD, "x\\y": 1}, "'x", "backslash"),
        ({**GOOD, "a\tb": 1}, "'a", "control character"),
        ({**GOOD, "a\x7f": 1}, "'a", "control character"),
        ({**GOOD, "..": 1}, "'..'", "another name"),
        ({**GOOD, ".": 1}, "'.'", "another name"),
        ({**GOOD, "zarr.json": 1}, "'zarr.json'", "another name"),
        ({**GOOD, "proof.json": 1}, "'proof.json'", "another name"),
        ({**GOOD, "leases": 1}, "'leases'", "another name"),
        ({**GOOD, "é" * 128: 1}, "'éé", "256 bytes"),
        ('{"audio_filepath": "a.wav", "duration": 1, "duration": 2}', "'duration'", "twice"),
    ],
)
def test_a_wrong_field_is_named_with_line_and_fix(tmp_path: Path, line: object, field: str, hint: str) -> None:
    message = refusal(manifest(tmp_path, {**GOOD, "id": "first"}, line))
    assert message.startswith(", line 2: field ") and field in message and hint in message


@pytest.mark.parametrize(
    "line", ['["a"]', "7", '"x"', "{", "nonsense", "{'a': 1}", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"]
)
def test_what_is_not_an_object_is_refused(tmp_path: Path, line: str) -> None:
    message = refusal(manifest(tmp_path, GOOD, line))
    assert message.startswith(", line 2: ") and "object" in message


def test_duplicate_ids_name_both_lines(tmp_path: Path) -> None:
    message = refusal(manifest(tmp_path, GOOD, {**GOOD, "id": "x"}, GOOD))
    assert message.startswith(", line 3: ") and "line 1" in message and "wav/1" in message


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    assert "no rows" in refusal(path)


@pytest.mark.parametrize(
    "content", ['{"audio_filepath": "é.wav", "duration": 1}\n'.encode("latin-1"), '{"a": 1}'.encode("utf-16")]
)
def test_other_encodings_are_refused_with_their_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(b"\n" + content)
    message = refusal(path)
    assert message.startswith(", line 2: ") and "UTF-8" in message


def test_a_missing_file_and_a_directory(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.jsonl")
    assert "directory" in refusal(tmp_path)


def test_resolve_is_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    row = Row(id="a", audio_filepath="../wav/a.wav", duration=1)
    assert resolve(row, "data/m.jsonl") == tmp_path / "wav/a.wav"
    assert resolve(Row(id="a", audio_filepath="/x/a.wav", duration=1), "data/m.jsonl") == Path("/x/a.wav")


def test_relative_moves_only_what_lies_below(tmp_path: Path) -> None:
    inside = Row(id="a", audio_filepath=str(tmp_path / "wav/a.wav"), duration=1)
    outside = Row(id="b", audio_filepath="/elsewhere/b.wav", duration=1)
    path = tmp_path / "m.jsonl"
    moved = relative([inside, outside], path)
    assert [row.audio_filepath for row in moved] == ["wav/a.wav", "/elsewhere/b.wav"]
    assert [resolve(row, path) for row in moved] == [resolve(row, path) for row in (inside, outside)]


def test_write_is_whole_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.jsonl"
    rows = [Row(id="a", audio_filepath="a.wav", duration=1), Row(id="b", audio_filepath="b.wav", duration=0)]
    write(path, rows)
    before = path.read_bytes()

    def broken() -> object:
        yield rows[0]
        raise RuntimeError("the importer stopped")

    with pytest.raises(RuntimeError):
        write(path, broken())  # type: ignore[arg-type]
    with pytest.raises(ManifestError, match="two rows"):
        write(path, [rows[0], rows[0]])
    with pytest.raises(ManifestError, match="no rows"):
        write(path, [])
    with pytest.raises(ManifestError, match="cannot be written"):
        write(path / "below-a-file.jsonl", rows)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["m.jsonl"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda text: text != MISSING)
NAME = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20).filter(str.strip)
LABEL = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT


def _may_name_a_label(name: str) -> bool:
    try:
        check_name(name)
    except ValueError:
        return False
    return True


@st.composite
def rows(draw: st.DrawFn) -> Row:
    fields: dict[str, object] = {"id": draw(NAME), "audio_filepath": draw(NAME)}
    fields["duration"] = draw(st.floats(0, 1e7) | st.integers(0, 10**7))
    if draw(st.booleans()):
        fields["offset"] = draw(st.floats(0, 1e7))
    # the labels of a view are no free ones
    names = NAME.filter(lambda name: name not in (*FIELDS, "labels", VIEW, VIEW_OF) and _may_name_a_label(name))
    return Row(**fields, text=draw(st.none() | TEXT), labels=draw(st.dictionaries(names, LABEL, max_size=4)))  # type: ignore[arg-type]


@settings(max_examples=200, deadline=None)
@given(st.lists(rows(), min_size=1, max_size=5, unique_by=lambda row: row.id))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    path = tmp_path_factory.mktemp("round") / "m.jsonl"
    write(path, written)
    back = read(path)
    assert back == written
    assert [row.is_part for row in back] == [row.is_part for row in written]
    assert [list(row.labels.items()) for row in back] == [list(row.labels.items()) for row in written]
    assert [[type(v) for v in row.labels.values()] for row in back] == [
        [type(v) for v in row.labels.values()] for row in written
    ]
    first = path.read_bytes()
    write(path, back)
    assert path.read_bytes() == first


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80) | st.text('{}[]":,0123456789.eE-nulltruefasid \\', max_size=60).map(str.encode))
def test_any_bytes_give_rows_or_a_manifest_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "m.jsonl"
    path.write_bytes(content)
    assert "," in refusal(path) or "no rows" in refusal(path)
