"""`featcache extract` against the model's forward alone, and against the loops that people write instead.

Both sides run in turns on the same recordings, so that what else the machine does meets them alike. The forward
alone is the tuned one: of several ways to batch, that which was fastest on a part of the recordings.
"""

from __future__ import annotations

import json
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
from featcache.memory import ran_out
from featcache.products import left_to_torch, used_on
from featcache.reading import load_window
from featcache.spec import Layout
from featcache.upstreams import Upstream, UpstreamConfig
from featcache.upstreams import load as load_upstream
from pipelines.bench.machine import stamp

TURNS = 3
# Of the recordings, this much is given to the rivals, and decides which forward is the fastest on a CPU (of less, one
# long row on a thread would) and on a device.
PART_SECONDS, TUNING_SECONDS, DEVICE_PART_SECONDS = 20.0, 120.0, 3000.0
messages = Console(stderr=True)
Waves = list[np.ndarray]


@dataclass(frozen=True)
class Spent:
    """Seconds of audio per second on the clock, and per second of this process's CPU."""

    realtime: float
    realtime_cpu: float


def measure(
    manifest: Path,
    upstream: UpstreamConfig,
    seconds: float,
    profile: str,
    device: str,
    batch_seconds: float | None = None,
) -> dict[str, Any]:
    """`efficiency`, `padding_waste`, `realtime`, `spent` (of the last turn, see `_budget`) and `rivals[]`.

    `efficiency_by_torch` is against the same model without `featcache.products`, tuned likewise.

    Args:
        batch_seconds: audio of one forward pass of the extraction; None is what the command does by itself.

    Raises:
        UsageError: the manifest holds no speech.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = choose(manifest, seconds)
        write(folder / "manifest.jsonl", rows)
        model = load_upstream(upstream, device=device)
        start = _job(folder, "start", model, profile, batch_seconds)
        start.init()
        plan = start.plan
        batches = [
            [
                _wave(load_window(rows[int(plan.utterance[r])], folder / "manifest.jsonl", plan, r).samples)
                for r in batch
            ]
            for group in range(plan.groups)
            for batch in plan.batches(group)
        ]
        way, forward = _tuned(model, batches)
        ours = used_on(model.device)
        with left_to_torch():
            way_by_torch, forward_by_torch = _tuned(model, batches) if ours else (way, forward)
        if model.device.type != "cpu":
            # Kernels are compiled, and memory is got, before the clock runs.
            shutil.copytree(folder / "start", folder / "first")
            _job(folder, "first", model, profile, batch_seconds, limit=_enough(rows)).extract()
        alone: list[Spent] = []
        by_torch: list[Spent] = []
        whole: list[Spent] = []
        for turn in range(TURNS):
            alone.append(_spent(forward, plan.seconds))
            with left_to_torch():
                by_torch.append(_spent(forward_by_torch, plan.seconds) if ours else alone[-1])
            shutil.copytree(folder / "start", folder / str(turn))
            job = _job(folder, str(turn), model, profile, batch_seconds)
            job.trace = folder / "trace.json"
            whole.append(_spent(job.extract, plan.seconds))
            messages.print(f"turn {turn + 1} of {TURNS}: {alone[-1]}, {by_torch[-1]} by torch's products, {whole[-1]}")
        card = info(job.cache)
        spent = _budget(folder / "trace.json")
        rivals = _rivals(rows, model, folder)
    return {
        "efficiency": _median(b.realtime / a.realtime for a, b in zip(alone, whole, strict=True)),
        "efficiency_cpu": _median(b.realtime_cpu / a.realtime_cpu for a, b in zip(alone, whole, strict=True)),
        "efficiency_by_torch": _median(b.realtime / a.realtime for a, b in zip(by_torch, whole, strict=True)),
        "padding_waste": round(plan.passes[1], 4),
        "realtime": _median(spent.realtime for spent in whole),
        "realtime_cpu": _median(spent.realtime_cpu for spent in whole),
        "forward_realtime": _median(spent.realtime for spent in alone),
        "forward_tuned": way,
        "forward_realtime_by_torch": _median(spent.realtime for spent in by_torch),
        "forward_tuned_by_torch": way_by_torch,
        "bits_per_value": round(card["bits_per_value"], 2),
        "bytes_per_second": round(card["bytes"] / plan.seconds),
        "peak_memory_mb": round(_peak_bytes() / 1e6),
        "spent": spent,
        "rivals": rivals,
        "upstream": upstream.id,
        "dtype": upstream.dtype,
        "device": device,
        "batch_seconds": plan.batch_samples / SAMPLE_RATE,
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


def _job(
    folder: Path, name: str, upstream: Upstream, profile: str, batch_seconds: float | None, limit: int | None = None
) -> Job:
    kind, parameters = parse_profile(profile)
    layout = Layout() if batch_seconds is None else Layout(batch_seconds=batch_seconds)
    request = Request(upstream.config, kind, parameters, layout, calibration_seconds=60)
    job = Job(folder / "manifest.jsonl", folder / name, request, upstream.device.type, limit)
    job.use(upstream)
    return job


def _enough(rows: Sequence[Row]) -> int:
    """How many rows are `DEVICE_PART_SECONDS`, or all."""
    return 1 + int(np.searchsorted(np.cumsum([row.duration for row in rows]), DEVICE_PART_SECONDS))


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


def _budget(trace: Path) -> dict[str, float]:
    """Seconds by what was done, from a trace: those of the thread of the model, and `beside it: ...` of all others."""
    found: dict[str, float] = {}
    for event in json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]:
        if event["ph"] == "X":
            name = event["name"] if event["tid"] == 0 else f"beside it: {event['name']}"
            found[name] = found.get(name, 0.0) + event["dur"] / 1e6
    return {name: round(seconds, 3) for name, seconds in found.items()}


def _peak_bytes() -> int:
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes if sys.platform == "darwin" else 1024 * kilobytes


# The forward alone


def _tuned(upstream: Upstream, batches: list[Waves]) -> tuple[str, Callable[[], None]]:
    """The fastest way through the model of several, and its name."""
    ways = _ways(upstream, batches)
    speeds = {}
    for name, (rows_alone, groups) in ways.items():
        part = _part(groups, TUNING_SECONDS if upstream.device.type == "cpu" else DEVICE_PART_SECONDS)
        try:
            # On a device all of it, as memory is got for each new shape.
            _forward(upstream, part[:1] if upstream.device.type == "cpu" else part, rows_alone)
            speeds[name] = _spent(lambda p=part, r=rows_alone: _forward(upstream, p, r), _seconds(part)).realtime  # type: ignore[misc]
        except RuntimeError as error:
            if not ran_out(error):
                raise
            messages.print(f"forward, {name}: out of memory")
            continue
        messages.print(f"forward, {name}: {speeds[name]} x real time")
    best = max(speeds, key=lambda name: speeds[name])
    rows_alone, groups = ways[best]
    return best, lambda: _forward(upstream, groups, rows_alone)


def _ways(upstream: Upstream, batches: list[Waves]) -> dict[str, tuple[bool, list[Waves]]]:
    """By name: whether rows run alone, and what goes into each forward."""
    everything = [wave for batch in batches for wave in batch]
    ways: dict[str, tuple[bool, list[Waves]]] = {}
    if upstream.rows_alone:
        ways["rows alone, a thread each"] = (True, [everything])
    if upstream.can_pad or not upstream.rows_alone:
        kind = "padded batches" if upstream.can_pad else "batches of equal length"
        ways[f"{kind} of the plan"] = (False, batches)
        ways[f"{kind}, a quarter of that"] = (
            False,
            [b[i : i + max(1, len(b) // 4)] for b in batches for i in range(0, len(b), max(1, len(b) // 4))],
        )
        if upstream.device.type != "cpu":
            # A device may want more at a time than the plan gives it.
            for times, name in ((2, "twice"), (4, "four times")):
                ways[f"{kind}, {name} that"] = (False, _merged(upstream, batches, times))
    ways["one by one"] = (False, [[wave] for wave in everything])
    return ways


def _merged(upstream: Upstream, batches: list[Waves], times: int) -> list[Waves]:
    """So many batches in one, of like lengths: of equal ones where the model cannot pad."""
    merged: list[Waves] = []
    count = 0
    for batch in sorted(batches, key=lambda batch: len(batch[0])):
        fits = upstream.can_pad or (merged and len(merged[-1][0]) == len(batch[0]))
        if merged and fits and count < times:
            merged[-1] = [*merged[-1], *batch]
            count += 1
        else:
            merged.append(batch)
            count = 1
    return merged


def _part(groups: list[Waves], seconds: float) -> list[Waves]:
    """Every so many-th group or wave, of about so many seconds, so that all lengths are in it."""
    every = max(1, int(_seconds(groups) / seconds))
    return [groups[0][::every]] if len(groups) == 1 else groups[::every]


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
        except (ImportError, UsageError) as error:
            found.append({"name": name, "absent": str(error)})
            continue
        size = sum(file.stat().st_size for file in place.iterdir())
        found.append({"name": name, **vars(spent), "bytes_per_second": round(size / total)})
        messages.print(f"{found[-1]}")
    return found


def _transformers_loop(rows: Sequence[Row], upstream: Upstream, place: Path) -> None:
    """The documented use of a Whisper encoder: features of 30 s, every hidden state, one file an utterance.

    Raises:
        UsageError: it is another model.
    """
    from transformers import WhisperFeatureExtractor

    encoder: Any = getattr(upstream, "encoder", None)
    if encoder is None:
        raise UsageError(f"this loop is for Whisper, and {upstream.config.id} is not one")
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
