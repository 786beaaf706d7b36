"""`featcache extract` against the model's forward alone, and against the loops that people write instead.

Both sides run in turns on the same recordings, so that what else the machine does meets them alike. The forward
alone is the tuned one: of several ways to batch, that which was fastest on a part of the recordings.
"""

from __future__ import annotations

import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from featcache.audio import load as load_audio
from featcache.codec import parse_profile
from featcache.errors import UsageError
from featcache.geometry import SAMPLE_RATE
from featcache.index import id_hash
from featcache.inspect import info
from featcache.job import Job, Request
from featcache.manifest import Row, absolute, read, resolve, write
from featcache.reading import load_window
from featcache.upstreams import Upstream, UpstreamConfig
from featcache.upstreams import load as load_upstream
from pipelines.bench.machine import stamp

TURNS = 3
# Of the recordings, this much decides which forward is the fastest, and is given to the rivals.
PART_SECONDS = 20.0
messages = Console(stderr=True)
Waves = list[np.ndarray]


@dataclass(frozen=True)
class Spent:
    """Seconds of audio per second on the clock, and per second of this process's CPU."""

    realtime: float
    realtime_cpu: float


def measure(manifest: Path, upstream_id: str, seconds: float, profile: str, device: str) -> dict[str, Any]:
    """`efficiency`, `padding_waste`, `realtime` and `rivals[]`.

    Raises:
        UsageError: the manifest holds no speech.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = choose(manifest, seconds)
        write(folder / "manifest.jsonl", rows)
        upstream = load_upstream(UpstreamConfig(id=upstream_id), device=device)
        start = _job(folder, "start", upstream, profile)
        start.init()
        plan = start.plan
        batches = [
            [
                _wave(load_window(rows[int(plan.utterance[r])], folder / "manifest.jsonl", plan, r).samples)
                for r in batch
            ]
            for shard in range(plan.shards)
            for batch in plan.batches(shard)
        ]
        way, forward = _tuned(upstream, batches)
        alone: list[Spent] = []
        whole: list[Spent] = []
        for turn in range(TURNS):
            alone.append(_spent(forward, plan.seconds))
            shutil.copytree(folder / "start", folder / str(turn))
            job = _job(folder, str(turn), upstream, profile)
            whole.append(_spent(job.extract, plan.seconds))
            messages.print(f"turn {turn + 1} of {TURNS}: {alone[-1]}, {whole[-1]}")
        card = info(job.cache)
        rivals = _rivals(rows, upstream, folder)
    return {
        "efficiency": _median(b.realtime / a.realtime for a, b in zip(alone, whole, strict=True)),
        "efficiency_cpu": _median(b.realtime_cpu / a.realtime_cpu for a, b in zip(alone, whole, strict=True)),
        "padding_waste": round(plan.passes[1], 4),
        "realtime": _median(spent.realtime for spent in whole),
        "realtime_cpu": _median(spent.realtime_cpu for spent in whole),
        "forward_realtime": _median(spent.realtime for spent in alone),
        "forward_tuned": way,
        "bits_per_value": round(card["bits_per_value"], 2),
        "bytes_per_second": round(card["bytes"] / plan.seconds),
        "peak_memory_mb": round(_peak_bytes() / 1e6),
        "rivals": rivals,
        "upstream": upstream_id,
        "profile": profile,
        "audio_seconds": round(plan.seconds, 1),
        **stamp(),
    }


def choose(manifest: Path, seconds: float) -> list[Row]:
    """Rows of a manifest drawn by their ids' hashes, of so many seconds, with absolute paths."""
    chosen, total = [], 0.0
    for row in sorted(read(manifest), key=lambda row: (id_hash(row.id), row.id)):
        if row.duration > 0.3 and total < seconds:
            chosen.append(row)
            total += row.duration
    if not chosen:
        raise UsageError(f"{manifest} holds no recording of more than 0.3 s")
    return absolute(chosen, manifest)


def _job(folder: Path, name: str, upstream: Upstream, profile: str) -> Job:
    kind, parameters = parse_profile(profile)
    request = Request(upstream=upstream.config, profile=kind, parameters=parameters, calibration_seconds=60)
    job = Job(folder / "manifest.jsonl", folder / name, request, upstream.device.type)
    job.use(upstream)
    return job


def _wave(samples: np.ndarray | None) -> np.ndarray:
    assert samples is not None, "a recording that was chosen cannot be read"
    return samples


def _spent(work: Callable[[], object], seconds: float) -> Spent:
    began, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(
        round(seconds / (time.perf_counter() - began), 2), round(seconds / (time.process_time() - cpu + 1e-9), 2)
    )


def _median(values: Any) -> float:
    return round(statistics.median(values), 3)


def _peak_bytes() -> int:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


# The forward alone


