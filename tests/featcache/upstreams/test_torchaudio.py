"""Upstreams of torchaudio on small models of its own factories, against the library's own forward."""

from __future__ import annotations

import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchaudio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from featcache.errors import UpstreamError
from featcache.upstreams import Upstream, UpstreamConfig, load
from featcache.upstreams.torchaudio_ import FACTORIES, bundles
from tests.featcache.upstreams.checks import (
    BOUND,
    LENGTHS,
    alone,
    deviation,
    gradient_deviation,
    in_batches,
    live,
    padded,
    partition,
    speechlike,
    stir,
    waves,
)

SMALL = {
    "encoder_embed_dim": 32,
    "encoder_num_layers": 3,
    "encoder_num_heads": 4,
    "encoder_ff_interm_features": 48,
    "encoder_pos_conv_kernel": 16,
    "encoder_pos_conv_groups": 4,
}
NEVER, ALWAYS, OFF_CPU = "never", "always", "off the CPU"
# bundle: (closing norm, padded batches)
CASES = {
    "WAV2VEC2_BASE": (False, OFF_CPU),
    "WAV2VEC2_ASR_BASE_960H": (False, OFF_CPU),
    "HUBERT_BASE": (False, OFF_CPU),
    "HUBERT_ASR_LARGE": (True, ALWAYS),
    "WAV2VEC2_XLSR53": (True, ALWAYS),
    "WAVLM_BASE_PLUS": (False, NEVER),
    "WAVLM_LARGE": (True, NEVER),
}

Weights = Callable[[str], Path]


def parameters(name: str) -> dict[str, Any]:
    """A bundle's own parameters, but small."""
    real = bundles()[name]._params
    convolutions = [(16, kernel, stride) for _, kernel, stride in real["extractor_conv_layer_config"]]
    return {**real, **SMALL, "extractor_conv_layer_config": convolutions}


def reference(name: str) -> Any:
    torch.manual_seed(1)
    bundle = bundles()[name]
    return stir(FACTORIES[bundle._model_type](**parameters(name)))


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Weights:
    """Makes a bundle small, and a checkpoint of it."""

    def make(name: str) -> Path:
        small = dataclasses.replace(bundles()[name], _params=parameters(name))
        model = reference(name)
        monkeypatch.setattr(torchaudio.pipelines, name, small)
        save_file(dict(model.state_dict()), tmp_path / f"{name}.safetensors")
        return tmp_path / f"{name}.safetensors"

    return make


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, weights: Weights) -> tuple[str, Upstream]:
    path = weights(request.param)
    return request.param, load(UpstreamConfig(id=f"torchaudio:{request.param}", weights=str(path)))


def library(name: str, wave: np.ndarray) -> np.ndarray:
    """Every tap by the library: `extract_features` is taps 1 and up, raw; tap 0 it leaves out."""
    model, bundle = reference(name), bundles()[name]
    model.aux = None
    wave_bs = torch.from_numpy(wave)[None]
    if bundle._normalize_waveform:
        wave_bs = torch.nn.functional.layer_norm(wave_bs, wave_bs.shape)
    with torch.inference_mode():
        taps = model.extract_features(wave_bs)[0]
        entering, _ = model.encoder._preprocess(model.feature_extractor(wave_bs, None)[0], None)
        taps = [model.encoder.transformer._preprocess(entering), *taps]
        if CASES[name][0]:
            taps.append(model(wave_bs)[0])
    return torch.stack([tap[0] for tap in taps], 1).numpy()


def test_every_tap_is_the_librarys(case: tuple[str, Upstream]) -> None:
    name, upstream = case
    assert upstream.taps == ("0", "1", "2", "3", *(("final",) if CASES[name][0] else ()))
    inputs = waves((16000, 5001, 400, 8003, 1200))
    expected = [library(name, wave) for wave in inputs]
    assert deviation(upstream.forward(inputs), expected).max() < BOUND
    assert deviation(in_batches(upstream, inputs, [range(len(inputs))]), expected).max() < BOUND
    assert deviation(live(upstream, inputs), expected).max() < BOUND
    assert [len(row) for row in expected] == [upstream.frames(len(wave)) for wave in inputs]


