"""Repair: exactly what is broken is made again, as it was, from what is still whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from featcache.errors import JobError, MismatchError, UsageError
from featcache.forget import forget
from featcache.job import Job, Request
from featcache.partial import write_origin
from featcache.recode import recode
from featcache.repair import repair
from featcache.spec import Layout
from featcache.storage import LocalStorage
from featcache.store import Cache
from featcache.upstreams import UpstreamConfig
from featcache.verify import verify
from tests.helpers import contents, make_speech

MEL = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=128))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a manifest and a cache of it, of two segments: six utterances and three."""
    folder = tmp_path_factory.mktemp("made")
    for limit in (6, 9):
        Job(make_speech(folder, 9), folder / "cache", MEL, limit=limit).extract()
    return folder


@pytest.fixture
def place(made: Path, memory: Path) -> Path:
    shutil.copytree(made / "cache", memory / "cache")
    return memory / "cache"


def damage(place: Path, *keys: str) -> None:
    for key in keys:
        data = bytearray((place / key).read_bytes())
        data[len(data) // 2] ^= 1
        (place / key).write_bytes(data)


def changed(made: Path, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> Path:
    """Another manifest of the same recordings."""
    lines = (made / "manifest.jsonl").read_text().splitlines()
    other = made / "other.jsonl"
    other.write_text("".join(json.dumps(change(i, json.loads(line))) + "\n" for i, line in enumerate(lines)))
    return other


def without_text(number: int, row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "text"} | {"speaker": "other"}


def test_labels_that_are_whole_stay_whatever_the_manifest_says(made: Path, place: Path) -> None:
    damage(place, "segments/000000/codes/c/1/0/0", "segments/000000/index/frames/c/0")
    (place / "segments/000001/ledger/000000.json").write_bytes(b"{}")
    assert len(repair(changed(made, without_text), place)) == 3
    assert contents(place) == contents(made / "cache")


def test_a_broken_column_is_made_again_as_it_was_or_not_at_all(made: Path, place: Path) -> None:
    labels = "segments/000000/labels"
    damage(place, f"{labels}/text/bytes/c/0", f"{labels}/zarr.json")
    (place / labels / "text/offsets/c/0").unlink()
    before = contents(place)
    for what, change in (
        ("no 'text'", without_text),
        ("other values of 'text'", lambda number, row: row | {"text": "another"}),
    ):
        with pytest.raises(JobError, match=f"does not have the labels of .*{what}.*manifest that the cache was made"):
            repair(changed(made, change), place)
        assert contents(place) == before
    # The other column is whole, and need not be the manifest's.
    assert len(repair(changed(made, lambda number, row: row | {"speaker": "other"}), place)) == 3
    assert contents(place) == contents(made / "cache")
    damage(place, f"{labels}/proof.json")
    with pytest.raises(JobError, match="no 'text'"):
        repair(changed(made, without_text), place)
    assert repair(made / "manifest.jsonl", place) and contents(place) == contents(made / "cache")


def test_shards_that_a_partial_copy_does_without_are_not_computed(made: Path, place: Path) -> None:
    shards = sorted((place / "segments/000000/codes/c").glob("*/0/0"))
    assert len(shards) > 2
    for shard in shards[1:]:
        shard.unlink()
    write_origin(LocalStorage(place), "s3://bucket/c")
    before = contents(place)
    damage(place, "segments/000000/codes/c/0/0/0", "segments/000000/index/state/c/0")
    assert len(repair(made / "manifest.jsonl", place)) == 2
    assert contents(place) == before and Cache.open(place).origin and verify(place).whole


def test_what_is_left_of_an_unfinished_segment_is_not_finished(made: Path, place: Path) -> None:
    """That is what `extract` is for; its labels, which came just before the seal, are nothing."""
    (place / "segments/000001/seal.json").unlink()
    (place / "segments/000001/labels/proof.json").unlink()
    assert repair(made / "manifest.jsonl", place) == ["segments/000001/labels/proof.json"]
    assert not (place / "segments/000001/labels").exists()
    Job(made / "manifest.jsonl", place, MEL).extract()
    assert contents(place) == contents(made / "cache")


HASH, IDS = "index/hash/c/0", "index/id_bytes/c/0"


@pytest.mark.parametrize("broken", [(HASH, HASH), (HASH, IDS), (IDS, IDS)])
def test_indexes_of_two_segments_are_repaired_together(made: Path, place: Path, broken: tuple[str, str]) -> None:
    damage(place, *(f"segments/00000{number}/{key}" for number, key in enumerate(broken)))
    assert len(repair(made / "manifest.jsonl", place)) == 2
    assert contents(place) == contents(made / "cache")


@pytest.mark.parametrize("broken", [HASH, IDS, "plan.json"])
def test_an_index_is_repaired_from_a_manifest_that_has_grown(made: Path, place: Path, broken: str) -> None:
    """The three utterances behind those of the first segment are new to it."""
    shutil.rmtree(place / "segments/000001")
    before = contents(place)
    damage(place, f"segments/000000/{broken}")
    assert repair(made / "manifest.jsonl", place) == [f"segments/000000/{broken}"]
    assert contents(place) == before


@pytest.mark.parametrize("broken", ["index/frames/c/0", "codes/c/1/0/0", IDS])
def test_nothing_is_touched_where_the_manifest_is_of_other_rows(made: Path, place: Path, broken: str) -> None:
    damage(place, f"segments/000000/{broken}", "segments/000000/labels/text/bytes/c/0")
    before = contents(place)
    other = changed(made, lambda number, row: row | {"duration": row["duration"] + 0.1 * (number == 2)})
    with pytest.raises(JobError, match="does not give the 6 utterances of .*manifest that the cache was made from"):
        repair(other, place)
    assert contents(place) == before


def test_shards_of_a_recoded_cache_are_made_of_the_one_that_it_was_recoded_from(made: Path, memory: Path) -> None:
    """Also after some utterances are gone from it, so that its rows lie elsewhere than in the source."""
    speech, source = made / "manifest.jsonl", made / "cache"
    recode(source, memory / "recoded", "residual:step=4")
    forget(memory / "recoded", {"id": {"u1", "u7"}})
    place, sound = memory / "broken", contents(memory / "recoded")
    shutil.copytree(memory / "recoded", place)
    damage(place, "segments/000000/codes/c/1/0/0", "segments/000001/ledger/000000.json")
    damage(place, "segments/000001/index/frames/c/0")
    before = contents(place)
    with pytest.raises(JobError, match=r"codes/c/1/0/0 is broken.*was recoded from .*repair .* --source CACHE"):
        repair(speech, place)
    with pytest.raises(MismatchError, match="was not recoded from"):
        repair(speech, place, source=memory / "recoded")
    with pytest.raises(UsageError, match="is both the cache to read and the one to write"):
        repair(speech, place, source=place)
    # The same ids, calibration and lengths, and other recordings.
    other = memory / "other"
    other.mkdir()
    for key in ("zarr.json", "calibration"):
        (shutil.copytree if (source / key).is_dir() else shutil.copy)(source / key, other / key)
    (other / "speech").mkdir()
    Job(make_speech(other / "speech", 9, level=0.2), other, MEL).extract()
    with pytest.raises(MismatchError, match="holds other recordings than"):
        repair(speech, place, source=other)
    assert contents(place) == before
    assert len(repair(speech, place, source=source)) == 3
    assert contents(place) == sound


def test_what_needs_no_codes_is_repaired_in_a_recoded_cache_as_in_any(made: Path, memory: Path) -> None:
    speech, place = made / "manifest.jsonl", memory / "recoded"
    recode(made / "cache", place, "residual:step=4")
    before = contents(place)
    damage(place, "segments/000000/index/hash/c/0", "segments/000000/labels/text/bytes/c/0")
    assert len(repair(speech, place)) == 2
    assert contents(place) == before


def test_a_source_of_a_cache_that_was_not_recoded_is_refused(made: Path, place: Path) -> None:
    damage(place, "segments/000000/codes/c/1/0/0")
    with pytest.raises(UsageError, match="was not recoded from another cache: leave out --source"):
        repair(made / "manifest.jsonl", place, source=made / "cache")
