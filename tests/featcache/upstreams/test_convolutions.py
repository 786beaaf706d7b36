"""The two convolutions as matrix products, against the library's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from featcache.upstreams import convolutions


def convolution(seed: int, *shape: int, normed: bool = False, **options: int | bool) -> nn.Conv1d:
    torch.manual_seed(seed)
    conv = nn.Conv1d(*shape, **options)  # type: ignore[arg-type]
    if normed:
        conv = nn.utils.parametrizations.weight_norm(conv, name="weight", dim=2)
    return conv.eval().requires_grad_(False)


def first(seed: int = 0, bias: bool = True) -> nn.Conv1d:
    return convolution(seed, 1, 24, 10, stride=5, bias=bias)


def position(kernel: int = 128, groups: int = 4, width: int = 12, normed: bool = True) -> nn.Conv1d:
    channels = groups * width
    return convolution(1, channels, channels, kernel, padding=kernel // 2, groups=groups, normed=normed)


def replaced(conv: nn.Conv1d) -> nn.Conv1d:
    """A copy that is a product; the other of the pair stays what it is."""
    made = copy.deepcopy(conv)
    assert convolutions.as_products(made, made)
    assert "forward" in vars(made)
    return made


def frames(batch: int, channels: int, count: int) -> Tensor:
    """As an encoder gives them to its position convolution: channels last in memory."""
    return torch.randn(batch, count, channels, generator=torch.Generator().manual_seed(2)).transpose(1, 2)


def apart(found: Tensor, expected: Tensor) -> float:
    """The largest difference in deviations of what is expected."""
    assert found.shape == expected.shape
    return float((found.float() - expected).abs().max() / expected.std())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("samples", [10, 14, 15, 400, 3001])
def test_the_first_convolution(bias: bool, samples: int) -> None:
    conv = first(bias=bias)
    wave = torch.randn(3, 1, samples, generator=torch.Generator().manual_seed(3))
    other = replaced(conv)
    with torch.inference_mode():
        made = other(wave)
        assert apart(made, conv(wave)) < 1e-5
    assert made.is_contiguous()


@pytest.mark.parametrize("kernel, groups, width", [(128, 4, 12), (16, 4, 8), (7, 2, 3), (2, 3, 1)])
@pytest.mark.parametrize("batch, count", [(1, 1), (1, 127), (2, 128), (3, 129), (2, 599), (4, 63)])
def test_the_position_convolution(kernel: int, groups: int, width: int, batch: int, count: int) -> None:
    conv = position(kernel, groups, width)
    other, x = replaced(conv), frames(batch, groups * width, count)
    with torch.inference_mode():
        assert apart(other(x), conv(x)) < 1e-5
        assert apart(other(x.contiguous()), conv(x)) < 1e-5


def test_channels_that_come_out_are_others() -> None:
    conv = convolution(4, 12, 20, 9, padding=3, groups=4, bias=False)
    other, x = replaced(conv), frames(2, 12, 50)
    with torch.inference_mode():
        assert apart(other(x), conv(x)) < 1e-5


def test_in_bfloat16_it_is_as_near_to_float32() -> None:
    wave = torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(5))
    for conv, x in ((first(), wave), (position(width=48, groups=2), frames(2, 96, 300))):
        other = replaced(conv)
        with torch.inference_mode():
            expected = conv(x)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                library, made = conv(x), other(x)
        assert made.dtype == library.dtype == torch.bfloat16
        errors = [float((y.float() - expected).square().mean().sqrt() / expected.std()) for y in (made, library)]
        assert 0 < errors[0] < 1.2 * errors[1]


def test_nothing_passes_from_a_row_to_another() -> None:
    conv = replaced(position())
    x = frames(3, 48, 300)
    with torch.inference_mode():
        expected = conv(x)
        x[1] = torch.nan
        found = conv(x)
    assert torch.equal(found[[0, 2]], expected[[0, 2]]) and found[1].isnan().all()


def test_gradients_go_through_the_modules_own_forward() -> None:
    for conv, x in ((first(), torch.randn(2, 1, 400)), (position(), frames(2, 48, 100))):
        made = replaced(conv)
        with torch.inference_mode():
            made(x)
        assert torch.equal(made(x), conv(x))  # gradients are on, though nothing wants one
        for module in (made, conv):
            module.requires_grad_(True)
            module(x).square().sum().backward()
        for own, other in zip(made.parameters(), conv.parameters(), strict=True):
            assert own.grad is not None and other.grad is not None and torch.equal(own.grad, other.grad)


def test_weights_that_changed_are_prepared_anew() -> None:
    for conv, x in ((first(), torch.randn(2, 1, 400)), (position(), frames(2, 48, 100))):
        made = replaced(conv)
        with torch.no_grad():
            before = made(x)
            for module in (conv, made):
                for parameter in module.parameters():
                    parameter.mul_(1.5)
            assert apart(made(x), conv(x)) < 1e-5 and apart(made(x), before) > 0.1
        made.requires_grad_(True)
        with torch.no_grad():
            assert torch.equal(made(x), conv(x))  # under training it is the module's own


def test_weights_are_prepared_once_for_a_type(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[nn.Conv1d] = []

    def prepare(conv: nn.Conv1d) -> Tensor:
        prepared.append(conv)
        return whole(conv)

    whole = convolutions.position_matrices
    monkeypatch.setattr(convolutions, "position_matrices", prepare)
    made, x = replaced(position()), frames(1, 48, 100)
    with torch.inference_mode():
        for _ in range(3):
            made(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(3):
                made(x)
    assert prepared == [made, made]


def test_what_is_not_known_stays() -> None:
    for options in ({"dilation": 2}, {"padding_mode": "circular", "padding": 3}, {"padding": "same"}):
        one, grouped = nn.Conv1d(1, 4, 8, **options), nn.Conv1d(4, 4, 8, groups=2, **options)  # type: ignore[arg-type]
        assert not convolutions.as_products(one, grouped)
        assert "forward" not in vars(one) and "forward" not in vars(grouped)
    assert not convolutions.as_products(nn.Conv1d(2, 4, 8), nn.Conv1d(4, 4, 8))
    assert not convolutions.as_products(nn.Identity(), nn.Linear(2, 2))


def test_names_of_parameters_and_copies_stay() -> None:
    conv = position(normed=False)
    made = replaced(conv)
    assert made.state_dict().keys() == conv.state_dict().keys()
    twin, x = copy.deepcopy(made), frames(1, 48, 60)
    with torch.no_grad():
        made(x)
        for parameter in twin.parameters():
            parameter.zero_()
        assert not twin(x).any() and made(x).any()
