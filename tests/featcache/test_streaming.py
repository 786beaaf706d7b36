"""Recordings read in blocks give the samples and the windows of the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from featcache import _sndfile, audio
from featcache.errors import AudioError
from featcache.geometry import Geometry
from featcache.windows import stream_windows, windows


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
def test_blocks_are_the_resampled_whole(tmp_path: Path, rate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sndfile, "BLOCK", 5000)
    pcm = np.random.default_rng(rate).uniform(-0.5, 0.5, 3 * rate + 17).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", pcm, rate, "FLOAT")
    blocks = list(audio.stream(tmp_path / "a.wav"))
    assert len(blocks) > 5 and max(map(len, blocks)) <= 5000 * max(1, -(-16000 // rate)) + 5000
    at_once = soxr.resample(pcm, rate, 16000, quality="HQ") if rate != 16000 else pcm
    np.testing.assert_array_equal(np.concatenate(blocks), at_once)
    np.testing.assert_array_equal(audio.load(tmp_path / "a.wav"), at_once)


def test_what_is_wrong_at_the_end_is_said_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sndfile, "BLOCK", 5000)
    pcm = np.zeros(20_000, np.float32)
    pcm[-1] = np.nan
    soundfile.write(tmp_path / "a.wav", pcm, 16000, "FLOAT")
    blocks = audio.stream(tmp_path / "a.wav")
    assert [len(next(blocks)) for _ in range(3)] == [5000] * 3
    with pytest.raises(AudioError, match="NaN"):
        next(blocks)


@pytest.mark.parametrize("geometry", [Geometry.whisper(48_000), Geometry.mel(160, None), Geometry.conv(((400, 320),))])
@pytest.mark.parametrize("samples", [0, 100, 48_000, 48_001, 64_000, 64_001, 200_000])
@pytest.mark.parametrize("block", [777, 30_000, 1_000_000])
def test_windows_of_a_stream_are_those_of_the_whole(geometry: Geometry, samples: int, block: int) -> None:
    pcm = np.arange(samples, dtype=np.float32)
    found = list(stream_windows((pcm[i : i + block] for i in range(0, samples, block)), geometry))
    assert [window for window, _ in found] == windows(samples, geometry)
    for window, piece in found:
        np.testing.assert_array_equal(piece, pcm[window.start : window.stop])
