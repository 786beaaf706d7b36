"""Fusers, decoders and masking: right against plain loops, and indifferent to padding."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from featcache.errors import UsageError
from fusion.head import Head
from fusion.modules import (
    DECODERS,
    FUSERS,
    blocks,
    build_decoder,
    build_fuser,
    count_parameters,
    mask_features,
    parameter_groups,
    parameters_of,
)
from fusion.modules.dropout import Dropout
from fusion.modules.hff import HFF
from fusion.modules.masking import draw_masks
from fusion.modules.projection import ACTIVATIONS, NORMS, TapProjection, fast_moments


def features_of(batch: int = 3, frames: int = 9, taps: int = 5, channels: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(channels, generator=generator) * 4
    return torch.randn(batch, frames, taps, channels, generator=generator) * spread + spread


def shake(module: nn.Module) -> None:
    """Scales, shifts and gates away from their first values, so that a forgotten one shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)


def norm_of(x: torch.Tensor, kind: str, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
    if kind == "none":
        return x
    y = F.layer_norm(x, x.shape[-1:]) if kind == "layer" else x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    return y * weight + bias


def affine(module: nn.Module, i: int) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    if not hasattr(module, "norm_weight"):
        return None, None
    return module.norm_weight[i].flatten(), module.norm_bias[i].flatten()


def tree_by_loops(hff: HFF, features: torch.Tensor) -> torch.Tensor:
    """The same function as `HFF.forward` in eval mode: one tap and one node after the other."""
    leaves = hff.leaves
    nodes = [
        norm_of(features[:, :, i], leaves.norm, *affine(leaves, i)) @ leaves.weight[i] + leaves.bias[i]
        for i in range(features.shape[2])
    ]
    for level in hff.levels:
        above = []
        for stack in level:
            for i in range(stack.count):
                group, nodes = nodes[: stack.size], nodes[stack.size :]
                x = torch.cat(group, -1)
                x = norm_of(x, stack.hidden.norm, *affine(stack.hidden, i))
                x = stack.act(x @ stack.hidden.weight[i] + stack.hidden.bias[i])
                if stack.residual:
                    weights = stack.gate[i].softmax(0)
                    mean = sum(weight * node for weight, node in zip(weights, group, strict=True))
                    above.append(mean + stack.branch_scale * (x @ stack.out.weight[i] + stack.out.bias[i]))
                else:
                    above.append(norm_of(x, stack.norm, *affine(stack, i)))
        assert not nodes
        nodes = above
    assert len(nodes) == 1
    return hff.norm(nodes[0])


TREES = [
    {"taps": taps, "group": group, "norm": norm, "residual": residual, "activation": activation}
    for (taps, group), norm, residual, activation in [
        *product([(8, 2), (7, 2), (5, 3)], NORMS, (True, False), ("gelu",)),
        *product([(1, 2), (2, 4), (13, 4)], ("layer",), (True, False), ("silu",)),
        ((4, 2), "layer", True, "tanh"),
        ((4, 2), "layer", True, "relu"),
    ]
]
TREES += [{"taps": 8, "group": 2, "norm": "layer", "residual": True, "tap_norm": norm} for norm in ("layer", "rms")]


@pytest.mark.parametrize("params", TREES, ids=lambda p: "-".join(map(str, p.values())))
def test_the_batched_tree_is_the_tree_by_loops(params: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    # in float64, as a norm of a node that is near zero makes the rounding of float32 large
    features = features_of(taps=params["taps"]).double()
    hff = build_fuser("hff", channels=12, width=6, dropout=0.5, **params).double().eval()
    shake(hff)
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 10)  # 27 rows: blocks of 10, 10 and 7
    fused, looped = hff(features), tree_by_loops(hff, features)
    assert fused.shape == (3, 9, 6)
    torch.testing.assert_close(fused, looped, rtol=1e-9, atol=1e-10)
    probe = torch.randn(fused.shape, dtype=torch.float64)
    parameters = dict(hff.named_parameters())
    fast = torch.autograd.grad((fused * probe).sum(), parameters.values(), retain_graph=True)
    slow = torch.autograd.grad((looped * probe).sum(), parameters.values())
    for name, a, b in zip(parameters, fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("taps", [8, 7])
def test_the_tree_starts_as_nearly_the_last_tap(taps: int) -> None:
    features = features_of(taps=taps)
    hff = build_fuser("hff", taps=taps, channels=12, width=6, norm="none").eval()
    last = build_fuser("last", taps=taps, channels=12, width=6).eval()
    last.projection.load_state_dict({name: value[-1:] for name, value in hff.leaves.state_dict().items()})
    near, far = hff(features), build_fuser("hff", taps=taps, channels=12, width=6, norm="none", gate_start=0.0)
    far.load_state_dict({name: value for name, value in hff.state_dict().items() if "gate" not in name}, strict=False)
    error = (near - last(features)).square().mean()
    assert error < 0.02 * last(features).square().mean()
    assert error < 0.1 * (far.eval()(features) - last(features)).square().mean()


def test_the_tree_has_the_parameters_of_the_sketches() -> None:
    assert count_parameters(build_fuser("hff", 8, 512, tap_norm="layer")) == 883_214
    assert count_parameters(build_fuser("hff", 8, 512, residual=False)) == 757_376
    assert count_parameters(build_fuser("last", 8, 512)) == 65_664


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_the_norm_after_the_product_is_the_norm_before_it(norm: str) -> None:
    """The CPU's short cut, against the path that features with a gradient (and GPUs) take."""
    projection = TapProjection(5, 12, 6, norm)
    shake(projection)
    rows = features_of().flatten(0, 1)
    rows[3] = 0.0  # padding
    with_gradient = rows.clone().requires_grad_()
    fast, plain = projection(rows), projection(with_gradient)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    plain.sum().backward()
    assert with_gradient.grad is not None and with_gradient.grad.abs().sum() > 0


def test_the_short_cut_stands_back_where_its_statistics_would_be_wrong() -> None:
    rows = torch.randn(6, 2, 64)
    assert fast_moments(rows, "layer") is not None
    assert fast_moments(rows + 1e4, "layer") is None  # E[x^2] - mean^2 would cancel
    assert fast_moments(rows * 1e30, "layer") is None  # squares overflow
    projection = TapProjection(2, 64, 4)
    shifted = rows + 1e4
    expected = projection(shifted.double().float().requires_grad_())
    torch.testing.assert_close(projection(shifted), expected)
    moderate = rows + 20  # mean^2 is 400 variances, still allowed
    torch.testing.assert_close(
        projection(moderate), projection(moderate.clone().requires_grad_()), rtol=1e-2, atol=2e-3
    )


def test_the_features_are_not_copied() -> None:
    """No operation of the tree makes a tensor of the size of one tap's features or more."""
    hff = build_fuser("hff", 8, 512, width=8)
    head = Head(hff, build_decoder("linear", 8, 5), 8, 512)
    features, _ = head.prepare(torch.randn(2, 40, 8, 512), torch.tensor([40, 40]))
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        hff(features)
    largest = max(event.self_cpu_memory_usage for event in profile.function_events)
    weights = hff.leaves.weight.numel() * 4
    assert weights < 2 * 40 * 512 * 4 <= features.numel() * 4 / 8
    assert largest < 2 * 40 * 512 * 4


def test_rivals_are_what_they_say() -> None:
    features = features_of()
    for name, tap in (("last", 4), ("tap", 2)):
        fuser = build_fuser(name, 5, 12, width=6, **({"tap": 2} if name == "tap" else {}))
        weight, bias = fuser.projection.weight[0], fuser.projection.bias[0]
        torch.testing.assert_close(fuser(features), features[:, :, tap] @ weight + bias)
    for norm in NORMS:
        total = build_fuser("weighted_sum", 5, 12, width=6, norm=norm)
        shake(total)
        ones, zeros = torch.ones(12), torch.zeros(12)
        taps = norm_of(features, norm, ones, zeros)
        mixed = sum(w * taps[:, :, i] for i, w in enumerate(total.mixture.softmax(0)))
        torch.testing.assert_close(total(features), total.projection(mixed), rtol=1e-4, atol=1e-5)
        concat = build_fuser("concat", 5, 12, width=6, norm=norm)
        shake(concat)
        flat = torch.cat([norm_of(features[:, :, i], norm, *affine(concat.projection, i)) for i in range(5)], -1)
        expected = flat @ concat.projection.weight.flatten(0, 1) + concat.projection.bias.sum(0)
        torch.testing.assert_close(concat(features), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("taps", [1, 2, 5, 8])
@pytest.mark.parametrize("norm", NORMS)
def test_the_ladder_is_the_ladder_by_loops(taps: int, norm: str) -> None:
    features = features_of(taps=taps)
    ladder = build_fuser("ladder", taps, 12, width=6, hidden=4, norm=norm, tap_norm=norm).eval()
    shake(ladder)
    leaves = [
        norm_of(features[:, :, i], norm, *affine(ladder.projection, i)) @ ladder.projection.weight[i]
        + ladder.projection.bias[i]
        for i in range(taps)
    ]
    state = leaves[0]
    for i, tap in enumerate(leaves[1:]):
        gate = ladder.mixture[i].sigmoid()
        mixed = gate * tap + (1 - gate) * state
        hidden = F.gelu(norm_of(mixed, norm, *affine(ladder.up, i)) @ ladder.up.weight[i] + ladder.up.bias[i])
        state = mixed + hidden @ ladder.down.weight[i] + ladder.down.bias[i]
    torch.testing.assert_close(ladder(features), ladder.norm(state), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("taps", "kernel", "stride"), [(8, 3, 2), (5, 3, 2), (13, 5, 3), (2, 2, 2), (9, 3, 3)])
def test_the_convolution_over_taps_is_torchs(taps: int, kernel: int, stride: int) -> None:
    features = features_of(taps=taps)
    fuser = build_fuser("hconv", taps, 12, width=6, kernel=kernel, stride=stride, tap_norm="layer").eval()
    shake(fuser)
    leaves = norm_of(features, "layer", *affine(fuser.projection, 0)) @ fuser.projection.weight[0]
    x = (leaves + fuser.projection.bias[0]).flatten(0, 1).transpose(1, 2)  # (rows, width, taps)
    for i, level in enumerate(fuser.levels):
        x = F.gelu(x) if i else x
        missing = (-(-x.shape[-1] // stride) - 1) * stride + kernel - x.shape[-1]
        weight = level.weight.unflatten(1, (kernel, 6)).transpose(1, 2)  # (outputs, inputs, kernel)
        x = F.conv1d(F.pad(x, (missing // 2, missing - missing // 2)), weight, level.bias, stride)
    assert x.shape[-1] == 1
    torch.testing.assert_close(fuser(features).flatten(0, 1), fuser.norm(x[..., 0]), rtol=1e-4, atol=1e-5)


def test_the_ladder_starts_as_nearly_the_last_tap() -> None:
    features = features_of()
    ladder = build_fuser("ladder", 5, 12, width=6, norm="none").eval()
    last = features[:, :, -1] @ ladder.projection.weight[-1] + ladder.projection.bias[-1]
    assert (ladder(features) - last).square().mean() < 0.01 * last.square().mean()


def test_the_rivals_parameters_are_those_of_the_formulas() -> None:
    taps, channels, width, hidden = 8, 512, 128, 96
    leaves = taps * (channels * width + width)
    rungs = (taps - 1) * (2 * width + width * hidden + hidden + hidden * width + width + 1)
    assert count_parameters(build_fuser("ladder", taps, channels, hidden=hidden)) == leaves + rungs + 2 * width
    levels = 3 * (3 * width * width + width)
    assert count_parameters(build_fuser("hconv", taps, channels)) == leaves // taps + levels + 2 * width
    one = build_fuser("hconv", 1, 12, width=6)
    assert len(one.levels) == 0 and one(features_of(taps=1)).shape == (3, 9, 6)


@pytest.mark.parametrize("name", sorted(FUSERS))
@pytest.mark.parametrize("norm", NORMS)
def test_padding_does_not_change_a_fuser(name: str, norm: str) -> None:
    features = features_of(batch=2, frames=30)
    fuser = build_fuser(name, 5, 12, width=6, norm=norm).eval()
    shake(fuser)
    alone = fuser(features[:1, :17], torch.tensor([17]))
    padded = features.clone()
    padded[0, 17:] = 1e3
    batched = fuser(padded, torch.tensor([17, 30]))
    torch.testing.assert_close(batched[:1, :17], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fuser(padded[:1, :17]), alone)


DECODER_PARAMS = {
    "linear": {},
    "blstm": {"hidden": 7, "layers": 2},
    "conformer": {"hidden": 8, "layers": 2, "heads": 2, "feedforward": 12, "kernel": 7},
    "attentive": {"hidden": 7, "attention": 3},
}


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("stack", [1, 2, 3])
@pytest.mark.parametrize("name", sorted(DECODERS))
def test_padding_does_not_change_a_decoder(name: str, stack: int, grad: bool) -> None:
    torch.manual_seed(3)
    decoder = build_decoder(name, 6, 5, stack=stack, **DECODER_PARAMS[name]).eval()
    shake(decoder)
    x = torch.randn(4, 31, 6)
    lengths = torch.tensor([16, 31, 0, 1])
    for row, length in enumerate(lengths):
        x[row, length:] = 50.0  # what lies behind the end must not be seen
    with torch.set_grad_enabled(grad):
        logits, out = decoder(x, lengths)
        frames = [-(-int(n) // stack) if decoder.per_frame else min(int(n), 1) for n in lengths]
        assert logits.shape == (4, max(frames), 5)
        assert out.tolist() == frames == decoder.output_lengths(lengths).tolist()
        assert torch.isfinite(logits).all()
        for row in (0, 1, 3):
            n = int(lengths[row])
            alone, length = decoder(x[row : row + 1, :n])
            assert int(length) == alone.shape[1] == decoder.output_lengths(n)
            torch.testing.assert_close(logits[row : row + 1, : int(length)], alone, rtol=1e-4, atol=1e-5)
        wider, _ = decoder(F.pad(x, (0, 0, 0, 20)), lengths)  # padded beyond its longest
        torch.testing.assert_close(wider[0, : int(out[0])], logits[0, : int(out[0])], rtol=1e-4, atol=1e-5)


def test_padding_does_not_change_the_conformer_in_training_either() -> None:
    torch.manual_seed(0)
    decoder = build_decoder("conformer", 6, 5, dropout=0.0, **DECODER_PARAMS["conformer"]).train()
    x = torch.randn(2, 30, 6)
    logits, _ = decoder(x, torch.tensor([10, 30]))
    alone, _ = decoder(x[:1, :10])
    torch.testing.assert_close(logits[:1, :5], alone, rtol=1e-4, atol=1e-5)


def test_pooling_is_mean_and_deviation_under_the_attention() -> None:
    torch.manual_seed(0)
    decoder = build_decoder("attentive", 4, 3, hidden=5, attention=2, dropout=0.0)
    x = torch.randn(1, 9, 4)
    frames = decoder.entry(x[0]).relu()
    alpha = (decoder.attention(frames).tanh() @ decoder.score.weight[0]).softmax(0)
    mean = alpha @ frames
    deviation = (alpha @ (frames - mean).square() + 1e-5).sqrt()
    torch.testing.assert_close(decoder(x)[0][0, 0], decoder.linear(torch.cat([mean, deviation])))
    still = x[:, :1].expand(1, 9, 4).clone().requires_grad_()  # no deviation at all: the gradient stays finite
    decoder(still)[0].sum().backward()
    assert torch.isfinite(still.grad).all()


def test_stacking_keeps_the_order_of_frames() -> None:
    decoder = build_decoder("linear", 3, 6, stack=2, dropout=0.0)
    with torch.no_grad():
        decoder.linear.weight.copy_(torch.eye(6))
        decoder.linear.bias.zero_()
    x = torch.arange(1.0, 16.0).view(1, 5, 3)
    logits, lengths = decoder(x)
    assert lengths.tolist() == [3]
    assert logits[0].tolist() == [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12], [13, 14, 15, 0, 0, 0]]


@pytest.mark.parametrize("name", sorted(FUSERS))
@pytest.mark.parametrize("decoder_name", sorted(DECODERS))
def test_every_parameter_learns(name: str, decoder_name: str) -> None:
    torch.manual_seed(0)
    fuser = build_fuser(name, 5, 12, width=6)
    decoder = build_decoder(decoder_name, fuser.width, 4, **DECODER_PARAMS[decoder_name])
    # What starts at zero (the nodes of the tree) hides what comes before it until the first step.
    optimiser = torch.optim.SGD([*fuser.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(2):
        optimiser.step()
        optimiser.zero_grad()
        logits, _ = decoder(fuser(features_of()), torch.tensor([9, 5, 7]))
        (logits * torch.randn(logits.shape)).sum().backward()
    for module in (fuser, decoder):
        for key, parameter in module.named_parameters():
            assert parameter.grad is not None, key
            # A lone tap's softmax gate is 1 whatever its parameter; conv bias before a norm stays finite.
            assert torch.isfinite(parameter.grad).all(), key
            if not (key.endswith("gate") and parameter.shape[1] == 1):
                assert parameter.grad.abs().sum() > 0, key


def test_decay_is_for_matrices_only() -> None:
    fuser, decoder = build_fuser("hff", 5, 12, width=6), build_decoder("conformer", 6, 4, **DECODER_PARAMS["conformer"])
    model = nn.ModuleList([fuser, decoder])
    decayed, free = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
    assert len(decayed["params"]) + len(free["params"]) == len(list(model.parameters()))
    ids = {id(parameter) for parameter in decayed["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in ids}
    assert "0.leaves.weight" in names and "1.linear.weight" in names
    assert not [n for n in names if "bias" in n or "norm" in n or "gate" in n or "sequential.3" in n]


def test_wrong_requests_say_what_is_right() -> None:
    with pytest.raises(UsageError, match="'nope' is not known; use one of concat, hconv, hff, ladder, last, tap"):
        build_fuser("nope", 5, 12)
    with pytest.raises(UsageError, match="no parameter depth; it has width, group, activation"):
        build_fuser("hff", 5, 12, depth=3)
    for bad, words in (({"group": 1}, "group = 1"), ({"norm": "batch"}, "norm = 'batch'"), ({"dropout": 1.0}, "rate")):
        with pytest.raises(UsageError, match=words):
            build_fuser("hff", 5, 12, **bad)
    with pytest.raises(UsageError, match="activation = 'sin'"):
        build_fuser("hff", 5, 12, activation="sin")
    with pytest.raises(UsageError, match="tap = 5 is not one of the cache's 5 taps; use 0 to 4"):
        build_fuser("tap", 5, 12, tap=5)
    for bad in ({"stride": 1}, {"kernel": 1}):
        with pytest.raises(UsageError, match="use a stride of 2 or more"):
            build_fuser("hconv", 5, 12, **bad)
    with pytest.raises(UsageError, match="stack = 0"):
        build_decoder("linear", 6, 4, stack=0)
    with pytest.raises(UsageError, match="must be odd"):
        build_decoder("conformer", 6, 4, kernel=8)
    assert set(ACTIVATIONS) == {"gelu", "relu", "silu", "tanh"}
    assert parameters_of(FUSERS["hff"])[0] == "width" and parameters_of(DECODERS["blstm"])[0] == "hidden"


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = Dropout(0.3)
    x = torch.ones(1001, 333, requires_grad=True)
    y = layer(x)
    kept = y != 0
    assert abs(float(kept.float().mean()) - 0.7) < 0.005
    assert abs(float(y.detach().mean()) - 1) < 0.005
    y.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, y.detach())
    # No byte of the random words favours a column.
    assert float((kept.float().mean(0) - 0.7).abs().max()) < 0.08
    torch.manual_seed(0)
    assert torch.equal(layer(x), y)
    assert layer.eval()(x) is x


def masks_of(seed: int, lengths: list[int], frames: int, **shares: float) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return draw_masks(torch.tensor(lengths), (frames, 6, 64), generator=generator, **shares)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=5),
    time=st.floats(0, 0.99),
    channels=st.floats(0, 0.99),
    taps=st.floats(0, 0.99),
    span=st.integers(1, 12),
    seed=st.integers(0, 1000),
)
def test_masks_stay_inside_and_leave_something(
    lengths: list[int], time: float, channels: float, taps: float, span: int, seed: int
) -> None:
    shares = {"time": time, "channels": channels, "taps": taps, "time_span": span, "channel_span": span}
    masks = masks_of(seed, lengths, 80, **shares)
    time_mask, channel_mask, tap_mask = masks
    for row, length in enumerate(lengths):
        assert not time_mask[row, length:].any()
        assert not time_mask[row].all() and (length == 0 or not time_mask[row, :length].all())
        assert length >= 2 * span or not time_mask[row].any()
        assert int(time_mask[row].sum()) <= time * length + span
    assert not channel_mask.all(1).any()
    assert not tap_mask.all(1).any()
    assert all(torch.equal(a, b) for a, b in zip(masks, masks_of(seed, lengths, 80, **shares), strict=True))
    features = torch.full((len(lengths), 80, 6, 64), 1.0)
    for row, length in enumerate(lengths):
        features[row, length:] = 2.0
    out = mask_features(
        features, torch.tensor(lengths), generator=torch.Generator().manual_seed(seed), fill=-1.0, **shares
    )
    assert out is features
    for row, length in enumerate(lengths):
        assert (features[row, length:] == 2.0).all()
        expected = time_mask[row, :length, None, None] | channel_mask[row] | tap_mask[row, :, None]
        assert torch.equal(features[row, :length] == -1.0, expected.expand(length, 6, 64))


def test_masks_cover_about_their_share() -> None:
    time_mask, channel_mask, tap_mask = masks_of(0, [200] * 400, 200, time=0.2, channels=0.25, taps=0.3)
    # Spans overlap: 1 - exp(-share) at least, the share at most.
    assert 0.17 < float(time_mask.float().mean()) < 0.2
    assert 0.2 < float(channel_mask.float().mean()) <= 0.25
    assert 0.27 < float(tap_mask.float().mean()) < 0.33
    assert all(not mask.any() for mask in masks_of(0, [200] * 4, 200))


def test_masks_fill_with_what_is_given() -> None:
    means = torch.arange(12.0).view(3, 4)
    features = torch.full((2, 40, 3, 4), 99.0)
    mask_features(features, torch.tensor([40, 40]), time=0.5, fill=means, generator=torch.Generator().manual_seed(0))
    masked = (features != 99.0).all(-1).all(-1)
    assert masked.any() and not masked.all()
    assert (features[masked] == means).all()
    with pytest.raises(UsageError, match="mask time = 1.5 is not a share"):
        mask_features(features, torch.tensor([40, 40]), time=1.5)


def test_stage_two_modules_import_without_the_upstreams_packages() -> None:
    blocked = ("transformers", "peft", "soundfile", "av", "featcache.upstreams", "featcache.audio")
    script = (
        "import sys\n"
        f"for name in {blocked!r}: sys.modules[name] = None\n"
        "import fusion.modules, fusion.text, fusion.evaluate, torch\n"
        "d = fusion.modules.build_decoder('conformer', 8, 4, hidden=8, heads=2, layers=1)\n"
        "d(torch.zeros(1, 4, 8))\n"
        "fusion.evaluate.score(['a b'], ['a'], resamples=10)\n"
        "fusion.text.SentencePieceTokeniser.train(['a b c', 'b c a'], 8).encode('a')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
