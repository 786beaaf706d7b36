"""Which utterances a cache is calibrated on, and what is said where none can be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from featcache import calibrate, manifest
from featcache.calibrate import choose, in_order
from featcache.errors import JobError, ManifestError
from featcache.index import id_hash
from featcache.job import Job, Request
from featcache.manifest import Row
from featcache.reading import measured
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig
from tests.helpers import make_speech

MEL = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=128))


def rows_of(durations: list[float]) -> list[Row]:
    """Rows of these durations, in the order in which they are drawn."""
    ids = sorted((f"u{i}" for i in range(len(durations))), key=lambda name: (id_hash(name), name))
    return [
        Row(id=name, audio_filepath=f"{name}.wav", duration=seconds)
        for name, seconds in zip(ids, durations, strict=True)
    ]


def recorded(folder: Path, durations: list[float]) -> Path:
    """Their manifest, with noise for recordings, each louder than the one before; those of 0 s are missing."""
    rows, rng = rows_of(durations), np.random.default_rng(0)
    for number, row in enumerate(rows):
        if row.duration:
            noise = rng.uniform(-0.01, 0.01, round(16_000 * row.duration)) * (number + 1)
            soundfile.write(folder / row.audio_filepath, noise, 16_000)
    manifest.write(folder / "m.jsonl", rows)
    return folder / "m.jsonl"


def heard(path: Path, place: Path, seconds: float, monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds of activations that `init` calibrates on."""
    frames: list[int] = []
    fits = calibrate.codecs.Fits

    def counting(features: list[np.ndarray]) -> object:
        frames.extend(len(part) for part in features)
        return fits(features)

    monkeypatch.setattr(calibrate.codecs, "Fits", counting)
    request = Request(MEL.upstream, MEL.profile, layout=MEL.layout, calibration_seconds=seconds)
    job = Job(path, place, request)
    job.init()
    return sum(frames) / job.upstream.geometry.frame_rate


@pytest.mark.parametrize("seed", range(20))
def test_short_utterances_are_drawn_until_one_does_not_fit(seed: int) -> None:
    """As ever: another draw would be another calibration, and another cache."""
    rng = np.random.default_rng(seed)
    rows = rows_of(rng.uniform(0.3, 300, 200).tolist())
    expected: list[Row] = []
    for row in rows:
        if sum(r.duration for r in expected) + row.duration > 600:
            break
        expected.append(row)
    if sum(r.duration for r in expected) >= 300:
        assert choose(in_order(list(reversed(rows))), 600) == (expected, 1)


def test_one_long_recording_is_thinned_out() -> None:
    rows = rows_of([1900, 5, 5])
    assert choose(rows, 600) == (rows[:1], 4)
    assert choose(rows[:1], 600) == (rows[:1], 4)
    assert choose(rows_of([5, 5]), 600) == (rows_of([5, 5]), 1)


def test_a_long_recording_fills_what_short_ones_leave() -> None:
    rows = rows_of([0.5, 700, 700])
    assert choose(rows, 600) == (rows[:2], 2)
    rows = rows_of([250, 700, 700])
    assert choose(rows, 600) == (rows[:1], 1)  # enough


def test_missing_and_short_ones_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recorded(tmp_path, [0, 0.5, 70, 70, 0])
    assert heard(path, tmp_path / "c", 40, monkeypatch) >= 20


def test_what_cannot_be_used_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recorded(tmp_path, [8, 8, 8, 8, 8, 8])
    rows = manifest.read(path)
    for row in rows[:2]:
        (tmp_path / row.audio_filepath).write_bytes(b"RIFF")
    assert heard(path, tmp_path / "c", 20, monkeypatch) == pytest.approx(16, abs=0.1)
    for row in rows[2:]:
        (tmp_path / row.audio_filepath).unlink()
    with pytest.raises(JobError, match=r"none of the 6 utterances .* \(the first: .*\): check .*m\.jsonl"):
        Job(path, tmp_path / "d", MEL).init()


def test_some_that_cannot_be_used_are_not_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recorded(tmp_path, [4, 4, 4, 4, 4, 4, 4, 4])
    (tmp_path / manifest.read(path)[1].audio_filepath).unlink()
    assert heard(path, tmp_path / "c", 20, monkeypatch) == pytest.approx(16, abs=0.1)


def test_no_recording_could_be_read(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="none of the 2 utterances .* a duration of 0"):
        Job(recorded(tmp_path, [0, 0]), tmp_path / "c", MEL).init()


def test_a_model_that_gives_no_numbers_is_not_the_manifest_s(tmp_path: Path) -> None:
    job = Job(make_speech(tmp_path, 6), tmp_path / "c", MEL)
    real = job.upstream._features
    job.upstream._features = lambda inputs: broken(real(inputs))  # type: ignore[method-assign]

    def broken(output: torch.Tensor) -> torch.Tensor:
        output[..., 3] = torch.nan
        return output

    with pytest.raises(JobError) as caught:
        job.init()
    assert "activations are not finite from tap 0 on" in str(caught.value)
    assert "weights" in str(caught.value) and "--dtype" in str(caught.value)
    assert "manifest.jsonl" not in str(caught.value)


def test_rounded_durations_are_said_before_the_work(tmp_path: Path) -> None:
    """Two decimals are off by up to 5 ms: extraction would leave out what is off by more than one."""
    path = recorded(tmp_path, [1.0046, 2.0037, 1.5, 1.2549])
    rows = manifest.read(path)
    manifest.write(path, [row.model_copy(update={"duration": round(row.duration, 2)}) for row in rows])
    with pytest.raises(ManifestError, match=r"3 of the 4 recordings .* not as long .* --measure -o FIXED.jsonl"):
        Job(path, tmp_path / "cache", MEL).init()
    assert not (tmp_path / "cache" / "zarr.json").exists()
    manifest.write(path, [measured(row, path) for row in manifest.read(path)])
    done = Job(path, tmp_path / "cache", MEL).extract()
    assert done is not None and not done.quarantined


def test_parts_that_end_late_are_no_wrong_durations_of_recordings(tmp_path: Path) -> None:
    """Measuring a manifest leaves parts as they are, and so would mend nothing."""
    path = recorded(tmp_path, [1.0, 2.0])
    whole = manifest.read(path)
    late = [Row(**row.model_dump() | {"id": f"{row.id}+", "offset": 0.5}) for row in whole]
    manifest.write(path, [*late, whole[0]])
    Job(path, tmp_path / "cache", MEL).init()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (90.0, r"says 1440000 samples \(90.000 s\), the recording has 16000 \(1.000 s\)"),
        (0.5, r"says 8000 samples \(0.500 s\), the recording has 16000 \(1.000 s\)"),
    ],
)
def test_both_lengths_are_said_as_they_are(tmp_path: Path, told: float, said: str) -> None:
    """Not those of the window of 60 s that was read."""
    path = recorded(tmp_path, [1.0])
    manifest.write(path, [row.model_copy(update={"duration": told}) for row in manifest.read(path)])
    with pytest.raises(ManifestError, match=said):
        Job(path, tmp_path / "cache", MEL).init()


def test_a_recording_that_goes_on_has_at_least_what_was_read_of_it(tmp_path: Path) -> None:
    path = recorded(tmp_path, [5.0])
    manifest.write(path, [row.model_copy(update={"duration": 2.0}) for row in manifest.read(path)])
    with pytest.raises(ManifestError, match=r"says 32000 samples .*, the recording has at least 48000 \(3.000 s\)"):
        Job(path, tmp_path / "cache", MEL).init()
