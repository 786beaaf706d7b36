"""What all families share."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("override", ["0", "1"])
def test_products_on_cuda_are_never_in_tf32(override: str) -> None:
    """The identity says so, whatever a container's environment asks for. Torch reads that once, and needs no GPU."""
    program = (
        "import torch\n"
        "from featcache.upstreams.base import _steady\n"
        "matmul = torch.backends.cuda.matmul\n"
        "before = matmul.allow_tf32\n"
        "with _steady(torch.device('cuda')):\n"
        "    assert not matmul.allow_tf32 and torch.get_float32_matmul_precision() == 'highest'\n"
        "assert matmul.allow_tf32 == before\n"
        "print(before)\n"
    )
    environment = {"PATH": "", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": override}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert ran.stdout.split() == [str(override == "1")], ran.stderr
