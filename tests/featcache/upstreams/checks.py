"""What every upstream must pass, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from featcache.upstreams import Upstream

LENGTHS = (9000, 400, 16000, 5000, 5000, 12345)
BOUND = 1e-4  # sigmas, DESIGN.md's first invariant


def speechlike(samples: int, seed: int = 0) -> np.ndarray:
    """Noise under a slow envelope, off centre: float32 (samples,)."""
    rng = np.random.default_rng([seed, samples])
    envelope = 0.02 + 0.2 * np.abs(np.sin(np.arange(samples) / 1700 + seed))
    return (rng.standard_normal(samples) * envelope + 0.01).astype(np.float32)


def waves(lengths: Sequence[int] = LENGTHS) -> list[np.ndarray]:
    return [speechlike(samples, seed) for seed, samples in enumerate(lengths)]


def deviation(features: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> np.ndarray:
    """Largest deviation at each tap, in standard deviations of that tap over all rows: (taps,)."""
    for row, other in zip(features, expected, strict=True):
        assert row.shape == other.shape and row.dtype == other.dtype == np.float32
    all_ftc, expected_ftc = np.concatenate(features), np.concatenate(expected)
    return np.abs(all_ftc - expected_ftc).max((0, 2)) / expected_ftc.std((0, 2))


def alone(upstream: Upstream, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [upstream.forward([wave])[0] for wave in inputs]


def partition(inputs: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Cut a sequence into batches of the given sizes, in turn."""
    batches, start, turn = [], 0, 0
    while start < len(inputs):
        batches.append(list(inputs[start : start + sizes[turn % len(sizes)]]))
        start, turn = start + sizes[turn % len(sizes)], turn + 1
    return batches


def in_batches(upstream: Upstream, inputs: Sequence[np.ndarray], batches: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Features in the order of `inputs`, computed in the given batches of indices by the path of a GPU."""
    features: list[np.ndarray] = [np.empty(0)] * len(inputs)
    upstream.rows_alone = False
    try:
        for batch in batches:
            for i, row in zip(batch, upstream.forward([inputs[i] for i in batch]), strict=True):
                features[i] = row
    finally:
        upstream.rows_alone = True
    return features


def padded(upstream: Upstream, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Features of one padded batch, also of a model that is not padded on this device."""
    before, upstream.can_pad = upstream.can_pad, True
    try:
        return in_batches(upstream, inputs, [range(len(inputs))])
    finally:
        upstream.can_pad = before


def gradient_deviation(upstream: Upstream, inputs: Sequence[np.ndarray]) -> float:
    """Largest deviation of a padded live batch's gradients from those of its rows alone, of all parameters.

    In parts of a parameter's largest gradient, or of 1e-4 of the largest of all: some, of a key's bias for
    one, are zero but for rounding.
    """
    module = upstream.network().module
    before, upstream.can_pad = upstream.can_pad, True
    module.requires_grad_(True)
    found = []
    try:
        for batches in ([inputs], [[wave] for wave in inputs]):
            for batch in batches:
                features = upstream.forward_live([torch.from_numpy(wave) for wave in batch])
                # not a plain sum, which a closing norm makes next to independent of what it norms
                torch.stack([(row * torch.linspace(-1, 1, row.shape[-1])).sum() for row in features]).sum().backward()
            found.append({name: p.grad for name, p in module.named_parameters() if p.grad is not None})
            module.zero_grad()
    finally:
        module.requires_grad_(False)
        upstream.can_pad = before
    together, apart = found
    assert together.keys() == apart.keys() and "feature_extractor.conv_layers.0.layer_norm.weight" in together
    largest = max(float(gradient.abs().max()) for gradient in apart.values())
    return max(
        float((together[name] - gradient).abs().max() / max(float(gradient.abs().max()), 1e-4 * largest))
        for name, gradient in apart.items()
    )


def stir(model: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
    """Move every parameter, norms included, so that no two activations agree by accident."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def live(upstream: Upstream, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Features of the path that is open to gradients, which reach the block that is trained and no other."""
    network = upstream.network()
    network.blocks[0].requires_grad_(True)
    features = upstream.forward_live([torch.from_numpy(wave) for wave in inputs])
    features[0][:, 1].sum().backward()
    trained = {id(parameter) for parameter in network.blocks[0].parameters()}
    reached = {id(parameter) for parameter in network.module.parameters() if parameter.grad is not None}
    assert reached and reached <= trained
    network.module.requires_grad_(False)
    return [row.detach().cpu().numpy() for row in features]
