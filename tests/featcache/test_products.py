"""Products by oneDNN: torch's values and gradients, and torch itself where they are not for it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from featcache import products

CPU = torch.device("cpu")
ROWS = st.integers(1, 130)
WIDTH = st.integers(1, 70)

pytestmark = pytest.mark.skipif(not products.used_on(CPU), reason="this processor's products are torch's own")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """The shapes of all inputs that oneDNN was given."""
    shapes: list[tuple[int, ...]] = []
    real = products._product

    def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shapes.append(tuple(x.shape))
        return real(x, weight, bias)

    monkeypatch.setattr(products, "_product", product)
    yield shapes


def laid_out(how: str, *shape: int) -> Tensor:
    """Random values of a shape, in memory in one piece, transposed, or with gaps."""
    if how == "transposed":
        return torch.randn(*shape[:-2], shape[-1], shape[-2]).transpose(-1, -2)
    if how == "gaps":
        return torch.randn(*shape[:-1], 2 * shape[-1] + 1)[..., 1 : 1 + shape[-1]]
    return torch.randn(shape)


def bias_laid_out(how: str, *shape: int) -> Tensor:
    """Random values of a shape, in one piece, all of them one and the same number, or with gaps."""
    if how == "one":
        return torch.randn(1).expand(shape)
    return torch.randn(*shape, 3)[..., 1] if how == "gaps" else torch.randn(shape)


LAYOUT = st.sampled_from(["whole", "transposed", "gaps"])


def check(ours: Callable[..., Tensor], exact: Callable[..., Tensor], operands: list[Tensor]) -> None:
    """Values and gradients are those of float64, to float32's rounding; without gradients they are the same bits."""
    operands = [t.requires_grad_() for t in operands]
    made = ours(*operands)
    given = torch.randn_like(made)
    made.backward(given)
    doubles = [t.detach().double().requires_grad_() for t in operands]
    expected = exact(*doubles)
    expected.backward(given.double())
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-4)
    for single, double in zip(operands, doubles, strict=True):
        assert single.grad is not None and double.grad is not None
        torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert torch.equal(ours(*operands), made.detach())


@given(ROWS, WIDTH, WIDTH, LAYOUT, LAYOUT, st.booleans())
def test_a_linear_layer(rows: int, inputs: int, outputs: int, x: str, weight: str, biased: bool) -> None:
    operands = [laid_out(x, 1, rows, inputs), laid_out(weight, outputs, inputs)]
    operands += [torch.randn(outputs)] if biased else []
    check(products.linear, nn.functional.linear, operands)


@given(st.integers(1, 4), ROWS, WIDTH, WIDTH, LAYOUT, LAYOUT, st.booleans())
def test_a_stack_of_them(count: int, rows: int, inputs: int, outputs: int, x: str, weight: str, biased: bool) -> None:
    operands = [laid_out(x, count, rows, inputs), laid_out(weight, count, inputs, outputs)]
    operands += [torch.randn(count, 1, outputs)] if biased else []
    check(products.stacked, lambda x, w, b=0.0: torch.bmm(x, w) + b, operands)


@given(st.integers(1, 2), st.integers(1, 3), st.integers(500, 700), st.booleans())
def test_attention(batch: int, heads: int, frames: int, across: bool) -> None:
    shape = (batch, frames, heads, 8) if across else (batch, heads, frames, 8)  # as models have it in memory
    query, key, value = (torch.randn(shape).transpose(1, 2 if across else 1) for _ in range(3))
    with torch.inference_mode(), products.by_onednn(CPU):
        ours = scaled_dot_product_attention(query, key, value)
    expected = scaled_dot_product_attention(query.double(), key.double(), value.double())
    assert ours.shape == expected.shape
    torch.testing.assert_close(ours.double(), expected, rtol=1e-4, atol=1e-5)


