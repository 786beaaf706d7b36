"""Upstreams of transformers on small checkpoints made here, against the library's own forward."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from featcache import products
from featcache.errors import UpstreamError
from featcache.upstreams import Upstream, UpstreamConfig, convolutions, load, masks
from featcache.upstreams.padding import frame_mask, pad
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

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
WHISPER: dict[str, Any] = {
    **{f"{part}_{size}": 2 for part in ("encoder", "decoder") for size in ("layers", "attention_heads")},
    **{"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 100, "vocab_size": 90},
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
}
GROUP = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LAYER = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
NEVER, ALWAYS, OFF_CPU = "never", "always", "off the CPU"
# name: (config class, its settings, waveform normalised, closing norm, padded batches)
CASES: dict[str, tuple[str, dict[str, Any], bool, bool, str]] = {
    "wav2vec2-group": ("Wav2Vec2", GROUP, True, False, OFF_CPU),
    "wav2vec2-layer": ("Wav2Vec2", LAYER, True, True, ALWAYS),
    "wav2vec2-layer-post": ("Wav2Vec2", {**LAYER, "do_stable_layer_norm": False}, False, False, ALWAYS),
    "hubert-group": ("Hubert", GROUP, False, False, OFF_CPU),
    "hubert-layer": ("Hubert", LAYER, True, True, ALWAYS),
    "hubert-batch-norm": ("Hubert", {**LAYER, "conv_pos_batch_norm": True}, True, True, NEVER),
    "wavlm-group": ("WavLM", GROUP, False, False, OFF_CPU),
    "wavlm-layer": ("WavLM", LAYER, True, True, ALWAYS),
    "data2vec": ("Data2VecAudio", {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}, True, False, NEVER),
    "w2v-bert": ("Wav2Vec2Bert", {"feature_projection_input_dim": 160}, True, False, ALWAYS),
}


def extractor(name: str) -> Any:
    kind, _, normalise, _, _ = CASES[name]
    if kind == "Wav2Vec2Bert":
        return transformers.SeamlessM4TFeatureExtractor()
    return transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            kind, options, *_ = CASES[name]
            config = getattr(transformers, f"{kind}Config")(**{**SMALL, **options})
            torch.manual_seed(1)
            model = stir(getattr(transformers, f"{kind}Model")(config))
            made[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(made[name])
            extractor(name).save_pretrained(made[name])
        return made[name]

    return make


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> tuple[str, Upstream]:
    return request.param, load(UpstreamConfig(id=f"hf:{checkpoint(request.param)}"))


def library(name: str, folder: Path, wave: np.ndarray) -> np.ndarray:
    """Every tap by the library alone. Its `hidden_states` are what enters each block and, last, what leaves
    the last one, raw even where a closing norm follows; that norm's output is `last_hidden_state`."""
    kind, _, _, closing, _ = CASES[name]
    model = getattr(transformers, f"{kind}Model").from_pretrained(folder).eval()
    inputs = extractor(name)(wave, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        out = model(**inputs, output_hidden_states=True)
    taps = [*out.hidden_states, *([out.last_hidden_state] if closing else [])]
    features = torch.stack([tap[0] for tap in taps], 1).numpy()
    if kind == "Wav2Vec2Bert":  # a pair that the library had to pad is masked, and is no frame here
        features = features[: int(inputs["attention_mask"].sum())]
    return features


def test_every_tap_is_the_librarys(case: tuple[str, Upstream], checkpoint: Callable[[str], Path]) -> None:
    name, upstream = case
    assert upstream.taps == ("0", "1", "2", "3", *(("final",) if CASES[name][3] else ()))
    inputs = waves((16000, 5001, 720, 8003, 1200))
    expected = [library(name, checkpoint(name), wave) for wave in inputs]
    assert deviation(upstream.forward(inputs), expected).max() < BOUND
    # padded, or in groups of equal length: the path of a GPU
    assert deviation(in_batches(upstream, inputs, [range(len(inputs))]), expected).max() < BOUND
    assert [len(row) for row in expected] == [upstream.frames(len(wave)) for wave in inputs]
    assert deviation(live(upstream, inputs), expected).max() < BOUND


def test_a_row_is_what_it_is_alone(case: tuple[str, Upstream]) -> None:
    name, upstream = case
    inputs = waves()
    expected = alone(upstream, inputs)
    assert upstream.can_pad == (CASES[name][4] == ALWAYS)
    for row, other in zip(upstream.forward(inputs), expected, strict=True):
        np.testing.assert_array_equal(row, other)

    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(order=st.permutations(range(len(LENGTHS))), sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4))
    def over_all_batchings(order: list[int], sizes: list[int]) -> None:
        features = in_batches(upstream, inputs, partition(order, sizes))
        assert deviation(features, expected).max() < BOUND

    upstream.can_pad = CASES[name][4] != NEVER  # as on a GPU
    over_all_batchings()


