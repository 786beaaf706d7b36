"""The kernels for GPUs compile, also where there is none: Triton's interpreter takes what its compiler refuses."""

from __future__ import annotations

from types import ModuleType

import pytest

from featcache.codec import quantise, scan

KERNELS = {
    scan: ("added out own: *i32, starts lengths: *i64, channels: i32", {"BITS": 12, "LARGEST": 32767, "WIDTH": 128}),
    quantise: (
        "target added own rounding centroid: *i32, starts lengths: *i64, codes rec: *i16, "
        "channels codes_stride rec_stride: i32",
        {"BITS": 12, "UNITS": 6, "REACH": 32767, "MOST": 511, "WIDTH": 128},
    ),
}


@pytest.mark.parametrize("module", KERNELS, ids=lambda module: module.__name__)
def test_a_kernel_compiles(module: ModuleType) -> None:
    triton = pytest.importorskip("triton")
    compiler = pytest.importorskip("triton.backends.compiler")
    arguments, constants = KERNELS[module]
    types = {}
    for part in arguments.split(", "):
        names, kind = part.split(": ")
        types |= dict.fromkeys(names.split(), kind)
    signature = types | dict.fromkeys(constants, "constexpr")
    kernel = module.triton_kernel()
    assert kernel.arg_names == list(signature)
    source = triton.compiler.ASTSource(kernel, signature, constants)
    made = triton.compile(source, target=compiler.GPUTarget("cuda", 80, 32))
    assert ".entry kernel" in made.asm["ptx"]