@given(ROWS, WIDTH, st.integers(2, 70), st.sampled_from(["whole", "one", "gaps"]), st.integers(1, 3))
def test_a_bias_lies_in_memory_in_any_way(rows: int, inputs: int, outputs: int, how: str, count: int) -> None:
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), bias_laid_out(how, outputs)
    torch.testing.assert_close(products.linear(x, weight, bias), nn.functional.linear(x, weight, bias))
    stack = torch.randn(count, rows, inputs), torch.randn(count, inputs, outputs), bias_laid_out(how, count, 1, outputs)
    torch.testing.assert_close(products.stacked(*stack), torch.baddbmm(stack[2], *stack[:2]))


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 5), (5, 0), (0, 0)])
def test_products_of_nothing(inputs: int, outputs: int) -> None:
    check(
        products.linear,
        nn.functional.linear,
        [torch.randn(40, inputs), torch.randn(outputs, inputs), torch.randn(outputs)],
    )


def test_modules_of_others_are_redirected_in_this_thread_alone(counted: list[tuple[int, ...]]) -> None:
    layer, x = nn.Linear(8, 5), torch.randn(2, 20, 8)
    with ThreadPoolExecutor(1) as other, products.by_onednn(CPU):
        ours = layer(x)
        assert counted == [(40, 8)]
        torchs = other.submit(layer, x).result()
    torch.testing.assert_close(ours, torchs)
    layer(x)
    assert counted == [(40, 8)]


def test_attention_is_redirected_where_it_is_plain(counted: list[tuple[int, ...]]) -> None:
    query = torch.randn(1, 1, 600, 8)
    mask = torch.ones(1, 1, 600, 600, dtype=torch.bool)
    with products.by_onednn(CPU):
        scaled_dot_product_attention(query, query, query, mask)
        scaled_dot_product_attention(query, query, query, attn_mask=mask)
        scaled_dot_product_attention(query, query, query, is_causal=True)
        scaled_dot_product_attention(query[:, :, :400], query[:, :, :400], query[:, :, :400])
        scaled_dot_product_attention(query, query, query[..., :4])
        scaled_dot_product_attention(query, query[0], query[0])
        scaled_dot_product_attention(query.requires_grad_(), query, query)
        assert not counted
        with torch.no_grad():
            scaled_dot_product_attention(query, query, query, scale=0.5)
        assert counted


@pytest.mark.parametrize("why", ["few rows", "float64", "bfloat16", "autocast", "left to torch"])
def test_what_is_torchs_own_is_left_to_it(why: str, counted: list[tuple[int, ...]]) -> None:
    kind = {"float64": torch.float64, "bfloat16": torch.bfloat16}.get(why, torch.float32)
    rows = 3 if why == "few rows" else 40
    x, weight, bias = (torch.randn(shape).to(kind) for shape in ((2, rows, 8), (2, 8, 5), (2, 1, 5)))
    scope = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "left to torch": products.left_to_torch,
    }.get(why, nullcontext)
    with scope():
        ours = products.stacked(x, weight, bias)
        expected = torch.baddbmm(bias, x, weight)
        assert torch.equal(ours, expected) and ours.dtype == expected.dtype
        one = products.linear(x[0], weight[0].t(), bias[0, 0])
        expected = nn.functional.linear(x[0], weight[0].t(), bias[0, 0])
        assert torch.equal(one, expected) and one.dtype == expected.dtype
    assert not counted


def test_the_same_bits_on_any_thread() -> None:
    x, layer = torch.randn(300, 64), nn.Linear(64, 96)

    def work(_: int) -> Tensor:
        torch.set_num_threads(1)
        with torch.inference_mode(), products.by_onednn(CPU):
            made: Tensor = layer(x)
        return made

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(work, range(16))
    assert all(torch.equal(first, other) for other in others)


def test_a_program_holds_no_product_of_ours() -> None:
    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return products.linear(x, torch.ones(5, 8))

    program = torch.export.export(Layer(), (torch.randn(40, 8),))
    assert "mkldnn" not in str(program.graph)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="asks Linux for the memory of a process")
def test_memory_does_not_grow_with_every_new_length() -> None:
    program = """
import torch
from featcache import products

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

torch.set_num_threads(1)
up, down = torch.randn(2048, 512), torch.randn(512, 2048)
with torch.inference_mode():
    for rows in range(16, 416):
        products.linear(products.linear(torch.randn(rows, 512), up), down)
        before = held() if rows == 30 else before if rows > 30 else 0
print(held() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # 460 where oneDNN and torch keep what they made for a thousand shapes.
    assert float(done.stdout) < 200
