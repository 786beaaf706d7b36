"""A model's forward, and the codec where the model runs: how fast each is, alone and together, and whether bytes agree.

One batch of recordings of like length, in memory. The calibration is fitted to other recordings of the manifest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from featcache.activations import begin_rows
from featcache.audio import load as load_audio
from featcache.codec import Codec, build, parse_profile, profile_class
from featcache.errors import UsageError
from featcache.manifest import resolve
from featcache.spans import Spans
from featcache.upstreams import UpstreamConfig
from featcache.upstreams import load as load_upstream
from pipelines.bench.extract import choose
from pipelines.bench.machine import stamp

# Batches in flight at a time, and in a turn of those that overlap.
BEGUN, BATCHES = 3, 6
CALIBRATION_SECONDS = 60.0
# Rows that are encoded and decoded on the CPU too.
COMPARED = 4
messages = Console(stderr=True)


def measure(
    manifest: Path, upstream: UpstreamConfig, seconds: float, profile: str, device: str, turns: int
) -> dict[str, Any]:
    """Audio seconds per second of `forward_realtime`, `encode_realtime` and `both_realtime` (with `efficiency`, of both
    together to the forward), `decode_values_s`, and whether `bytes_agree` and `floats_agree` with the CPU's.

    Args:
        seconds: of audio in the batch, about.
        turns: how often each is run; the fastest counts.

    Raises:
        UsageError: the manifest holds too little speech.
    """
    rows = choose(manifest, seconds + CALIBRATION_SECONDS)
    waves = [load_audio(resolve(row, manifest), offset=row.offset, duration=row.duration) for row in rows]
    ends = np.cumsum([row.duration for row in rows])
    first = int(np.searchsorted(ends, CALIBRATION_SECONDS)) + 1
    if first >= len(rows):
        raise UsageError(f"{manifest} holds less than {CALIBRATION_SECONDS:.0f} s beside those that calibrate")
    batch, calibrating = waves[first:], waves[:first]
    audio = float(ends[-1] - ends[first - 1])
    model = load_upstream(upstream, device=device)
    kind, parameters = parse_profile(profile)
    messages.print(f"fitting {profile} to {ends[first - 1]:.0f} s")
    arrays = profile_class(kind).fit(model.forward(calibrating), parameters)
    codec = build(kind, profile_class(kind).version, len(model.taps), model.channels, parameters, arrays)
    features = [row.contiguous() for row in model.forward_tensors(batch)]

    def wait() -> None:
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    def fastest(work: Callable[[], object], times: int = turns) -> float:
        work()
        wait()
        found = []
        for _ in range(times):
            began = time.perf_counter()
            work()
            wait()
            found.append(time.perf_counter() - began)
        return min(found)

    def both() -> None:
        begun: deque[Callable[[], object]] = deque()
        kept = [slice(0, None)] * len(batch)
        with model.overlapping() as begin:
            for _ in range(BATCHES):
                begun.append(begin_rows(codec, model.device, begin(model.prepare(batch)), kept, Spans(enabled=False)))
                while len(begun) >= BEGUN:
                    begun.popleft()()
        for end in begun:
            end()

    def alone() -> None:
        with model.overlapping() as begin:
            for end in [begin(model.prepare(batch)) for _ in range(BATCHES)]:
                end()

    forward, encode = fastest(lambda: model.forward_tensors(batch)), fastest(lambda: codec.begin_encoding(features)())
    began = time.perf_counter()
    end = codec.begin_encoding(features)
    launched = time.perf_counter() - began
    encoded = [row.rest().planes for row in end()]
    on_host = [codec.encode(row.cpu().numpy()).planes for row in features[:COMPARED]]
    planes = {name: _joined(codec, encoded, name, model.device) for name in encoded[0]}
    lengths, taps = [len(row) for row in features], range(codec.taps)
    decode = fastest(lambda: codec.decode_batch(_whole(codec, planes), lengths, taps))
    decoded = codec.decode(_whole(codec, planes), lengths, taps)[: lengths[0]].cpu().numpy()
    separate, together = fastest(alone, 2), fastest(both, 2)
    values = sum(lengths) * codec.taps * codec.channels
    return {
        "forward_realtime": round(audio / forward, 1),
        "encode_realtime": round(audio / encode, 1),
        "encode_launch_ms": round(1000 * launched, 2),
        "both_realtime": round(BATCHES * audio / together, 1),
        "efficiency": round(separate / together, 3),
        "decode_values_s": round(values / decode),
        "decode_ms": round(1000 * decode, 2),
        "bytes_agree": all(_same(a, b) for a, b in zip(encoded, on_host, strict=False)),
        "floats_agree": bool(np.array_equal(decoded, codec.decode_row(on_host[0], lengths[0]))),
        "audio_seconds": round(audio, 1),
        "rows": len(batch),
        "upstream": upstream.id, "dtype": upstream.dtype, "profile": profile, "device": device,
        **stamp(),
    }  # fmt: skip


def _joined(codec: Codec, rows: list[dict[str, np.ndarray]], name: str, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([codec.complete(row)[name] for row in rows])).to(device)


def _whole(codec: Codec, planes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With planes of which no row has anything, without frames."""
    return {
        plane.name: planes.get(
            plane.name, torch.zeros((0, *plane.frame_shape), device=next(iter(planes.values())).device)
        )
        for plane in codec.planes
    }


def _same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].tobytes() == plane.tobytes() for name, plane in expected.items()
    )


def print_table(result: dict[str, Any]) -> None:
    """The result for people, on standard output."""
    for name, value in result.items():
        print(f"{name:18} {value}")