def _tuned(upstream: Upstream, batches: list[Waves]) -> tuple[str, Callable[[], None]]:
    """The fastest way through the model of several, and its name."""
    everything = [wave for batch in batches for wave in batch]
    ways: dict[str, tuple[bool, list[Waves]]] = {}
    if upstream.rows_alone:
        ways["rows alone, a thread each"] = (True, [everything])
    if upstream.can_pad:
        ways["padded batches of the plan"] = (False, batches)
        ways["padded batches, a quarter of that"] = (
            False,
            [b[i : i + max(1, len(b) // 4)] for b in batches for i in range(0, len(b), max(1, len(b) // 4))],
        )
    ways["one by one"] = (False, [[wave] for wave in everything])
    speeds = {}
    for name, (rows_alone, groups) in ways.items():
        part = _part(groups)
        _forward(upstream, part[:1], rows_alone)
        speeds[name] = _spent(lambda p=part, r=rows_alone: _forward(upstream, p, r), _seconds(part)).realtime  # type: ignore[misc]
        messages.print(f"forward, {name}: {speeds[name]} x real time")
    best = max(speeds, key=lambda name: speeds[name])
    rows_alone, groups = ways[best]
    return best, lambda: _forward(upstream, groups, rows_alone)


def _part(groups: list[Waves]) -> list[Waves]:
    """Every so many-th group or wave, of about `PART_SECONDS`, so that all lengths are in it."""
    if len(groups) == 1:
        return [groups[0][:: max(1, int(_seconds(groups) / PART_SECONDS))]]
    return groups[:: max(1, int(_seconds(groups) / PART_SECONDS))]


def _seconds(groups: list[Waves]) -> float:
    return sum(len(wave) for group in groups for wave in group) / SAMPLE_RATE


def _forward(upstream: Upstream, groups: Sequence[Waves], rows_alone: bool) -> None:
    """The features stay where they are computed, and are thrown away."""
    before, upstream.rows_alone = upstream.rows_alone, rows_alone
    try:
        for group in groups:
            upstream.forward_tensors(group)
        if upstream.device.type == "cuda":
            torch.cuda.synchronize(upstream.device)
    finally:
        upstream.rows_alone = before


# What people write instead


def _rivals(rows: Sequence[Row], upstream: Upstream, folder: Path) -> list[dict[str, Any]]:
    part, total = [], 0.0
    for row in rows:
        if total < PART_SECONDS:
            part.append(row)
            total += row.duration
    found: list[dict[str, Any]] = []
    for name, loop in (
        ("transformers forward, torch.save per utterance", _transformers_loop),
        ("forward per utterance, HDF5 gzip", _hdf5_loop),
    ):
        place = folder / name.split()[0]
        place.mkdir()
        try:
            spent = _spent(lambda loop=loop, place=place: loop(part, upstream, place), total)  # type: ignore[misc]
        except (ImportError, AttributeError) as error:
            found.append({"name": name, "absent": str(error)})
            continue
        size = sum(file.stat().st_size for file in place.iterdir())
        found.append({"name": name, **vars(spent), "bytes_per_second": round(size / total)})
        messages.print(f"{found[-1]}")
    return found


def _transformers_loop(rows: Sequence[Row], upstream: Upstream, place: Path) -> None:
    """The documented use of a Whisper encoder: features of 30 s, every hidden state, one file an utterance."""
    from transformers import WhisperFeatureExtractor

    encoder: Any = upstream.encoder  # type: ignore[attr-defined]
    extractor = WhisperFeatureExtractor(feature_size=encoder.config.num_mel_bins)
    for number, row in enumerate(rows):
        samples = load_audio(resolve(row, place), offset=row.offset, duration=row.duration)
        mel = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features.to(upstream.device)
        with torch.inference_mode():
            states = encoder(mel, output_hidden_states=True).hidden_states
        frames = upstream.frames(len(samples))
        torch.save(torch.stack(states)[:, 0, :frames].cpu().clone(), place / f"{number}.pt")


def _hdf5_loop(rows: Sequence[Row], upstream: Upstream, place: Path) -> None:
    """The same cropped forward as ours, an utterance at a time on all threads; float32, gzip."""
    import h5py

    before, upstream.rows_alone = upstream.rows_alone, False
    try:
        with h5py.File(place / "features.h5", "w") as file:
            for row in rows:
                samples = load_audio(resolve(row, place), offset=row.offset, duration=row.duration)
                [features] = upstream.forward([samples])
                file.create_dataset(row.id.replace("/", "."), data=features, compression="gzip")
    finally:
        upstream.rows_alone = before


def print_table(result: dict[str, Any]) -> None:
    """The result for people, on standard output."""
    for name, value in result.items():
        if name != "rivals":
            print(f"{name:18} {value}")
    for rival in result["rivals"]:
        print(f"rival {rival}")
