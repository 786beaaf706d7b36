"""Recoding: another profile from a cache, without the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from featcache import Cache
from featcache.errors import CacheError, JobError, MismatchError, UsageError
from featcache.forget import forget
from featcache.job import Job, Request
from featcache.outlook import outlook
from featcache.recode import recode
from featcache.select import subset
from featcache.spec import Layout
from featcache.storage import LocalStorage
from featcache.upstreams import UpstreamConfig
from featcache.verify import verify
from featcache.writer import SegmentWriter
from tests.featcache.codec.examples import speech_like
from tests.helpers import contents, make_cache, make_speech

# The longest is more than one window of the upstream.
FRAMES = {"a": 40, "b": 1, "c": 120, "long": 3500, "bad": 30, "d": 64}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    features = {name: speech_like(frames, frames) for name, frames in FRAMES.items()}
    labels = {name: {"text": name.upper(), "lang": None if name == "a" else "en"} for name in features}
    return make_cache(tmp_path / "source", features, labels, quarantine={"bad": "broken"})


def test_a_recoded_cache_holds_the_same_utterances(source: Path, tmp_path: Path) -> None:
    done = recode(source, tmp_path / "small", "residual:step=0.5")
    before, after = Cache.open(source), Cache.open(tmp_path / "small")
    assert verify(tmp_path / "small").whole and after.complete
    assert done.shards == after.segments[0].seal.shards > 1
    assert done.bits_after < done.bits_before
    assert after.spec.parent == before.encoding_id and after.values_id == before.values_id
    assert list(after.ids) == list(before.ids)
    assert after.lengths.tolist() == before.lengths.tolist()
    assert after.labels("text") == before.labels("text") and after.labels("lang") == before.labels("lang")
    for column in ("audio_sha256", "samples", "state"):
        np.testing.assert_array_equal(after.segments[0].column(column), before.segments[0].column(column))
    for name in FRAMES:
        error = np.abs(after.read(name) - before.read(name)) / after.codec.calibration["step"]
        assert error.max(initial=0) <= 4.0


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recode(source, tmp_path / "whole", "residual:step=0.5")
    record = SegmentWriter.record
    calls: list[int] = []

    def stop_at_the_third(self: SegmentWriter, shard: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        record(self, shard)  # type: ignore[arg-type]

    monkeypatch.setattr(SegmentWriter, "record", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        recode(source, tmp_path / "cut", "residual:step=0.5")
    monkeypatch.setattr(SegmentWriter, "record", record)
    resumed = recode(source, tmp_path / "cut", "residual:step=0.5")
    assert resumed.shards == Cache.open(tmp_path / "whole").segments[0].seal.shards - 2
    seals = [(tmp_path / name / "segments/000000/seal.json").read_bytes() for name in ("whole", "cut")]
    assert seals[0] == seals[1]
    assert recode(source, tmp_path / "cut", "residual:step=0.5").shards == 0


@pytest.mark.parametrize("command", ["recode", "subset"])
def test_without_room_no_shard_is_begun(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    target = tmp_path / "target"

    def work() -> None:
        if command == "recode":
            recode(source, target, "residual:step=0.5")
        else:
            subset(source, target, {"lang": {"en"}})

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "free_bytes", lambda self: 1000)
        with pytest.raises(JobError, match=r"needs about .* has 1\.0 kB free: free some space"):
            work()
    assert not [path for path in target.glob("segments/*/*/c/**/*") if path.is_file()]
    work()
    assert verify(target).whole


@pytest.mark.parametrize("profile", ["residual:step=0.5", "int8"])
def test_what_was_killed_before_there_was_a_cache_is_begun_again(source: Path, tmp_path: Path, profile: str) -> None:
    """Its calibration is there already, perhaps that of another profile."""
    recode(source, tmp_path / "whole", profile)
    recode(source, tmp_path / "killed", "residual:step=0.5")
    (tmp_path / "killed/zarr.json").unlink()
    shutil.rmtree(tmp_path / "killed/segments")
    recode(source, tmp_path / "killed", profile)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_only_downwards(source: Path, tmp_path: Path) -> None:
    recode(source, tmp_path / "int8", "int8")
    recode(tmp_path / "int8", tmp_path / "residual", "residual:step=1.0")
    for wrong in ("fp16", "int8", "residual:step=0.1"):
        with pytest.raises(UsageError, match="downwards"):
            recode(tmp_path / "residual", tmp_path / "larger", wrong)
    assert not (tmp_path / "larger").exists()


def test_a_target_of_another_profile_or_source_is_refused(source: Path, tmp_path: Path) -> None:
    recode(source, tmp_path / "small", "residual:step=0.5")
    with pytest.raises(MismatchError, match="another source or profile"):
        recode(source, tmp_path / "small", "residual:step=1.0")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"other files \(notes.txt\)"):
        recode(source, tmp_path / "full", "int8")
    with pytest.raises(CacheError, match="no cache"):
        recode(tmp_path / "nothing", tmp_path / "x", "int8")


def test_a_target_keeps_nothing_that_the_source_no_longer_has(tmp_path: Path) -> None:
    speech, place, small = make_speech(tmp_path, 6), tmp_path / "c", tmp_path / "small"
    mel = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=64))
    for limit in (3, 4):
        Job(speech, place, mel, limit=limit).extract()
    recode(place, small, "residual:step=4")
    before = contents(small)
    forget(place, {"id": {"u3"}})
    with pytest.raises(
        MismatchError, match=r"small holds segments/000001, which this command would not write.*new or an empty folder"
    ):
        recode(place, small, "residual:step=4")
    # Another segment takes the name of the one that went.
    lines = speech.read_text().splitlines(keepends=True)
    speech.write_text("".join(lines[:3] + lines[4:]))
    Job(speech, place, mel).extract()
    with pytest.raises(MismatchError, match=r"small/segments/000001 is finished and holds other utterances"):
        recode(place, small, "residual:step=4")
    assert contents(small) == before
    shutil.rmtree(small / "segments/000001")
    recode(place, small, "residual:step=4")
    assert list(Cache.open(small).ids) == ["u0", "u1", "u2", "u4", "u5"]
    forget(place, {"id": {"u1"}})
    with pytest.raises(MismatchError, match="segments/000000 is finished and holds other utterances"):
        recode(place, small, "residual:step=4")
    forget(small, {"id": {"u1"}})
    assert recode(place, small, "residual:step=4").shards == 0 and verify(small).whole


@pytest.mark.parametrize("finished", [True, False])
def test_what_is_new_comes_into_a_recoded_cache_by_way_of_its_source(tmp_path: Path, finished: bool) -> None:
    """Codes made of the model's own values do not lie beside those of values that were rounded before."""
    speech, place, small = make_speech(tmp_path, 6), tmp_path / "c", tmp_path / "small"
    mel = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=64))
    Job(speech, place, mel, limit=4).extract()
    recode(place, small, "residual:step=4")
    if not finished:
        # As it is killed; of the same rows `extract` plans the same shards.
        (small / "segments/000000/seal.json").unlink()
        (small / "segments/000000/ledger/000002.json").unlink()
    before = contents(small)
    job = Job(speech, small, Request(), limit=None if finished else 4)
    for refused in (job.extract, lambda: outlook(job)):
        with pytest.raises(
            MismatchError, match=r"small lacks \d utterances .*was recoded.*same `featcache recode CACHE"
        ):
            refused()
    assert contents(small) == before
    Job(speech, place, mel).extract()
    recode(place, small, "residual:step=4")
    assert list(Cache.open(small).ids) == [f"u{i}" for i in range(6)] and verify(small).whole
    assert Job(speech, small, Request()).extract() is None and outlook(Job(speech, small, Request())).planned == 0


@pytest.mark.parametrize("sealed", [True, False])
def test_shards_of_another_recording_are_not_kept(source: Path, tmp_path: Path, sealed: bool) -> None:
    """It has the same id and length, so that the plans are the same."""
    recode(source, tmp_path / "small", "residual:step=0.5")
    if not sealed:
        (tmp_path / "small/segments/000000/seal.json").unlink()
    features = {name: speech_like(frames, frames) for name, frames in FRAMES.items()}
    other = make_cache(tmp_path / "other", features, quarantine={"d": "broken"})
    with pytest.raises(MismatchError, match="other utterances" if sealed else "shard . of .* made of other recordings"):
        recode(other, tmp_path / "small", "residual:step=0.5")
