"""Codecs side by side on the same real activations: bits, error per tap, speed.

Speeds are of one core, in megabytes of float32 a second (a quarter of it are million values). What encoding costs is
also given as a share of the CPU time that the model took for the same speech. Errors are NMSE per tap, each channel by
its variance, on utterances that no calibration has seen.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from rich import box
from rich.console import Console
from rich.table import Table

from featcache import layout
from featcache.audio import load
from featcache.console import table_console
from featcache.crew import one_thread
from featcache.errors import UsageError
from featcache.index import id_hash
from featcache.manifest import Row, read, resolve
from featcache.shardfile import ShardFiles
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig
from featcache.upstreams import load as load_upstream
from pipelines.bench.methods import Method, Profile, Rows, methods

READS = 400
# How often rows are encoded and decoded.
TIMES = 3
# Utterances that are read and decoded together, as training does.
BATCH = 8
messages = Console(stderr=True)


def compare(manifest: Path, upstream: str, seconds: float, only: Sequence[str] = ()) -> dict[str, Any]:
    """The comparison as JSON: `rows[]`, and `reading[]`, what a reader of whole utterances gets.

    Raises:
        UsageError: no row has such a name.
    """
    chosen = [m for m in methods() if not only or any(m.name.startswith(name) for name in only)]
    if not chosen:
        raise UsageError(f"no codec's name begins with {only[0]!r}: leave --only out to see all")
    (calibration, _), (held_out, forward) = activations(manifest, upstream, seconds)
    with one_thread():
        rows = [_measure(method, calibration, held_out, forward) for method in chosen]
        profiles = [m for m in chosen if isinstance(m, Profile) and not m.missing]
        reading = _reading(profiles, held_out)
    return {
        "upstream": upstream,
        "values": sum(row.size for row in held_out),
        "calibration_frames": sum(map(len, calibration)),
        "forward_s": round(forward, 2),
        "rows": rows,
        "reading": reading,
    }


def activations(manifest: Path, upstream: str, seconds: float) -> list[tuple[list[np.ndarray], float]]:
    """Activations to calibrate on (twice `seconds`) and to measure on, each with the CPU seconds that the model took.

    No utterance is in both.
    """
    rows = sorted((row for row in read(manifest) if row.duration > 0.3), key=lambda row: (id_hash(row.id), row.id))
    model = load_upstream(UpstreamConfig(id=upstream))
    messages.print(f"running {upstream} on {3 * seconds:.0f} s of speech")
    sets: list[tuple[list[np.ndarray], float]] = []
    at = 0
    for wanted in (2 * seconds, seconds):
        found: list[np.ndarray] = []
        total = spent = 0.0
        while total < wanted and at < len(rows):
            samples = _samples(model, rows[at], manifest)
            outputs, took = _timed(partial(model.forward, [samples]))
            found.append(np.ascontiguousarray(outputs[0], np.float32))
            total += rows[at].duration
            spent += took
            at += 1
        sets.append((found, spent))
    if not sets[1][0]:
        raise UsageError(f"{manifest} holds too little speech for {3 * seconds:.0f} s: lower --seconds")
    return sets


def _samples(model: Any, row: Row, manifest: Path) -> np.ndarray:
    samples = load(resolve(row, manifest), offset=row.offset, duration=row.duration)
    return samples if model.window_samples is None else samples[: model.window_samples]


def _measure(method: Method, calibration: Rows, rows: Rows, forward: float) -> dict[str, Any]:
    if method.missing:
        messages.print(f"{method.name}: package {method.missing} is not installed")
        return {"name": method.name, "absent": method.missing}
    method.fit(calibration)
    values = sum(row.size for row in rows)
    method.decode(method.encode(rows[:1])[1])  # compiles kernels
    (size, encoded), encoding = _often(lambda: method.encode(rows))
    decoded, decoding = _often(lambda: method.decode(encoded))
    variance = np.concatenate(rows).var(axis=0)
    total = sum(np.square(a - b, dtype=np.float64).sum(axis=0) for a, b in zip(rows, decoded, strict=True))
    nmse = (total / variance / sum(map(len, rows))).mean(axis=1)
    row = {
        "name": method.name,
        "bits_per_value": round(8 * size / values, 4),
        "snr_db": round(-10 * float(np.log10(nmse.mean())), 2),
        "worst_tap_snr_db": round(-10 * float(np.log10(nmse.max())), 2),
        "nmse_per_tap": [float(f"{n:.4g}") for n in nmse],
        "encode_mb_s": round(4e-6 * values / encoding, 1),
        "encode_share": round(encoding / forward, 4),
        "decode_mb_s": round(4e-6 * values / decoding, 1),
    }
    messages.print(f"{method.name}: {row['bits_per_value']} bits, {row['snr_db']} dB")
    return row


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Seconds of this process's CPU, which other work on the machine does not stretch."""
    began = time.process_time()
    result = work()
    return result, max(time.process_time() - began, 1e-9)


def _often(work: Callable[[], Any]) -> tuple[Any, float]:
    """As `_timed`, the median of several times: now and then the machine takes twice as long over one."""
    found = [_timed(work) for _ in range(TIMES)]
    return found[-1][0], statistics.median(seconds for _, seconds in found)


