"""Parts of caches: what is kept is unchanged, what is taken out is nowhere, and a crash in between loses nothing."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from featcache import cli, layout
from featcache.diff import diff
from featcache.errors import CacheError, CorruptCacheError, FeatcacheError, MismatchError, UsageError
from featcache.forget import forget
from featcache.inspect import status
from featcache.job import Job, Request
from featcache.ledger import ShardRecord, read_records
from featcache.partial import write_origin
from featcache.recode import recode
from featcache.repair import repair
from featcache.select import merge, subset
from featcache.spec import Layout
from featcache.storage import LocalStorage
from featcache.store import Cache
from featcache.upstreams import Upstream, UpstreamConfig
from featcache.verify import verify
from tests.helpers import contents, make_cache, make_speech, run_cli

RNG = np.random.default_rng(5)
# The longest is more than one window of the upstream.
FRAMES = {"a": 40, "b": 1, "c": 120, "long": 1700, "bad": 30, "d": 64}
FEATURES = {name: RNG.standard_normal((frames, 2, 8)).astype(np.float32) for name, frames in FRAMES.items()}
LABELS = {name: {"who": "x" if name in ("a", "long", "bad") else "y", "n": i} for i, name in enumerate(FEATURES)}
MEL = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=128))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(
        tmp_path_factory.mktemp("source") / "cache", FEATURES, LABELS, "int8", quarantine={"bad": "no sound"}
    )


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three segments of log-mel: four, six and two utterances of three speakers."""
    folder = tmp_path_factory.mktemp("extended")
    speech = make_speech(folder, 12)
    for limit in (4, 10, 12):
        Job(speech, folder / "cache", MEL, limit=limit).extract()
    return folder / "cache"


def same_values(small: Cache, large: Cache) -> None:
    for utterance_id in small.ids:
        np.testing.assert_array_equal(small.read(utterance_id), large.read(utterance_id))


def test_a_subset_holds_what_was_chosen_unchanged(source: Path, tmp_path: Path) -> None:
    made = subset(source, tmp_path / "x", {"who": {"x"}})
    small, large = Cache.open(tmp_path / "x"), Cache.open(source)
    assert list(small.ids) == ["a", "long", "bad"] and made.utterances == 3 and verify(tmp_path / "x").whole
    assert small.labels("n") == ["0", "3", "4"] and small.encoding_id == large.encoding_id and small.complete
    assert [q.reason for r in read_records(small.storage, "segments/000000", "").values() for q in r.quarantined] == [
        "no sound"
    ]
    same_values(small, large)
    assert subset(source, tmp_path / "x", {"who": {"x"}}) == made
    with pytest.raises(MismatchError, match="is finished and holds other utterances than these 3.*give a new"):
        subset(source, tmp_path / "x", {"who": {"y"}})
    for where, unknown in (({"who": {"z"}}, "who=z"), ({"who": {"x", "z"}}, "who=z"), ({"id": {"a", "A"}}, "id=A")):
        with pytest.raises(UsageError, match=f"no utterance of .* has {unknown}: `featcache ls"):
            subset(source, tmp_path / "none", where)
    assert not (tmp_path / "none").exists()
    subset(source, tmp_path / "dry", {"id": {"a", "b"}}, dry_run=True)
    assert not (tmp_path / "dry").exists()