ALIKE = [name for name in CASES if name not in ("data2vec", "w2v-bert")]
GROUPED = [name for name, (*_, pads) in CASES.items() if pads == OFF_CPU]


@pytest.mark.parametrize("name", GROUPED)
def test_group_norm_is_of_a_rows_own_frames(name: str, checkpoint: Callable[[str], Path]) -> None:
    upstream = load(UpstreamConfig(id=f"hf:{checkpoint(name)}"))
    # very unequal, as good as equal (one frame of the first convolution more, and none), and equal
    for lengths in ((1600, 48000, 400, 12345), (8000, 8005, 8006), (8000, 8000)):
        inputs = waves(lengths)
        assert deviation(padded(upstream, inputs), alone(upstream, inputs)).max() < BOUND


@pytest.mark.parametrize("name", GROUPED)
def test_a_padded_batch_under_group_norm_has_the_gradients_of_its_rows(
    name: str, checkpoint: Callable[[str], Path]
) -> None:
    upstream = load(UpstreamConfig(id=f"hf:{checkpoint(name)}"))
    assert gradient_deviation(upstream, waves((1600, 16000, 5000))) < 1e-3


PADDED = [name for name, (*_, pads) in CASES.items() if pads != NEVER]


@pytest.mark.parametrize("name", PADDED)
def test_masks_are_made_without_looking_at_them(
    name: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream = load(UpstreamConfig(id=f"hf:{checkpoint(name)}"))
    model = upstream.network().module
    batches = [waves(lengths) for lengths in ((1600, 48000, 720, 12345), (8000, 8000))]
    before, was = [padded(upstream, inputs) for inputs in batches], model.config._attn_implementation

    reached = []

    def mask(*shape: Any, **options: Any) -> torch.Tensor | None:
        made = attention_mask(*shape, **options)
        reached.append(made is not None)
        return made

    def looks(*_: Any, **__: Any) -> None:
        raise AssertionError("the library looks at a mask")

    attention_mask = masks.attention_mask
    monkeypatch.setattr(masks, "attention_mask", mask)
    masks.without_waiting(model)
    # either waits for a device
    monkeypatch.setattr("transformers.masking_utils._ignore_bidirectional_mask_sdpa", looks)
    monkeypatch.setattr(type(model), "_get_feature_vector_attention_mask", looks)
    after = [padded(upstream, inputs) for inputs in batches]
    for features, expected in zip(after, before, strict=True):
        for row, other in zip(features, expected, strict=True):
            np.testing.assert_array_equal(row, other)
    if name.startswith("wavlm"):  # has no such masks
        assert (model.config._attn_implementation, reached) == (was, [])
    else:
        assert (was, model.config._attn_implementation) == ("sdpa", masks.ATTENTION)
        assert reached == [True, False]


@pytest.mark.parametrize("name", ALIKE)
def test_convolutions_as_products_give_the_librarys_features(name: str, checkpoint: Callable[[str], Path]) -> None:
    upstream = load(UpstreamConfig(id=f"hf:{checkpoint(name)}"))
    inputs = waves((16000, 720, 5001, 5001))
    expected = alone(upstream, inputs)
    model: Any = upstream.network().module
    first, position = model.feature_extractor.conv_layers[0].conv, model.encoder.pos_conv_embed.conv
    assert convolutions.as_products(first, position)
    assert deviation(alone(upstream, inputs), expected).max() < BOUND
    together = padded if CASES[name][4] != NEVER else alone
    assert deviation(together(upstream, inputs), expected).max() < BOUND
    assert all(conv.forward.prepared is not None for conv in (first, position))
    for row, other in zip(live(upstream, inputs), live(load(upstream.config), inputs), strict=True):
        np.testing.assert_array_equal(row, other)  # gradients are on: no product


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", PADDED)
def test_a_forward_on_a_gpu_waits_for_nothing(name: str, checkpoint: Callable[[str], Path]) -> None:
    upstream, inputs = load(UpstreamConfig(id=f"hf:{checkpoint(name)}"), "cuda"), waves((1600, 16000, 720))
    upstream.forward_tensors(inputs)  # libraries are loaded and weights prepared
    torch.cuda.set_sync_debug_mode("error")
    try:
        features = upstream.forward_tensors(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(row).all() for row in features)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", PADDED)
def test_a_padded_batch_on_a_gpu(name: str, checkpoint: Callable[[str], Path]) -> None:
    upstream = load(UpstreamConfig(id=f"hf:{checkpoint(name)}"), "cuda")
    assert upstream.can_pad
    inputs = waves((1600, 48000, 720, 12345))
    assert deviation(upstream.forward(inputs), alone(upstream, inputs)).max() < BOUND


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_batch_goes_to_the_gpu_without_waiting_for_it() -> None:
    device, rows = torch.device("cuda"), [torch.from_numpy(wave) for wave in waves((5000, 16000, 400))]
    torch.cuda.set_sync_debug_mode("error")
    try:
        batch, mask = pad(rows, device).to(device), frame_mask([5000, 16000, 400], 16000, device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    assert torch.equal(batch.cpu(), expected) and torch.equal(mask.sum(1).cpu(), torch.tensor([5000, 16000, 400]))


def test_group_norm_is_padded_off_the_cpu_alone(checkpoint: Callable[[str], Path]) -> None:
    """What decides the values on a CPU is what it was before group norm could be padded."""
    for name, (*_, pads) in CASES.items():
        config = UpstreamConfig(id=f"hf:{checkpoint(name)}")
        here, elsewhere = load(config), load(config, "meta")
        assert here.can_pad == (pads == ALWAYS) and elsewhere.can_pad == (pads != NEVER)
        assert not {"group_norm", "convolutions"} & here.identity.keys()
        added = {"group_norm": "each row over its own frames"} if pads == OFF_CPU else {}
        if name in ALIKE:
            added["convolutions"] = "as matrix products"
        expected = {**here.identity, **added, "device": "meta", "rows": "batched"}
        expected.pop("products", None)  # said of a CPU alone
        assert elsewhere.identity == expected


@pytest.mark.skipif(not products.used_on(torch.device("cpu")), reason="this processor's products are torch's own")
def test_who_computes_products_is_part_of_the_identity(checkpoint: Callable[[str], Path]) -> None:
    """Only where oneDNN does."""
    id = f"hf:{checkpoint(next(iter(CASES)))}"
    assert load(UpstreamConfig(id=id)).identity["products"] == products.RULE
    with products.left_to_torch():
        assert "products" not in load(UpstreamConfig(id=id)).identity
    for config in (UpstreamConfig(id=id, dtype="bfloat16"), UpstreamConfig(id="mel:80")):
        assert "products" not in load(config).identity


@pytest.mark.parametrize("name", [name for name, (*_, pads) in CASES.items() if pads == NEVER])
def test_models_that_are_not_padded_could_not_be(name: str, checkpoint: Callable[[str], Path]) -> None:
    upstream = load(UpstreamConfig(id=f"hf:{checkpoint(name)}"))
    inputs = waves((16000, 5000))
    assert deviation(padded(upstream, inputs), alone(upstream, inputs)).max() > 10 * BOUND


def test_frames_are_exact(case: tuple[str, Upstream]) -> None:
    _, upstream = case
    shortest = upstream.min_samples
    for samples in (0, 1, shortest - 1, shortest, shortest + 1, 1039, 1040, 1041, 1360, 4321):
        (features,) = upstream.forward([speechlike(samples)])
        assert features.shape == (upstream.frames(samples), len(upstream.taps), 32)
        assert np.isfinite(features).all()


def test_chosen_taps_are_those_of_all(checkpoint: Callable[[str], Path]) -> None:
    id, wave = f"hf:{checkpoint('wav2vec2-layer')}", [speechlike(5000)]
    everything = load(UpstreamConfig(id=id)).forward(wave)[0]
    some = load(UpstreamConfig(id=id, taps=("2", "0")))
    assert some.taps == ("0", "2")
    np.testing.assert_array_equal(some.forward(wave)[0], everything[:, [0, 2]])
    assert len(some.model.encoder.layers) == 2  # type: ignore[attr-defined]
    last = load(UpstreamConfig(id=id, taps=("final",)))
    np.testing.assert_array_equal(last.forward(wave)[0], everything[:, [4]])
    for wrong in (("4",), ("0", "0"), ()):
        with pytest.raises(UpstreamError, match="choose from: 0 1 2 3 final"):
            load(UpstreamConfig(id=id, taps=wrong))


def test_nan_stays_in_its_row(case: tuple[str, Upstream]) -> None:
    _, upstream = case
    inputs = waves((5000, 5000))
    inputs[1][2500] = np.nan
    for features in (upstream.forward(inputs), in_batches(upstream, inputs, [[0, 1]])):
        assert np.isfinite(features[0]).all()
        assert np.isnan(features[1]).any()


def test_autocast_is_applied_and_recorded(checkpoint: Callable[[str], Path]) -> None:
    id, wave = f"hf:{checkpoint('wav2vec2-layer')}", [speechlike(8000)]
    exact, half = (load(UpstreamConfig(id=id, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    difference = deviation(half.forward(wave), exact.forward(wave))
    assert 1e-4 < difference.max() < 0.5
    assert (exact.identity["autocast"], half.identity["autocast"]) == ("float32", "bfloat16")


def test_identity_is_of_the_values_alone(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("wav2vec2-layer")
    identity = load(UpstreamConfig(id=f"hf:{folder}")).identity
    assert json.loads(json.dumps(identity)) == identity
    assert str(folder) not in json.dumps(identity)
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert load(UpstreamConfig(id=f"hf:{copy}")).identity == identity
    (copy / "preprocessor_config.json").write_text('{"do_normalize": false}')
    assert load(UpstreamConfig(id=f"hf:{copy}")).identity != identity
    model = stir(transformers.Wav2Vec2Model.from_pretrained(folder), seed=5)
    model.save_pretrained(copy)  # type: ignore[operator]
    assert load(UpstreamConfig(id=f"hf:{copy}")).identity["weights_sha256"] != identity["weights_sha256"]


def test_fine_tuned_and_sharded_checkpoints(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = checkpoint("wav2vec2-layer")
    expected = load(UpstreamConfig(id=f"hf:{folder}")).forward([speechlike(5000)])[0]
    tuned = transformers.Wav2Vec2ForCTC.from_pretrained(folder)
    tuned.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    extractor("wav2vec2-layer").save_pretrained(tmp_path)
    upstream = load(UpstreamConfig(id=f"hf:{tmp_path}"))
    np.testing.assert_array_equal(upstream.forward([speechlike(5000)])[0], expected)
    next(tmp_path.glob("model-00002*")).unlink()
    with pytest.raises(UpstreamError, match="there is no model-00002"):
        load(UpstreamConfig(id=f"hf:{tmp_path}"))


@pytest.mark.parametrize("kind", ["Wav2Vec2", "Whisper"])
def test_a_file_beside_several_is_what_is_loaded_and_hashed(kind: str, tmp_path: Path) -> None:
    """As transformers does. What an earlier save left there is another model's."""
    options = SMALL if kind == "Wav2Vec2" else WHISPER
    folders = {name: tmp_path / name for name in ("one", "several", "both")}
    for seed, (name, folder) in enumerate(folders.items()):
        model = stir(getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**options)), seed)
        model.save_pretrained(folder, max_shard_size="20KB" if name == "several" else "1GB")
        (folder / "preprocessor_config.json").write_text("{}")
    assert (folders["several"] / "model.safetensors.index.json").exists()
    for source in (folders["several"], folders["one"]):
        for file in source.glob("model*"):
            (folders["both"] / file.name).write_bytes(file.read_bytes())
    one, both = (load(UpstreamConfig(id=f"hf:{folders[name]}")) for name in ("one", "both"))
    assert both.identity == one.identity
    np.testing.assert_array_equal(both.forward([speechlike(5000)])[0], one.forward([speechlike(5000)])[0])


class TestRefused:
    """Every mistake is one line that says what to do."""

    @pytest.fixture
    def folder(self, checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
        for file in checkpoint("wav2vec2-group").iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        return tmp_path

    def refused(self, id: str, match: str, **options: Any) -> None:
        with pytest.raises(UpstreamError, match=match) as caught:
            load(UpstreamConfig(id=id, **options))
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2

    def edit(self, path: Path, **changes: Any) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def test_code_of_its_own(self, folder: Path) -> None:
        ran = folder / "ran"
        (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
        self.edit(folder / "config.json", auto_map={"AutoModel": "evil.Evil"}, model_type="evil")
        self.refused(f"hf:{folder}", "code of its own, which is never done")
        self.edit(folder / "config.json", model_type="wav2vec2")
        self.refused(f"hf:{folder}", "code of its own")
        assert not ran.exists()

    def test_pickled_weights(self, folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
        self.refused(f"hf:{folder}", "only safetensors are read")

    def test_pickled_weights_are_converted_by_the_command_that_the_error_names(
        self, folder: Path, tmp_path: Path
    ) -> None:
        whole = load(UpstreamConfig(id=f"hf:{folder}")).network().module.state_dict()
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(UpstreamError) as caught:
            load(UpstreamConfig(id=f"hf:{folder}"))
        command = shlex.split(str(caught.value).partition("hf:FOLDER: ")[2].replace("FOLDER", str(tmp_path / "new")))
        subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True)
        found = load(UpstreamConfig(id=f"hf:{tmp_path / 'new'}")).network().module.state_dict()
        assert whole.keys() == found.keys() and all(torch.equal(found[name], whole[name]) for name in whole)

    @pytest.mark.parametrize("index", [{"weight_map": []}, {"weight_map": {}}, {"weight_map": {"x": 1}}, {}])
    def test_an_index_that_names_no_files(self, folder: Path, index: dict[str, Any]) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        self.refused(f"hf:{folder}", "does not say in its weight_map which files")

    def test_a_model_without_layers(self, folder: Path) -> None:
        self.edit(folder / "config.json", num_hidden_layers=0)
        self.refused(f"hf:{folder}", "no place for 48 tensors of the checkpoint, first encoder.layers.0")
        state = load_file(folder / "model.safetensors")
        state = {name: value for name, value in state.items() if not name.startswith("encoder.layers.")}
        save_file(state, folder / "model.safetensors")
        self.refused(f"hf:{folder}", "this model has no layers")

    def test_unknown_architecture(self, folder: Path) -> None:
        self.edit(folder / "config.json", model_type="bert")
        self.refused(f"hf:{folder}", "architecture bert is not known")

    def test_missing_tensors_are_not_made_up(self, folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        del state["encoder.layers.1.attention.k_proj.weight"]
        save_file(state, folder / "model.safetensors")
        self.refused(f"hf:{folder}", "lacks 1 tensors of Wav2Vec2Model, first encoder.layers.1.attention.k_proj")

    @pytest.mark.parametrize("prefix", ["", "wav2vec2."])
    def test_tensors_without_a_place(self, folder: Path, prefix: str) -> None:
        """A config.json of another model, by which some of the weights would be left out."""
        state = load_file(folder / "model.safetensors")
        for extra in ("feature_extractor.conv_layers.0.conv.bias", "feature_extractor.conv_layers.1.layer_norm.weight"):
            state[extra] = torch.ones(16)
        state["lm_head.weight"] = torch.ones(2, 32)  # above the encoder
        save_file({prefix + name: value for name, value in state.items()}, folder / "model.safetensors")
        self.refused(f"hf:{folder}", f"no place for 2 tensors of the checkpoint, first {prefix}feature_extractor.conv")

    def test_weights_in_another_file(self, folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "other.safetensors")
        self.edit(folder / "config.json", transformers_weights="other.safetensors")
        self.refused(f"hf:{folder}", "names another file of weights")

    def test_an_adapter_beside_the_weights(self, folder: Path) -> None:
        (folder / "adapter_config.json").write_text("{}")
        self.refused(f"hf:{folder}", "an adapter lies in the checkpoint")

    def test_torn_files(self, folder: Path) -> None:
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        self.refused(f"hf:{folder}", "does not load as Wav2Vec2Model")
        (folder / "config.json").write_text("{")
        self.refused(f"hf:{folder}", "config.json is not readable JSON")
        (folder / "config.json").unlink()
        self.refused(f"hf:{folder}", "no config.json")

    def test_unknown_normalisation(self, folder: Path) -> None:
        (folder / "preprocessor_config.json").unlink()
        self.refused(f"hf:{folder}", "no preprocessor_config.json says whether")

    def test_another_sample_rate(self, folder: Path) -> None:
        self.edit(folder / "preprocessor_config.json", sampling_rate=8000)
        self.refused(f"hf:{folder}", "wants 8000 Hz")

    def test_options_without_meaning(self, folder: Path) -> None:
        self.refused(f"hf:{folder}", "window has no meaning", window="pad")
        self.refused(f"hf:{folder}", "weights has no meaning", weights="x")
        self.refused(f"hf:{folder}", "local folder has no revision", revision="0" * 40)

    def test_names(self) -> None:
        self.refused("hf:~nouser/x", "there is no such folder")
        self.refused("hf:/nowhere/at/all", "there is no such folder")
        self.refused("hf:org/name", "pin the revision to a commit")
        self.refused("hf:org/name@main", "pin the revision to a commit")
        self.refused("hf:org/name@" + "0" * 40, "give one of the two", revision="1" * 40)
        self.refused("nonsense", "is no upstream")
        self.refused("nonsense:x", "is no upstream")
        self.refused("hf:", "is no upstream")

    def test_a_hub_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        self.refused("hf:org/name@" + "0" * 40, "hub cannot be reached")

    def test_pickled_weights_of_a_hub(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "model.safetensors").unlink()
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
        source = rf"from_pretrained\('org/name', revision='{'0' * 40}'\)"
        self.refused("hf:org/name", source, revision="0" * 40)
        self.refused("hf:org/name@" + "0" * 40, source)

    def test_a_hub_that_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import httpx2 as httpx
        from huggingface_hub.errors import RevisionNotFoundError

        def answer(*_: Any, local_files_only: bool = False, **__: Any) -> str:
            if local_files_only:
                raise FileNotFoundError
            response = httpx.Response(404, request=httpx.Request("GET", "https://hub"))
            raise RevisionNotFoundError("no\nsuch", response=response)

        monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
        self.refused("hf:org/name@" + "0" * 40, "hub answered 404")


def test_a_commit_in_the_local_cache_needs_no_network(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint("hubert-layer")

    def snapshot(name: str, *, revision: str, local_files_only: bool = False, **_: Any) -> str:
        assert (name, revision, local_files_only) == ("org/name", "a" * 40, True)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    upstream = load(UpstreamConfig(id="hf:org/name@" + "a" * 40))
    assert upstream.identity == load(UpstreamConfig(id=f"hf:{folder}")).identity


def test_what_another_program_left_out_of_the_local_cache_is_fetched(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`from_pretrained` of a model fetches no preprocessor_config.json."""
    whole = checkpoint("hubert-layer")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((whole / name).read_bytes())

    def snapshot(name: str, *, local_files_only: bool = False, **_: Any) -> str:
        if not local_files_only:
            (tmp_path / "preprocessor_config.json").write_bytes((whole / "preprocessor_config.json").read_bytes())
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    upstream = load(UpstreamConfig(id="hf:org/name@" + "a" * 40))
    assert upstream.identity == load(UpstreamConfig(id=f"hf:{whole}")).identity
