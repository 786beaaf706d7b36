"""Files, folders and manifests to transcribe."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache import manifest
from featcache.errors import UsageError
from featcache.views import rows_with_views
from pipelines.recordings import Recording, check_names, find


def test_files_folders_and_manifests(tmp_path: Path) -> None:
    for name in ("a/one.wav", "a/deep/two.FLAC", "a/notes.txt", "three"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rows = [
        manifest.Row(id="en/x", audio_filepath="a/one.wav", duration=3.0),
        manifest.Row(id="../y", audio_filepath="a/one.wav", offset=1.0, duration=2.0),
    ]
    manifest.write(tmp_path / "m.jsonl", rows)
    found = find([tmp_path / "three", tmp_path / "a", tmp_path / "m.jsonl"])
    wav = tmp_path / "a" / "one.wav"
    assert found == [
        Recording("three", tmp_path / "three"),
        Recording("deep/two", tmp_path / "a" / "deep" / "two.FLAC"),
        Recording("one", wav),
        Recording("en/x", wav, 0.0, None, "en/x"),
        Recording("y", wav, 1.0, 2.0, "../y"),
    ]
    assert found[4].as_json() == {"id": "../y", "audio_filepath": str(wav), "offset": 1.0}


def test_a_view_is_no_recording_to_transcribe(tmp_path: Path) -> None:
    rows = [manifest.Row(id="x", audio_filepath="a.wav", duration=3.0)]
    manifest.write(tmp_path / "m.jsonl", rows_with_views(rows, ["speed=0.9"], {}))
    assert [one.id for one in find([tmp_path / "m.jsonl"])] == ["x"]


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no recordings below it"):
        find([tmp_path / "empty"])


def test_names_have_to_differ_only_where_files_are_written(tmp_path: Path) -> None:
    alike = find([tmp_path / "x/a.wav", tmp_path / "y/a.wav"])
    assert [one.path.parent.name for one in alike] == ["x", "y"]
    with pytest.raises(UsageError, match=r"x/a\.wav and .*y/a\.wav would both be written to a\.txt; give them one"):
        check_names(alike, ignores_case=False)
    by_case = find([tmp_path / "x/a.wav", tmp_path / "y/A.wav"])
    check_names(by_case, ignores_case=False)
    with pytest.raises(UsageError, match=r"would both be written to A\.txt"):
        check_names(by_case, ignores_case=True)
