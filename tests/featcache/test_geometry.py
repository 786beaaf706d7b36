"""Frame counts against the modules that make the frames."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from featcache.geometry import Geometry

WAV2VEC2 = ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2))
LAYERS = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), min_size=1, max_size=4).map(tuple)


def convolved(samples: int, layers: tuple[tuple[int, int], ...]) -> int:
    x = torch.zeros(1, 1, samples)
    for kernel, stride in layers:
        if x.shape[-1] < kernel:
            return 0
        x = torch.nn.functional.conv1d(x, torch.zeros(1, 1, kernel), stride=stride)
    return x.shape[-1]


@given(layers=LAYERS, samples=st.integers(0, 300))
def test_conv_counts_as_convolutions_do(layers: tuple[tuple[int, int], ...], samples: int) -> None:
    assert Geometry.conv(layers).frames(samples) == convolved(samples, layers)


@given(layers=LAYERS)
def test_min_samples_is_the_shortest_input_with_a_frame(layers: tuple[tuple[int, int], ...]) -> None:
    geometry = Geometry.conv(layers)
    assert geometry.frames(geometry.min_samples) == 1
    assert geometry.frames(geometry.min_samples - 1) == 0
    assert geometry.window_samples is not None and geometry.window_samples % geometry.hop == 0


@settings(deadline=None)
@given(samples=st.integers(0, 5000))
def test_wav2vec2_counts(samples: int) -> None:
    geometry = Geometry.conv(WAV2VEC2)
    assert (geometry.hop, geometry.min_samples, geometry.frame_rate) == (320, 400, 50.0)
    assert geometry.frames(samples) == convolved(samples, WAV2VEC2)


@settings(deadline=None)
@given(samples=st.integers(160, 20000))
def test_whisper_counts_as_its_frontend_and_convolutions_do(samples: int) -> None:
    mel = torch.zeros(1, 1, samples // 160)
    x = torch.nn.functional.conv1d(mel, torch.zeros(1, 1, 3), padding=1)
    x = torch.nn.functional.conv1d(x, torch.zeros(1, 1, 3), padding=1, stride=2)
    assert Geometry.whisper().frames(samples) == x.shape[-1]


def test_whisper_window_is_its_position_table() -> None:
    geometry = Geometry.whisper()
    assert geometry.frames(geometry.window_samples or 0) == 1500
    assert geometry.frames(159) == 0


@settings(deadline=None, max_examples=30)
@given(samples=st.integers(1, 4000))
def test_mel_counts_as_a_centred_spectrogram_less_its_last_frame(samples: int) -> None:
    spectrum = torchaudio.transforms.Spectrogram(n_fft=512, win_length=400, hop_length=160, pad_mode="constant")
    assert Geometry.mel(160).frames(samples) == spectrum(torch.zeros(samples)).shape[-1] - 1


@pytest.mark.parametrize("geometry", [Geometry.conv(WAV2VEC2), Geometry.whisper(), Geometry.mel(160)])
def test_json_gives_the_same_geometry(geometry: Geometry) -> None:
    assert Geometry.model_validate_json(geometry.model_dump_json()) == geometry


@pytest.mark.parametrize(
    "wrong",
    [
        {"window_samples": 959_999},
        {"min_samples": 399},
        {"frame_rate": 100.0},
        {"layers": ()},
        {"rule": "whisper"},
        {"hop": 0},
        {"unknown": 1},
    ],
)
def test_inconsistent_geometry_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Geometry.model_validate({**Geometry.conv(WAV2VEC2).model_dump(), **wrong})


def test_import_pulls_in_no_model_library() -> None:
    code = "import sys, featcache.geometry; print({'torch', 'transformers', 'torchaudio'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