@dataclass(frozen=True)
class _Stored:
    """A profile's planes on disk: open with zarr-python, and as `Cache` reads them."""

    profile: Profile
    arrays: Any
    files: Mapping[str, tuple[ShardFiles | None, Path]]

    def fetch(self, first: int, frames: int, directly: bool) -> dict[str, np.ndarray]:
        """The planes of an utterance."""
        found: dict[str, np.ndarray] = {}
        codec = self.profile.codec
        for plane in codec.planes:
            part = codec.needed(plane.name, found, frames)
            files, path = self.files[plane.name]
            if not part:
                found[plane.name] = np.zeros((0, *plane.frame_shape), plane.dtype)
            elif directly and files is not None:
                found[plane.name] = files.read(path, first + part.start, first + part.stop)
            else:
                found[plane.name] = np.asarray(self.arrays[plane.name][first + part.start : first + part.stop])
        return found

    def fetch_all(self, places: Sequence[tuple[int, int]], directly: bool) -> dict[str, np.ndarray]:
        """The planes of utterances (first frame and frames of each), end to end."""
        found = [self.fetch(*place, directly) for place in places]
        return {name: np.concatenate([planes[name] for planes in found]) for name in found[0]}

    def decode(self, planes: Mapping[str, np.ndarray], lengths: Sequence[int]) -> None:
        codec = self.profile.codec
        codec.decode({name: torch.from_numpy(p) for name, p in planes.items()}, lengths, range(codec.taps))


def _reading(profiles: Sequence[Profile], rows: Rows) -> list[dict[str, Any]]:
    """Reading batches of utterances: codes with zarr-python, floats with it, and as `Cache` reads."""
    lengths = [len(row) for row in rows]
    starts = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    order = np.random.default_rng(0).integers(0, len(rows), READS).tolist()
    batches = [order[at : at + BATCH] for at in range(0, READS, BATCH)]
    values = sum(rows[i].size for i in order)
    with tempfile.TemporaryDirectory() as folder, zarr.config.set({"threading.max_workers": 1}):
        opened = [_write(p, Path(folder) / str(n), int(starts[-1])) for n, p in enumerate(profiles)]
        spent = {stored.profile.name: np.zeros(3) for stored in opened}
        # In turns, so that whatever else the machine does meets all of them alike.
        for batch in batches:
            places = [(starts[i], lengths[i]) for i in batch]
            for stored in opened:
                planes, by_zarr = _timed(partial(stored.fetch_all, places, False))
                _, directly = _timed(partial(stored.fetch_all, places, True))
                _, decoding = _timed(partial(stored.decode, planes, [frames for _, frames in places]))
                spent[stored.profile.name] += (by_zarr, by_zarr + decoding, directly + decoding)
    keys = ("zarr_codes_mb_s", "zarr_mb_s", "cache_mb_s")
    return [
        {"name": name, **{key: round(4e-6 * values / s, 1) for key, s in zip(keys, seconds, strict=True)}}
        for name, seconds in spent.items()
    ]


def _write(profile: Profile, folder: Path, frames: int) -> _Stored:
    """The planes of a profile as a segment on disk, of one shard."""
    padded = frames + -frames % Layout().chunk_frames
    files: layout.LargeFiles = {**layout.render_segment("s", profile.codec, Layout(), 1, padded)}
    for plane in profile.codec.planes:
        files[layout.shard_key("s", plane, 0)] = profile.shards[plane.name]
    for key, data in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    places = {p.name: folder / layout.shard_key("s", p, 0) for p in profile.codec.planes}
    metadata = {name: (folder / "s" / name / "zarr.json").read_bytes() for name in places}
    direct = {name: (ShardFiles.of(metadata[name]), place) for name, place in places.items()}
    return _Stored(profile, zarr.open_group(folder / "s", mode="r"), direct)


def print_table(result: dict[str, Any]) -> None:
    """The comparison for people, on standard output."""
    table = Table(
        box=box.SIMPLE_HEAD,
        caption="MB/s of float32 on one core. codes: zarr-python reads them; zarr: and they are decoded; read: as "
        "Cache does. % of model: CPU time of encoding by that of it",
        caption_justify="left",
    )
    table.add_column("codec", overflow="fold")
    for column in ("bits", "dB", "worst", "encode", "% of model", "decode", "codes", "zarr", "read"):
        table.add_column(column, justify="right")
    reading = {row["name"]: row for row in result["reading"]}
    for row in result["rows"]:
        if "absent" in row:
            table.add_row(row["name"], f"absent: {row['absent']}", *[""] * 8)
            continue
        speeds = reading.get(row["name"], {})
        table.add_row(
            row["name"],
            *(str(row[key]) for key in ("bits_per_value", "snr_db", "worst_tap_snr_db", "encode_mb_s")),
            f"{100 * row['encode_share']:.1f}",
            str(row["decode_mb_s"]),
            *(str(speeds.get(key, "")) for key in ("zarr_codes_mb_s", "zarr_mb_s", "cache_mb_s")),
        )
    table_console().print(table)
    taps = Table(title="SNR of each tap, dB", title_justify="left", box=box.SIMPLE_HEAD)
    taps.add_column("codec", overflow="fold")
    found = [row for row in result["rows"] if "nmse_per_tap" in row]
    for tap in range(len(found[0]["nmse_per_tap"]) if found else 0):
        taps.add_column(str(tap), justify="right")
    for row in found:
        decibels = (-10 * np.log10(max(nmse, 1e-12)) for nmse in row["nmse_per_tap"])
        taps.add_row(row["name"], *(f"{decibel:.1f}" for decibel in decibels))
    table_console().print(taps)
