"""Whisper's encoder on a small checkpoint made here: the frontend, the masks, the two window policies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featcache.errors import UpstreamError
from featcache.upstreams import Upstream, UpstreamConfig, load
from featcache.upstreams.padding import pad
from featcache.upstreams.whisper import LogMel
from tests.featcache.upstreams.checks import (
    BOUND,
    alone,
    deviation,
    in_batches,
    live,
    partition,
    speechlike,
    stir,
    waves,
)

SECONDS = 2  # of the small model's position table
WINDOW = SECONDS * 16_000
TAPS = ("0", "1", "2", "3", "final")
LENGTHS = (9000, 160, 31_999, 5120, 5000, 12_345)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=3,
        encoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=48,
        vocab_size=100,
        num_mel_bins=20,
        max_source_positions=SECONDS * 50,
        max_target_positions=10,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
    )
    path = tmp_path_factory.mktemp("whisper")
    model: Any = stir(transformers.WhisperForConditionalGeneration(config))
    model.save_pretrained(path)
    return path


@pytest.fixture(params=["crop", "pad"])
def upstream(request: pytest.FixtureRequest, folder: Path) -> Upstream:
    return load(UpstreamConfig(id=f"hf:{folder}", window=request.param))


def library(folder: Path, wave: np.ndarray, mel_frames: int | None = None) -> np.ndarray:
    """Every tap by the library: its `hidden_states` end with the normed output, so that the raw output of
    the last block is taken from a run whose closing norm does nothing. `mel_frames` cuts its spectrogram,
    and shortens the position table and the length that it insists on."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=SECONDS)
    mel = extractor(wave, sampling_rate=16_000, return_tensors="pt")["input_features"]
    encoder = transformers.WhisperModel.from_pretrained(folder).eval().encoder
    if mel_frames is not None:
        mel = mel[..., :mel_frames]
        frames = mel_frames // 2
        encoder.config.max_source_positions = frames
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(encoder.embed_positions.weight[:frames])
    with torch.inference_mode():
        out = encoder(mel, output_hidden_states=True)
        encoder.layer_norm = torch.nn.Identity()
        raw = encoder(mel).last_hidden_state
    return torch.stack([*(tap[0] for tap in out.hidden_states[:-1]), raw[0], out.last_hidden_state[0]], 1).numpy()


def test_padded_window_is_the_librarys_at_every_tap(folder: Path) -> None:
    upstream = load(UpstreamConfig(id=f"hf:{folder}", window="pad"))
    assert upstream.taps == TAPS and upstream.window_samples == WINDOW
    inputs = waves((WINDOW, *LENGTHS))
    expected = [library(folder, wave)[: upstream.frames(len(wave))] for wave in inputs]
    assert deviation(upstream.forward(inputs), expected).max() < BOUND
    assert deviation(in_batches(upstream, inputs, [range(len(inputs))]), expected).max() < BOUND


