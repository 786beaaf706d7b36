"""What of a model each method trains, on small models of every family that is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchaudio
import transformers
from torch import Tensor, nn
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from featcache.errors import UsageError
from featcache.upstreams.base import Network
from fusion.modules import count_parameters
from pipelines.reproduce.methods import METHODS, Bottleneck, unreached
from tests.featcache.upstreams.test_hf import CASES, SMALL

BLOCKS, CHANNELS = 3, 32


def whisper() -> tuple[Network, Any]:
    settings = WhisperConfig(
        d_model=CHANNELS, encoder_layers=BLOCKS, encoder_attention_heads=4, encoder_ffn_dim=64, num_mel_bins=8,
        max_source_positions=20,
    )  # fmt: skip
    model = WhisperEncoder(settings)
    return Network(model, model.layers, model.layer_norm), lambda: model(torch.ones(1, 8, 40)).last_hidden_state


def hugging_face(name: str) -> tuple[Network, Any]:
    kind, options, *_ = CASES[name]
    model = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**{**SMALL, **options}))
    shape = (1, 10, 160) if kind == "Wav2Vec2Bert" else (1, 3200)
    inputs = torch.sin(torch.arange(1.0, 1 + shape[1] * shape[-1] if len(shape) > 2 else 1 + shape[1])).view(shape)
    closing = getattr(model.encoder, "layer_norm", None)
    return Network(model, model.encoder.layers, closing), lambda: model(inputs).last_hidden_state


def torchaudio_(name: str) -> tuple[Network, Any]:
    from tests.featcache.upstreams.test_torchaudio import reference

    model = reference(name)
    inputs = torch.sin(torch.arange(3200.0)).view(1, -1)
    assert isinstance(model, torchaudio.models.Wav2Vec2Model)
    return Network(model, model.encoder.transformer.layers, None), lambda: model(inputs)[0]


HUGGING_FACE = ["wav2vec2-group", "hubert-layer", "wavlm-layer", "data2vec", "w2v-bert"]
FAMILIES = ["whisper", *HUGGING_FACE, "WAV2VEC2_BASE", "WAVLM_LARGE"]


def build(family: str) -> tuple[Network, Any]:
    """A frozen small model, and a function that runs it."""
    torch.manual_seed(3)
    if family == "whisper":
        network, run = whisper()
    else:
        network, run = hugging_face(family) if family in CASES else torchaudio_(family)
    network.module.eval().requires_grad_(False)
    return network, run


def trained(network: Network) -> set[str]:
    return {name for name, parameter in network.module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method, settings", [("adapters", {"width": 4}), ("lora", {"rank": 2})])
def test_what_is_added_starts_as_nothing_and_learns(family: str, method: str, settings: dict[str, int]) -> None:
    network, run = build(family)
    before: Tensor = run()
    old = dict(network.module.named_parameters())
    apply = METHODS[method]
    if (family, method) == ("WAVLM_LARGE", "lora"):  # its projections are one matrix
        with pytest.raises(UsageError, match="query and value are not found"):
            apply(network, **settings)
        return
    apply(network, **settings)
    torch.testing.assert_close(run(), before)
    new = {name for name, p in network.module.named_parameters() if all(p is not other for other in old.values())}
    assert trained(network) == new
    if family.startswith("wavlm") and method == "lora":  # it reads the projections' weights, and never calls them
        assert not run().requires_grad
        assert set(unreached(network.module)) == new
        return
    run().square().sum().backward()
    assert unreached(network.module) == []
    # one step of what it added changes what the model computes
    with torch.no_grad():
        for parameter in network.module.parameters():
            if parameter.grad is not None:
                parameter -= 10 * parameter.grad.sign()
    assert not torch.allclose(run(), before)


def test_sizes() -> None:
    d, hidden = CHANNELS, 64
    attention = 4 * d * d + 3 * d  # the key has no bias
    block = attention + 2 * d * hidden + hidden + d + 4 * d
    frontend = 8 * d * 3 + d + d * d * 3 + d + 20 * d
    expected = {
        "full": BLOCKS * block + frontend + 2 * d,
        "bitfit": BLOCKS * (3 * d + hidden + d + 2 * d) + 2 * d + d,
        "top_layer": block + 2 * d,
        "lora": BLOCKS * 2 * 2 * d * 2,
        "adapters": BLOCKS * 2 * (2 * d * 4 + 4 + d),
    }
    settings: dict[str, dict[str, int]] = {"lora": {"rank": 2}, "adapters": {"width": 4}}
    for method, count in expected.items():
        network, _ = whisper()
        network.module.requires_grad_(False)
        METHODS[method](network, **settings.get(method, {}))
        assert count_parameters(network.module) == count, method


def test_bitfit_and_the_top_layer_are_what_they_say() -> None:
    network, _ = build("whisper")
    METHODS["bitfit"](network)
    names = {name for name, _ in network.module.named_parameters()}
    assert trained(network) == {name for name in names if name.endswith(".bias")}
    network, _ = build("whisper")
    METHODS["top_layer"](network)
    assert trained(network) == {name for name in names if name.startswith(("layers.2.", "layer_norm."))}


def test_adapters_see_what_leaves_a_sublayer_before_the_residual() -> None:
    network, run = build("whisper")
    seen: dict[str, Tensor] = {}
    block: Any = network.blocks[0]
    METHODS["adapters"](network, width=4)
    for name in ("adapter_attention", "adapter_feed_forward"):
        getattr(block, name).register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
    block.register_forward_pre_hook(lambda _, args: seen.update({"in": args[0]}))
    block.register_forward_hook(lambda _, args, output: seen.update({"out": output}))
    run()
    total = seen["in"] + seen["adapter_attention"] + seen["adapter_feed_forward"]
    torch.testing.assert_close(total, seen["out"])


def test_an_unknown_model_is_refused() -> None:
    blocks = nn.ModuleList([nn.Sequential(nn.LayerNorm(4))])
    for method, settings in (("adapters", {"width": 2}), ("lora", {"rank": 2})):
        with pytest.raises(UsageError, match="not found|has none of"):
            METHODS[method](Network(blocks, blocks, None), **settings)


def test_bottleneck() -> None:
    x = torch.randn(2, 3, 8)
    adapter = Bottleneck(8, 2)
    assert torch.equal(adapter(x), x)
    assert count_parameters(adapter) == 2 * 8 * 2 + 2 + 8
