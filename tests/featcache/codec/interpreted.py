"""The kernels for GPUs run by Triton's interpreter on the CPU; a process of its own, as it is asked for by environment.

TRITON_INTERPRET=1 python -m tests.featcache.codec.interpreted
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from featcache.codec import gpu, packing
from featcache.codec.device import Decoder
from featcache.codec.encoder import Coded
from tests.featcache.codec.examples import build, speech_like

CASES: list[tuple[tuple[int, int], dict[str, Any]]] = [
    ((1, 1), {"step": 0.5}),
    ((2, 20), {"step": 0.05}),
    ((2, 128), {"bits": 1.0}),
    ((2, 20), {"nmse": 0.1}),
]


def check(shape: tuple[int, int], parameters: dict[str, Any]) -> None:
    codec = build(parameters, [speech_like(200, seed, *shape) for seed in range(2)])
    rows = [speech_like(n, n, *shape) for n in (3, 0, 12, 1, 9)]
    rows[2][5, 0, 0], rows[2][7] = 1e30, rows[2][7] * 20
    rows[4][2, -1, -1] = np.nan
    rests = [row.rest for row in codec.begin_encoding([torch.from_numpy(row) for row in rows])()]
    coded = sum(isinstance(rest.args[0], Coded) for rest in rests)  # type: ignore[attr-defined]
    assert coded >= 2, f"{shape} {parameters}: the kernels coded {coded} rows"
    found, expected = [rest() for rest in rests], [codec.encode(row) for row in rows]
    for n, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert ours.planes.keys() == theirs.planes.keys(), (shape, parameters, n)
        for name, plane in theirs.planes.items():
            assert ours.planes[name].tobytes() == plane.tobytes(), (shape, parameters, n, name)
    block = torch.from_numpy(np.concatenate([made.planes["codes"] for made in expected]))
    decoder = Decoder(codec.calibration, codec._scale, codec.radix, torch.device("cpu"))
    # Each row alone, and all as one utterance of several windows.
    for lengths in ([len(row) for row in rows], [len(block)]):
        for taps in ([*range(shape[0])], [shape[0] - 1, 0]):
            depth = min(max(taps) + 2, shape[0])
            out = [torch.full((length, len(taps), shape[1]), torch.nan) for length in lengths]
            decoder.decode_into(block, depth, taps, out)
            planes = {"codes": block, "exact": torch.zeros(0, *shape)}
            assert torch.equal(torch.cat(out), codec.decode(planes, lengths, taps)), (shape, parameters, taps)


def check_packing(radix: int, taps: int = 2, channels: int = 70, frames: int = 3) -> None:
    """With tails that are full of codes beyond the limit, small and large ones."""
    rng = np.random.default_rng(radix)
    limit = packing.limit_of(radix)
    codes = rng.integers(-limit, limit + 1, (frames, taps, channels)).astype(np.int16)
    beyond = rng.choice([0, 0, 1, 2, 3, 300], codes.shape).astype(np.int16)
    codes += np.where(np.abs(codes) == limit, np.sign(codes) * np.minimum(beyond, 511 - limit), 0).astype(np.int16)
    by_tap = np.ascontiguousarray(codes.swapaxes(0, 1))
    order = rng.permutation(taps * channels).astype(np.uint32)
    tail = packing.tail_bytes(taps * channels, radix, packing.tail_quarters(by_tap, radix).max())
    packed_order = packing.padded_order(order, radix)
    known = SimpleNamespace(taps=taps, channels=channels)
    encoding: Any = SimpleNamespace(
        _known=known, _radix=radix, _tail=tail, _order=torch.from_numpy(packed_order.astype(np.int32))
    )
    found = packing.as_words(gpu.Encoding._pack(encoding, torch.from_numpy(codes)).numpy())
    assert found.tobytes() == packing.assemble(by_tap, packed_order, radix, tail).tobytes(), radix


def check_trial() -> None:
    """Kernels that give other bytes are not used, and that is said."""
    real = gpu.Encoding._pack
    gpu.Encoding._pack = lambda self, codes: real(self, codes) ^ 1  # type: ignore[method-assign]
    codec, row = build({"step": 0.5}, [speech_like(200, 0, 1, 3)]), speech_like(5, 1, 1, 3)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        [made] = codec.begin_encoding([torch.from_numpy(row)])()
    gpu.Encoding._pack = real  # type: ignore[method-assign]
    assert made.rest().planes["codes"].tobytes() == codec.encode(row).planes["codes"].tobytes()
    [warning] = said
    assert "kernels for encoding" in str(warning.message) and "is not right" in str(warning.message)


if __name__ == "__main__":
    gpu.usable = lambda device: True
    check_trial()
    # From here on they have to pass their trials.
    warnings.simplefilter("error", RuntimeWarning)
    for number in packing.DIGITS:
        check_packing(number)
    for case in CASES:
        check(*case)
    print("the same")