def test_values_that_are_kept_exactly_stay_with_their_frames(tmp_path: Path) -> None:
    strays = {name: row.copy() for name, row in FEATURES.items()}
    for row in strays.values():
        # Of a plane that is needed for some frames only those are read; the longest has such ones in both windows.
        for frame in {len(row) // 3, len(row) // 2, len(row) - 2} & set(range(len(row))):
            row[frame, 1, 3] = 5000 + frame
    source = make_cache(tmp_path / "source", strays, LABELS, "residual", parameters={"step": 1.0})
    whole = Cache.open(source)
    for name, row in strays.items():
        assert np.abs(whole.read(name) - row).max() < 4 * whole.calibration["step"].max(), name
    halves = tmp_path / "x", tmp_path / "y"
    for half in halves:
        subset(source, half, {"who": {half.name}})
        same_values(Cache.open(half), whole)
    merge(*halves, tmp_path / "both")
    same_values(Cache.open(tmp_path / "both"), whole)
    forget(source, {"id": {"a"}})
    same_values(Cache.open(source), Cache.open(tmp_path / "both"))


def test_a_source_is_never_the_target(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(source, tmp_path / "c")
    (tmp_path / "link").symlink_to("c")
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path / "c")
    for target in (tmp_path / "c", Path("c"), Path("link"), Path("link/../c/")):
        for copy in (
            lambda target: subset(tmp_path / "c", target, {"who": {"x"}}),
            lambda target: merge(tmp_path / "c", source, target),
            lambda target: merge(source, tmp_path / "c", target),
            lambda target: recode(tmp_path / "c", target, "residual:step=4"),
        ):
            with pytest.raises(UsageError, match="is both the cache to read and the one to write"):
                copy(target)
    assert contents(tmp_path / "c") == before


def test_the_rest_of_a_partial_copy_is_to_be_pulled(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "c"
    shutil.copytree(source, place)
    write_origin(LocalStorage(place), "s3://bucket/c")
    for copy in (
        lambda: subset(place, tmp_path / "x", {"who": {"x"}}),
        lambda: merge(source, place, tmp_path / "x"),
        lambda: recode(place, tmp_path / "x", "residual:step=4"),
    ):
        with pytest.raises(CacheError, match=f"is a partial copy: `featcache pull s3://bucket/c {place}` fetches"):
            copy()
    assert not (tmp_path / "x").exists()


def test_a_source_without_a_record_is_one_line(source: Path, tmp_path: Path) -> None:
    place = tmp_path / "c"
    shutil.copytree(source, place)
    (place / "segments/000000/ledger").rename(tmp_path / "ledger")
    for copy in (
        lambda: subset(place, tmp_path / "x", {"who": {"x"}}),
        lambda: recode(place, tmp_path / "y", "residual:step=4"),
        lambda: forget(place, {"id": {"a"}}),
    ):
        with pytest.raises(CorruptCacheError, match=r"c/segments/000000/ledger/000000.json is missing.*verify"):
            copy()


def test_two_halves_merge_to_the_whole(source: Path, extended: Path, tmp_path: Path) -> None:
    subset(source, tmp_path / "x", {"who": {"x"}})
    subset(source, tmp_path / "y", {"id": {"a", "b", "c", "d"}})
    made = merge(tmp_path / "x", tmp_path / "y", tmp_path / "whole")
    assert made.utterances == 6 and made.left_out == 1 and verify(tmp_path / "whole").whole
    with pytest.raises(MismatchError, match="whole holds segments/000001, which this command would not write"):
        subset(source, tmp_path / "whole", {"who": {"x"}})
    found = diff(source, tmp_path / "whole")
    assert found.same and found.compared == 5
    with pytest.raises(MismatchError, match="same kind of codes.*family"):
        merge(source, extended, tmp_path / "mixed")
    # Digests of audio are those of the position here.
    turned = dict(reversed(LABELS.items()))
    other = make_cache(tmp_path / "other", {name: FEATURES[name] for name in turned}, LABELS, "int8")
    with pytest.raises(MismatchError, match="is another recording"):
        merge(source, other, tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


def test_codes_of_a_recoded_cache_are_not_mixed_with_others(tmp_path: Path) -> None:
    """What has no calibration has one encoding id, of whatever values it was made."""
    signs = {name: np.sign(row) for name, row in FEATURES.items()}  # fewer bits than the source's
    source = make_cache(tmp_path / "source", signs)
    recode(source, tmp_path / "recoded", "bitround:3")
    recoded = Cache.open(tmp_path / "recoded")
    direct = make_cache(tmp_path / "direct", signs, profile="bitround", parameters=recoded.spec.parameters)
    assert Cache.open(direct).encoding_id == recoded.encoding_id
    with pytest.raises(MismatchError, match="same kind of codes.*parent"):
        merge(direct, tmp_path / "recoded", tmp_path / "mixed")


def test_of_a_recording_that_one_cache_could_not_use_the_other_is_taken(tmp_path: Path) -> None:
    a = make_cache(tmp_path / "a", FEATURES, LABELS, "int8", quarantine={"bad": "no sound", "b": "no sound"})
    b = make_cache(tmp_path / "b", FEATURES, LABELS, "int8", quarantine={"d": "no sound", "b": "no sound"})
    made = merge(a, b, tmp_path / "ab")
    assert made == merge(a, b, tmp_path / "ab") and made.utterances == 6 and made.left_out == 6
    both = Cache.open(tmp_path / "ab")
    assert list(both.ids) == ["a", "b", "c", "long", "d", "bad"] and verify(tmp_path / "ab").whole
    assert [i for i, frames in zip(both.ids, both.lengths, strict=True) if not frames] == ["b"]
    same_values(both, Cache.open(make_cache(tmp_path / "whole", FEATURES, LABELS, "int8", quarantine={"b": "none"})))
    none = dict.fromkeys(FEATURES, "no sound")
    merge(make_cache(tmp_path / "none", FEATURES, LABELS, "int8", quarantine=none), b, tmp_path / "all")
    assert len(Cache.open(tmp_path / "all")) == 6


def test_diff_says_what_differs(source: Path, extended: Path, tmp_path: Path) -> None:
    assert diff(source, source).same
    changed = {**FEATURES, "c": FEATURES["c"] * 0.9, "new": FEATURES["a"]}
    del changed["b"]
    labels = {**LABELS, "d": {"who": "z", "n": 5}}
    make_cache(tmp_path / "b", changed, labels, "int8", quarantine={"bad": "no sound"})
    found = diff(source, tmp_path / "b")
    assert found.only_a == ["b"] and found.only_b == ["new"] and found.labels["who"] == ["d"]
    assert "c" in {*found.values, *found.audio} and not found.same
    assert any(line.startswith("identity.family") for line in diff(source, extended).recipe)


def test_a_forgotten_speaker_is_nowhere(extended: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    shutil.copytree(extended, place)
    before = Cache.open(extended)
    digests = {i: before.segments[0].column("audio_sha256")[i].tobytes().hex() for i in (1,)}
    untouched = (place / "segments/000002/seal.json").stat().st_mtime_ns
    dry = forget(place, {"speaker": {"s1"}}, dry_run=True)
    assert contents(place) == contents(extended)
    gone = forget(place, {"speaker": {"s1"}})
    assert gone == dry and gone.ids == ["u1", "u4", "u7", "u10"]
    cache = Cache.open(place)
    assert list(cache.ids) == [i for i in before.ids if i not in gone.ids] and verify(place).whole
    assert "s1" not in cache.labels("speaker") and not verify(place).unknown
    same_values(cache, before)
    everything = b"".join(contents(place).values())
    for trace in (b"u10", digests[1].encode()):
        assert trace not in everything
    assert (place / "segments/000002/seal.json").stat().st_mtime_ns != untouched
    for where in ({"speaker": {"s1"}}, {"speaker": {"s1", "s2"}}, {"id": {"u1", "u2"}}):
        with pytest.raises(UsageError, match="no utterance of .* has (speaker=s1|id=u1)"):
            forget(place, where)
    assert list(Cache.open(place).ids) == list(cache.ids)


def test_a_segment_of_which_nothing_is_left_goes_and_extract_adds_after_the_last(
    extended: Path, tmp_path: Path
) -> None:
    place = tmp_path / "cache"
    shutil.copytree(extended, place)
    forget(place, {"id": {"u0", "u1", "u2", "u3"}})
    cache = Cache.open(place)
    assert [segment.name for segment in cache.segments] == ["segments/000001", "segments/000002"]
    Job(extended.parent / "manifest.jsonl", place, MEL).extract()
    again = Cache.open(place)
    assert again.segments[-1].name == "segments/000003" and len(again) == 12 and verify(place).whole


def saturated(place: Path) -> dict[str, int]:
    """Values set to the profile's limit, by utterance; each record's sum agrees."""
    cache = Cache.open(place)
    found: dict[str, int] = {}
    for segment in cache.segments:
        first_row = segment.column("first_row")
        for record in read_records(cache.storage, segment.name, "").values():
            assert record.saturated == sum(row.values for row in record.saturated_rows)
            for row in record.saturated_rows:
                owner = segment.ids[int(np.searchsorted(first_row, row.row, side="right")) - 1]
                found[owner] = found.get(owner, 0) + row.values
    return found


def test_counts_of_saturated_values_follow_their_rows(tmp_path: Path) -> None:
    speech = make_speech(tmp_path, 8)
    for number in (2, 3, 6):  # far below the noise that the scales are fitted to
        samples, rate = soundfile.read(tmp_path / f"{number}.wav")
        soundfile.write(tmp_path / f"{number}.wav", samples * (np.arange(len(samples)) % 2000 < 200 * number), rate)
    request = replace(MEL, calibration_seconds=1)
    for limit in (5, 8):
        Job(speech, tmp_path / "whole", request, limit=limit).extract()
    expected = saturated(tmp_path / "whole")
    assert len({expected[row] for row in ("u2", "u3", "u6")}) == 3 and sum(expected.values()) > 300
    half = {"u1", "u3", "u6", "u7"}
    subset(tmp_path / "whole", tmp_path / "a", {"id": half})
    subset(tmp_path / "whole", tmp_path / "b", {"id": {"u0", "u2", "u4", "u5"}})
    assert saturated(tmp_path / "a") == {row: count for row, count in expected.items() if row in half}
    merge(tmp_path / "a", tmp_path / "b", tmp_path / "both")
    assert saturated(tmp_path / "both") == expected
    recode(tmp_path / "whole", tmp_path / "small", "residual:step=4")
    assert all(saturated(tmp_path / "small")[row] >= count for row, count in expected.items())
    forget(tmp_path / "whole", {"id": {"u2"}})
    del expected["u2"]
    assert saturated(tmp_path / "whole") == expected
    assert sum(s["saturated_values"] for s in status(tmp_path / "whole")["segments"]) == sum(expected.values())


def test_a_record_that_names_no_saturated_rows_is_repaired_as_it_was(tmp_path: Path) -> None:
    """Records were written so before they named rows."""
    speech = make_speech(tmp_path, 4)
    samples, rate = soundfile.read(tmp_path / "3.wav")
    soundfile.write(tmp_path / "3.wav", samples * 0, rate)
    job = Job(speech, tmp_path / "c", replace(MEL, calibration_seconds=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("featcache.shards.ShardRecord", lambda **fields: ShardRecord(**{**fields, "saturated_rows": ()}))
        job.extract()
    before = contents(tmp_path / "c")
    assert b"saturated_rows" not in b"".join(before.values()) and not saturated_rows_known(tmp_path / "c")
    for shard in (tmp_path / "c/segments/000000/codes/c").glob("*/0/0"):
        shard.unlink()
    repair(speech, tmp_path / "c")
    assert contents(tmp_path / "c") == before


def saturated_rows_known(place: Path) -> bool:
    records = read_records(LocalStorage(place), "segments/000000", "").values()
    assert sum(record.saturated for record in records) > 0
    return any(record.saturated_rows for record in records)


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


def test_killed_at_any_step_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every sixth step, and each of the last: the cache is as it was, or says what to do."""
    speech = make_speech(tmp_path, 4)
    before, whole = tmp_path / "before", tmp_path / "whole"
    for limit in (2, 3, 4):
        Job(speech, before, MEL, limit=limit).extract()
    shutil.copytree(before, whole)
    # Only the order of the steps matters here: tests/featcache/test_storage.py holds that each is durable.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    # One of two of the first segment, and all of the second.
    where = {"id": {"u1", "u2"}}
    steps = [0]
    stop_at = [0]
    originals: dict[str, Callable[..., Any]] = {
        name: getattr(LocalStorage, name) for name in ("write", "create", "delete", "delete_folder", "move_folder")
    }
    for name, original in originals.items():

        def stepped(self: LocalStorage, *arguments: Any, original: Callable[..., Any] = original) -> Any:
            steps[0] += 1
            if steps[0] == stop_at[0]:
                raise Killed
            return original(self, *arguments)

        monkeypatch.setattr(LocalStorage, name, stepped)
    forget(whole, where)
    total, expected = steps[0], contents(whole)
    assert total > 20
    # This process plays the one that was killed, and its leases are a dead process's.
    monkeypatch.setattr("featcache.lease.may_run", lambda *process: False)
    for stop in [*range(1, total - 8, 6), *range(total - 8, total + 1)]:
        place = tmp_path / f"c{stop}"
        shutil.copytree(before, place)
        steps[0], stop_at[0] = 0, stop
        with pytest.raises(Killed):
            forget(place, where)
        stop_at[0] = 0
        try:
            assert len(Cache.open(place)) in (4, 2)
        except CacheError as error:
            assert "featcache forget" in str(error)
        try:
            forget(place, where)
        except UsageError as error:  # it was all but done
            assert "no utterance" in str(error)
        assert contents(place) == expected, f"killed at step {stop} of {total}"
        shutil.rmtree(place)


def test_a_removal_that_took_a_label_with_it_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speech, place, where = make_speech(tmp_path, 3), tmp_path / "c", {"only": {"x"}}
    lines = [json.loads(line) for line in speech.read_text().splitlines()]
    lines[2]["only"] = "x"
    speech.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for limit in (2, 3):
        Job(speech, place, MEL, limit=limit).extract()
    delete = LocalStorage.delete

    def killed_at_the_mark(self: LocalStorage, key: str) -> None:
        if key == layout.PENDING:
            raise Killed
        delete(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", killed_at_the_mark)
        with pytest.raises(Killed):
            forget(place, where)
    with pytest.raises(CacheError, match="run it again"):
        Cache.open(place)
    assert forget(place, where).ids == [] and list(Cache.open(place).ids) == ["u0", "u1"]
    with pytest.raises(UsageError, match="no label 'only'"):
        forget(place, where)


def test_a_removal_that_was_killed_brings_nothing_back(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has written what was to stay, and then that is to go as well."""
    place = tmp_path / "c"
    shutil.copytree(source, place)
    write = LocalStorage.write

    def killed_before_the_mark(self: LocalStorage, key: str, data: bytes) -> None:
        if key == layout.PENDING:
            raise Killed
        write(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", killed_before_the_mark)
        with pytest.raises(Killed):
            forget(place, {"id": {"a"}})
    assert forget(place, {"id": {*FEATURES}}).ids == [*FEATURES]
    assert len(Cache.open(place)) == 0 and verify(place).whole and not (place / "forget").exists()


def test_views_of_views_are_forgotten_with_what_they_are_of(tmp_path: Path) -> None:
    of = {"b": "c", "c": "a", "d": "b", "long": "bad"}
    make_cache(tmp_path / "c", FEATURES, {name: {"view_of": other} for name, other in of.items()})
    assert forget(tmp_path / "c", {"id": {"a"}}, dry_run=True).ids == ["a", "b", "c", "d"]
    assert forget(tmp_path / "c", {"id": {"b"}}).ids == ["b", "d"]


def test_views_are_forgotten_where_the_recording_itself_is_not(tmp_path: Path) -> None:
    source, place = tmp_path / "c", tmp_path / "views"
    make_cache(source, FEATURES, {"b": {"view_of": "a"}, "c": {"view_of": "b"}, "d": {"view_of": "long"}})
    subset(source, place, {"id": {"b", "c", "d", "bad"}})
    assert forget(place, {"id": {"a", "bad"}}).ids == ["b", "c", "bad"]
    with pytest.raises(UsageError, match="no utterance"):
        forget(place, {"id": {"a"}})
    assert forget(place, {"id": {"long"}}).ids == ["d"] and len(Cache.open(place)) == 0


def test_what_was_killed_before_there_was_a_cache_is_no_obstacle(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calibration is there already, and here it is that of another profile."""
    other, place = make_cache(tmp_path / "other", FEATURES, LABELS), tmp_path / "x"
    subset(other, place, {"who": {"x"}})
    (place / "zarr.json").unlink()
    shutil.rmtree(place / "segments")
    subset(source, place, {"who": {"x"}})
    subset(source, tmp_path / "whole", {"who": {"x"}})
    assert contents(place) == contents(tmp_path / "whole") and verify(place).whole
    speech = make_speech(tmp_path, 2)
    Job(speech, tmp_path / "m", replace(MEL, profile="fp16")).init()
    (tmp_path / "m/zarr.json").unlink()
    Job(speech, tmp_path / "m", MEL).extract()
    assert len(Cache.open(tmp_path / "m")) == 2


def test_a_copy_of_a_recording_that_breaks_off_is_repaired(tmp_path: Path) -> None:
    """Its first window could be used; the row is none to read, and in the shard all the same."""
    speech = make_speech(tmp_path, 3)
    rate, seconds = 16_000, 70
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, rate * seconds)
    soundfile.write(tmp_path / "cut.wav", samples, rate, "PCM_16")
    with speech.open("a") as file:
        file.write(json.dumps({"id": "cut", "audio_filepath": "cut.wav", "duration": seconds + 0.5}) + "\n")
    Job(speech, tmp_path / "c", replace(MEL, layout=Layout(chunk_frames=16, shard_frames=8192))).extract()
    [record] = read_records(LocalStorage(tmp_path / "c"), "segments/000000", "").values()
    assert [bool(digest) for digest in record.audio] == [True] * 4 + [False]
    subset(tmp_path / "c", tmp_path / "part", {"id": {"u1", "cut"}})
    forget(tmp_path / "c", {"id": {"u0"}})
    for place in (tmp_path / "c", tmp_path / "part"):
        before = contents(place)
        (place / "segments/000000/codes/c/0/0/0").unlink()
        assert repair(speech, place) == ["segments/000000/codes/c/0/0/0"]
        assert contents(place) == before


def test_the_commands(
    source: Path, extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["featcache", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as exit_:
            return int(exit_.code or 0), "".join(capfd.readouterr())
        return 0, "".join(capfd.readouterr())

    assert run("subset", source, tmp_path / "x", "--where", "who=x") == (
        0,
        f"3 utterances, 35.4 s in {tmp_path / 'x'}\n",
    )
    assert "3 utterances are in both" in run("merge", tmp_path / "x", source, tmp_path / "y", "--dry-run")[1]
    assert run("diff", source, source)[0] == 0
    status, out = run("diff", source, tmp_path / "x", "--json")
    assert status == 1 and json.loads(out)["only_a"] == ["b", "c", "d"]
    assert run("forget", tmp_path / "x", "--where", "id=a", "--dry-run") == (0, "would forget a\n")
    assert "forgot a" in run("forget", tmp_path / "x", "--where", "id=a")[1]
    place = tmp_path / "cache"
    shutil.copytree(extended, place)
    speech = extended.parent / "manifest.jsonl"
    assert run("verify", place, "--recompute", 3, "--manifest", speech)[0] == 0
    assert run("verify", place, "--recompute", 3)[0] == 2


def test_recompute_finds_values_of_another_recording(
    extended: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featcache.recompute import recompute

    speech = make_speech(tmp_path, 12)
    assert recompute(speech, extended, 12) == []
    shutil.copy(tmp_path / "3.wav", tmp_path / "4.wav")
    lines = [json.loads(line) for line in speech.read_text().splitlines()]
    lines[4]["duration"] = lines[3]["duration"]
    speech.write_text("".join(json.dumps(line) + "\n" for line in lines))
    [problem] = recompute(speech, extended, 12)
    other = "has another recording, or another part of one, in the manifest than was extracted"
    assert "u4" in problem.key and problem.what == other
    # One of the same length; and a row that is another part of its recording.
    soundfile.write(tmp_path / "6.wav", np.zeros(soundfile.info(tmp_path / "6.wav").frames), 16_000, "PCM_16")
    lines[8] |= {"offset": 0.02, "duration": lines[7]["duration"] - 0.02}
    speech.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {(p.key, p.what) for p in recompute(speech, extended, 12)} == {
        (f"(utterance u{n})", other) for n in (4, 6, 8)
    }
    ran = run_cli("verify", extended, "--recompute", 12, "--manifest", speech)
    assert ran.status == 1 and f"featcache forget {extended} --where id=ID" in ran.err.replace("\n", " ")
    assert "repair" not in ran.out + ran.err
    # The same recordings, and values that the model does not give.
    forward = Upstream.forward
    monkeypatch.setattr(Upstream, "forward", lambda self, waves: [2 * row for row in forward(self, waves)])
    assert {p.what[:32] for p in recompute(make_speech(tmp_path, 12), extended, 12)} == {
        "is not what the model gives (NMS"
    }
    monkeypatch.undo()
    with pytest.raises(FeatcacheError, match="no usable utterance"):
        recompute(make_speech(tmp_path, 1), make_cache_of_mel_without(extended, tmp_path), 1)


def make_cache_of_mel_without(extended: Path, tmp_path: Path) -> Path:
    place = tmp_path / "without"
    shutil.copytree(extended, place)
    forget(place, {"id": {"u0"}})
    return place