def test_cropped_window_is_the_librarys_on_the_cropped_spectrogram(folder: Path) -> None:
    upstream = load(UpstreamConfig(id=f"hf:{folder}"))
    assert upstream.identity["window"] == "crop"
    for samples in (320 * 4, 320 * 31 + 5, WINDOW - 320, WINDOW):
        wave = speechlike(samples)
        expected = library(folder, wave, mel_frames=samples // 320 * 2)
        assert deviation(upstream.forward([wave]), [expected]).max() < BOUND


def test_the_policies_agree_on_a_full_window_only(folder: Path) -> None:
    crop, padded = (load(UpstreamConfig(id=f"hf:{folder}", window=policy)) for policy in ("crop", "pad"))
    full, short = [speechlike(WINDOW)], [speechlike(9000)]
    assert deviation(crop.forward(full), padded.forward(full)).max() < BOUND
    assert deviation(crop.forward(short), padded.forward(short)).max() > 100 * BOUND
    assert crop.identity != padded.identity


def test_a_row_is_what_it_is_alone(upstream: Upstream) -> None:
    inputs = waves(LENGTHS)
    expected = alone(upstream, inputs)
    assert upstream.can_pad
    for row, other in zip(upstream.forward(inputs), expected, strict=True):
        np.testing.assert_array_equal(row, other)

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(order=st.permutations(range(len(LENGTHS))), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
    def over_all_batchings(order: list[int], sizes: list[int]) -> None:
        assert deviation(in_batches(upstream, inputs, partition(order, sizes)), expected).max() < BOUND

    over_all_batchings()


def test_the_path_that_is_open_to_gradients(upstream: Upstream) -> None:
    inputs = waves(LENGTHS)
    assert deviation(live(upstream, inputs), alone(upstream, inputs)).max() < BOUND


def test_frames_are_exact(upstream: Upstream) -> None:
    for samples in (0, 159, 160, 319, 320, 321, 479, 480, 639, 640, WINDOW - 1, WINDOW):
        (features,) = upstream.forward([speechlike(samples)])
        assert features.shape == (upstream.frames(samples), len(TAPS), 32)
        assert np.isfinite(features).all()
    with pytest.raises(UpstreamError, match="cut into windows first"):
        upstream.forward([speechlike(WINDOW + 1)])


def test_chosen_taps_are_those_of_all(folder: Path) -> None:
    everything, some = (load(UpstreamConfig(id=f"hf:{folder}", taps=taps)) for taps in ("all", ("0", "2")))
    wave = [speechlike(9000)]
    np.testing.assert_array_equal(some.forward(wave)[0], everything.forward(wave)[0][:, [0, 2]])


@pytest.mark.parametrize("bins", [80, 128])
def test_frontend_is_whispers(bins: int) -> None:
    """At 30 s exactly; for shorter audio, of the frames that lie within, but for the floor."""
    log_mel = LogMel(bins, 480_000, torch.device("cpu"))
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    for samples in (480_000, 479_801, 477_600):
        wave = speechlike(samples)
        expected = extractor(wave, sampling_rate=16_000)["input_features"][0]
        padded = log_mel(torch.from_numpy(np.pad(wave, (0, 480_000 - samples)))[None], [3000])[0]
        np.testing.assert_allclose(padded, expected, atol=1e-6)
        cropped = log_mel(torch.from_numpy(wave)[None], [samples // 160])[0]
        np.testing.assert_allclose(cropped, expected[:, : samples // 160], atol=1e-6)


def test_floor_of_the_log_mel_is_of_the_utterance_alone() -> None:
    """A loud neighbour in the batch does not lift the floor of a quiet row."""
    log_mel = LogMel(80, 480_000, torch.device("cpu"))
    quiet, loud = torch.from_numpy(speechlike(8000) * 1e-4), torch.from_numpy(speechlike(9000) * 30)
    quiet[4000:] = 0
    both = log_mel(pad([quiet, loud], torch.device("cpu")).rows, [50, 56])
    np.testing.assert_allclose(both[0, :, :50], log_mel(quiet[None], [50])[0], atol=1e-6)
    assert (both[0, :, 50:] == 0).all()
    assert both[0, :, :50].min() < both[1].min() - 1


def test_a_spectrogram_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "preprocessor_config.json").write_text('{"hop_length": 320}')
    with pytest.raises(UpstreamError, match="only Whisper's own spectrogram"):
        load(UpstreamConfig(id=f"hf:{tmp_path}"))


def test_a_checkpoint_without_an_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    state = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in state.items() if "encoder.layers.1." not in k}, tmp_path / "model.safetensors")
    with pytest.raises(UpstreamError, match="does not load as WhisperEncoder") as caught:
        load(UpstreamConfig(id=f"hf:{tmp_path}"))
    assert "\n" not in str(caught.value)


def test_nan_stays_in_its_row(upstream: Upstream) -> None:
    inputs = waves((9000, 9000, 5000))
    inputs[1][2500] = np.nan
    for run in (upstream.forward, lambda rows: in_batches(upstream, rows, [[0, 1, 2]])):
        good, bad, other = run(inputs)
        assert np.isfinite(good).all() and np.isfinite(other).all()
        assert np.isnan(bad).any()
