"""The kernels for GPUs without one: the integers of the CPU's in Triton's interpreter, and what its compiler makes."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

from featcache.codec import gpu
from featcache.codec.device import Decoder
from tests.featcache.codec.examples import build, speech_like

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

# By kernel: types of its arguments, in their order, and its constants.
ROWS = "at starts lengths: *i64"
KERNELS = {
    "encode": (
        f"values: *fp32, {ROWS}, mean inverse: *fp32, near rounding centroid mixed mixed_shift: *i32, below codes: "
        "*i16, rec: *i16, inputs narrow: *i8, tap low high rank taps channels code_shift narrow_shift: i32",
        {"BELOW": True, "MIXED": True, "EVEN": True, "WIDTH": 32, "STEPS": 8},
    ),
    "decode": (
        "codes: *i16, block: *u8, starts lengths: *i64, near centroid mixed mixed_shift: *i32, below rec: *i16, "
        "narrow: *i8, tap depth width channels narrow_shift: i32",
        {"BELOW": True, "EVEN": True, "WIDTH": 32, "STEPS": 8},
    ),
    "narrow_sums": ("sums shift: *i32, inputs: *i8, count rank width: i32", {"BLOCK": 1024}),
    "judge": (
        f"values: *fp32, {ROWS}, rec codes: *i16, smoother: *i32, scale mean bound deviation: *fp32, missed: *u8, "
        "needed largest kept: *i32, squares: *fp64, frames taps channels limit: i32",
        {"SQUARES": True, "ROWS": 16, "WIDTH": 128},
    ),
    "smooth": (
        "rec: *i16, block: *u8, starts lengths at wanted: *i64, smoother: *i32, scale mean out: *fp32, "
        "frames depth chosen channels width: i32",
        {"ROWS": 16, "WIDTH": 128},
    ),
    "pack": (
        "codes: *i16, order: *i32, out: *u8, fields: *i32, values width body words limit: i32",
        {"RADIX": 3, "DIGITS": 5, "BYTES": 1024, "HEADER": 1},
    ),
    "unpack": (
        "block: *u8, table: *i8, counts order code_shift: *i32, codes: *i16, inputs: *i8, "
        "width body frames depth channels rank limit: i32",
        {"DIGITS": 5, "BYTES": 1024, "HEADER": 1},
    ),
}


@needs_triton
@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_without_fused_arithmetic(name: str) -> None:
    """The interpreter takes what the compiler refuses; and a fused product and sum rounds otherwise than the CPU's."""
    import triton
    from triton.backends.compiler import GPUTarget

    from featcache.codec import gpu_kernels, gpu_kernels_pack

    arguments, constants = KERNELS[name]
    types = {}
    for part in arguments.split(", "):
        names, kind = part.split(": ")
        types |= dict.fromkeys(names.split(), kind)
    kernel = getattr(gpu_kernels_pack if name in ("pack", "unpack") else gpu_kernels, name)
    signature = types | dict.fromkeys(constants, "constexpr")
    assert kernel.arg_names == list(signature)
    source = triton.compiler.ASTSource(kernel, signature, constants)
    made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=gpu_kernels.OPTIONS)
    assert f".entry {name}" in made.asm["ptx"] and "fma.rn.f32" not in made.asm["ptx"]


@needs_triton
def test_where_triton_cannot_run_torch_does_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here it has no GPU; elsewhere it may have no C compiler."""
    monkeypatch.setattr(gpu, "usable", lambda device: True)
    codec, row = build({"step": 0.5}), speech_like(30, 1)
    with pytest.warns(RuntimeWarning, match=r"kernels for encoding on a GPU cannot be used here \(.*\): torch does it"):
        [made] = codec.begin_encoding([torch.from_numpy(row)])()
    encoded = made.rest()
    assert encoded.planes["codes"].tobytes() == codec.encode(row).planes["codes"].tobytes()
    with pytest.warns(RuntimeWarning, match="kernels for decoding"):
        decoder = Decoder(codec.calibration, codec._scale, codec.radix, torch.device("cpu"))
    out = torch.empty(row.shape)
    block = torch.from_numpy(encoded.planes["codes"])
    decoder.decode_into(block, codec.taps, range(codec.taps), [out])
    planes = {"codes": block, "exact": torch.zeros(0, *row.shape[1:])}
    assert torch.equal(out, codec.decode(planes, [len(row)], range(codec.taps)))


@needs_triton
def test_the_kernels_give_the_bytes_and_floats_of_the_cpu() -> None:
    """The interpreter has to be asked for before Triton is imported."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.featcache.codec.interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