def test_a_row_is_what_it_is_alone(case: tuple[str, Upstream]) -> None:
    name, upstream = case
    inputs = waves()
    expected = alone(upstream, inputs)
    assert upstream.can_pad == (CASES[name][1] == ALWAYS)
    for row, other in zip(upstream.forward(inputs), expected, strict=True):
        np.testing.assert_array_equal(row, other)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(order=st.permutations(range(len(LENGTHS))), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
    def over_all_batchings(order: list[int], sizes: list[int]) -> None:
        assert deviation(in_batches(upstream, inputs, partition(order, sizes)), expected).max() < BOUND

    upstream.can_pad = CASES[name][1] != NEVER  # as on a GPU
    over_all_batchings()


@pytest.mark.parametrize("name", ["WAV2VEC2_BASE", "HUBERT_BASE"])
def test_group_norm_is_of_a_rows_own_frames(name: str, weights: Weights) -> None:
    upstream = load(UpstreamConfig(id=f"torchaudio:{name}", weights=str(weights(name))))
    # very unequal; unequal in the first convolution's frames, and not in the model's
    for lengths in ((1600, 48000, 400, 12345), (8000, 8005, 8006)):
        inputs = waves(lengths)
        assert deviation(padded(upstream, inputs), alone(upstream, inputs)).max() < BOUND
    assert gradient_deviation(upstream, waves((1600, 16000, 5000))) < 1e-3


@pytest.mark.parametrize("name", CASES)
def test_group_norm_is_padded_off_the_cpu_alone(name: str, weights: Weights) -> None:
    """What decides the values on a CPU is what it was before group norm could be padded."""
    config, pads = UpstreamConfig(id=f"torchaudio:{name}", weights=str(weights(name))), CASES[name][1]
    here, elsewhere = load(config), load(config, "meta")
    assert here.can_pad == (pads == ALWAYS) and elsewhere.can_pad == (pads != NEVER)
    assert "group_norm" not in here.identity
    added = {"group_norm": "each row over its own frames"} if pads == OFF_CPU else {}
    expected = {**here.identity, **added, "device": "meta", "rows": "batched"}
    expected.pop("products", None)  # said of a CPU alone
    assert elsewhere.identity == expected


def test_frames_are_exact(case: tuple[str, Upstream]) -> None:
    _, upstream = case
    for samples in (0, 399, 400, 401, 719, 720, 721, 4321):
        (features,) = upstream.forward([speechlike(samples)])
        assert features.shape == (upstream.frames(samples), len(upstream.taps), 32)


def test_the_same_weights_are_the_same_upstream(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """From safetensors, from a torch file, or by the bundle's own loader: one identity, one result."""
    name, id = "HUBERT_ASR_LARGE", "torchaudio:HUBERT_ASR_LARGE"
    path = weights(name)
    local = load(UpstreamConfig(id=id, weights=str(path)))
    state = reference(name).state_dict()
    torch.save({f"model.{key}": value for key, value in state.items()}, path.with_suffix(".pt"))
    pickled = load(UpstreamConfig(id=id, weights=str(path.with_suffix(".pt"))))

    def fetched(url: str, **options: Any) -> dict[str, torch.Tensor]:
        assert options["weights_only"] is True
        extra = torch.zeros(3, 32)  # fairseq's unused symbols, which the loader removes
        aux = {"aux.weight": torch.cat([state["aux.weight"][:1], extra, state["aux.weight"][1:]])}
        aux["aux.bias"] = torch.cat([state["aux.bias"][:1], extra[:, 0], state["aux.bias"][1:]])
        return {**state, **aux}

    monkeypatch.setattr("torchaudio.pipelines._wav2vec2.utils.load_state_dict_from_url", fetched)
    loaded = load(UpstreamConfig(id=id))
    assert local.identity == pickled.identity == loaded.identity
    assert str(path) not in json.dumps(local.identity)
    wave = [speechlike(5000)]
    for other in (pickled, loaded):
        np.testing.assert_array_equal(other.forward(wave)[0], local.forward(wave)[0])


def test_every_bundle_is_named() -> None:
    assert len(bundles()) == 30
    assert {bundle._model_type for bundle in bundles().values()} == set(FACTORIES)


class TestRefused:
    def refused(self, id: str, match: str, **options: Any) -> None:
        with pytest.raises(UpstreamError, match=match) as caught:
            load(UpstreamConfig(id=id, **options))
        assert "\n" not in str(caught.value)

    def test_code_in_a_checkpoint(self, weights: Weights, tmp_path: Path) -> None:
        weights("WAV2VEC2_BASE")
        ran = tmp_path / "ran"

        class Evil:
            def __reduce__(self) -> tuple[Any, ...]:
                return open, (str(ran), "w")

        torch.save({"x": Evil()}, tmp_path / "evil.pt")
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil()))
        for name in ("evil.pt", "plain.pt"):
            self.refused("torchaudio:WAV2VEC2_BASE", "holds no plain tensors", weights=str(tmp_path / name))
        assert not ran.exists()

    def test_other_checkpoints(self, weights: Weights, tmp_path: Path) -> None:
        path = weights("WAV2VEC2_BASE")
        other = weights("WAVLM_LARGE")
        id = "torchaudio:WAV2VEC2_BASE"
        self.refused(id, "is not of this bundle", weights=str(other))
        self.refused(id, "there is no checkpoint", weights=str(tmp_path / "absent.pt"))
        path.write_bytes(path.read_bytes()[:1000])
        self.refused(id, "holds no plain tensors", weights=str(path))
        torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "nested.pt")
        self.refused(id, "is not a state dict", weights=str(tmp_path / "nested.pt"))
        torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pt")
        self.refused(id, "is not a state dict", weights=str(tmp_path / "numbers.pt"))
        for text in ("hello", "some text\n", "(1", "0", "q\x00", "{}"):
            (tmp_path / "text.pt").write_text(text)
            self.refused(id, "holds no plain tensors", weights=str(tmp_path / "text.pt"))

    def test_no_network(self, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
        weights("WAV2VEC2_BASE")

        def fetched(url: str, **_: Any) -> None:
            raise URLError("no\nroute")

        monkeypatch.setattr("torchaudio.pipelines._wav2vec2.utils.load_state_dict_from_url", fetched)
        self.refused(
            "torchaudio:WAV2VEC2_BASE",
            "download https://download.pytorch.org/torchaudio/models/wav2vec2_fairseq_base_ls960.pth elsewhere",
        )

    def test_names_and_options(self) -> None:
        self.refused("torchaudio:WAV2VEC3", "no such bundle; there are: HUBERT_ASR_LARGE")
        self.refused("torchaudio:WAV2VEC2_BASE", "revision has no meaning", revision="x")
        self.refused("torchaudio:WAV2VEC2_BASE", "window has no meaning", window="pad")
