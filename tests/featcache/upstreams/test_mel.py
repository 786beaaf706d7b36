"""The log-mel upstream against torchaudio's own transform."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchaudio

from featcache.errors import UpstreamError
from featcache.upstreams import UpstreamConfig, load
from tests.featcache.upstreams.checks import BOUND, alone, deviation, in_batches, speechlike, waves


def test_values_are_torchaudios_one_utterance_at_a_time() -> None:
    upstream = load(UpstreamConfig(id="mel:80"))
    assert (upstream.taps, upstream.channels, upstream.frame_rate, upstream.can_pad) == (("0",), 80, 100.0, True)
    inputs = waves()
    transform = torchaudio.transforms.MelSpectrogram(16_000, 512, 400, 160, n_mels=80, pad_mode="constant")
    expected = [transform(torch.from_numpy(wave)).clamp(min=1e-8).log().T[:-1, None].numpy() for wave in inputs]
    assert deviation(upstream.forward(inputs), expected).max() < BOUND
    assert deviation(in_batches(upstream, inputs, [[0, 1, 2, 3], [4, 5]]), alone(upstream, inputs)).max() < BOUND
    assert json.loads(json.dumps(upstream.identity)) == upstream.identity


def test_frames_are_exact() -> None:
    upstream = load(UpstreamConfig(id="mel:40"))
    for samples in (0, 159, 160, 161, 319, 320, 16_000):
        (features,) = upstream.forward([speechlike(samples)])
        assert features.shape == (samples // 160, 1, 40)


def test_silence_is_finite() -> None:
    (features,) = load(UpstreamConfig(id="mel:80")).forward([np.zeros(1600, np.float32)])
    assert np.isfinite(features).all()


@pytest.mark.parametrize(
    ("id", "options", "match"),
    [
        ("mel:x", {}, "write mel:BINS"),
        ("mel:0", {}, "write mel:BINS"),
        ("mel:1000", {}, "write mel:BINS"),
        ("mel:200", {}, "holds no frequency"),
        ("mel:80", {"dtype": "bfloat16"}, "float32"),
        ("mel:80", {"weights": "x"}, "weights has no meaning"),
        ("mel:80", {"taps": ("1",)}, "no tap 1; choose from: 0"),
    ],
)
def test_refused(id: str, options: dict[str, object], match: str) -> None:
    with pytest.raises(UpstreamError, match=match) as caught:
        load(UpstreamConfig.model_validate({"id": id, **options}))
    assert "\n" not in str(caught.value)


def test_longer_than_the_window_is_refused() -> None:
    upstream = load(UpstreamConfig(id="mel:80"))
    assert upstream.window_samples == 960_000
    with pytest.raises(UpstreamError, match="cut into windows first"):
        upstream.forward([np.zeros(960_001, np.float32)])


def test_there_is_nothing_to_train() -> None:
    with pytest.raises(UpstreamError, match="has no weights to train"):
        load(UpstreamConfig(id="mel:80")).network()


def test_forwards_may_overlap() -> None:
    """Begun one after the other, ended in any order, they give what one at a time gives."""
    upstream = load(UpstreamConfig(id="mel:80"))
    batches = [[speechlike(16_000 + 160 * i), speechlike(8_000)] for i in range(4)]
    expected = [upstream.forward(batch) for batch in batches]
    threads = torch.get_num_threads()
    with upstream.overlapping() as begin:
        ends = [begin(upstream.prepare(batch)) for batch in batches]
        found = {number: ends[number]() for number in (2, 0, 1, 3)}
    assert torch.get_num_threads() == threads
    for number, batch in enumerate(expected):
        for a, b in zip(found[number], batch, strict=True):
            np.testing.assert_array_equal(a, b)
