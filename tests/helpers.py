"""Small real caches for tests, written by the same code as large ones."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import soundfile

from featcache import codec as codecs
from featcache import manifest
from featcache.geometry import Geometry
from featcache.ledger import ShardRecord
from featcache.plan import make_plan
from featcache.spec import WINDOW_RULE, CacheSpec, Layout, encoding_id, values_id
from featcache.storage import LocalStorage
from featcache.writer import SegmentWriter, create_cache

GEOMETRY = Geometry.whisper()

# Up to Python 3.12 it is installed with all that tests need, and its absence is a failure.
needs_beam = pytest.mark.skipif(
    sys.version_info >= (3, 13) and importlib.util.find_spec("flashlight") is None,
    reason="flashlight-text has no wheels for this Python",
)


def make_spec(
    taps: int,
    channels: int,
    calibration: codecs.Arrays,
    profile: str = "fp16",
    layout: Layout | None = None,
    identity: Mapping[str, Any] | None = None,
) -> CacheSpec:
    names = tuple(str(i) for i in range(taps))
    who = dict(identity or {"family": "test", "weights": "0" * 64})
    audio = {"version": 1}
    kind = codecs.profile_class(profile)
    return CacheSpec(
        upstream={"id": "test:none"},
        identity=who,
        audio=audio,
        window_rule=WINDOW_RULE,
        geometry=GEOMETRY,
        can_pad=True,
        taps=names,
        channels=channels,
        layout=layout or Layout(chunk_frames=16, shard_frames=256),
        profile=profile,
        profile_version=kind.version,
        parameters={},
        bits_per_value=8.0,
        values_id=values_id(who, audio, names),
        encoding_id=encoding_id(profile, kind.version, {}, calibration),
    )


def make_cache(
    path: str | Path,
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, Mapping[str, Any]] | None = None,
    profile: str = "fp16",
    *,
    quarantine: Mapping[str, str] | None = None,
    layout: Layout | None = None,
    identity: Mapping[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
) -> Path:
    """A sealed cache of one segment.

    `features` maps ids to float32 `(frames, taps, channels)`, `labels` ids to columns, `quarantine` ids
    (of `features`) to the reason why their values are not stored.
    """
    rows = list(features.values())
    taps, channels = rows[0].shape[1:]
    parameters = parameters or {}
    calibration = codecs.profile_class(profile).fit(rows, parameters)
    spec = make_spec(taps, channels, calibration, profile, layout, identity)
    encoding = encoding_id(profile, spec.profile_version, parameters, calibration)
    spec = spec.model_copy(update={"parameters": parameters, "encoding_id": encoding})
    codec = codecs.build(profile, spec.profile_version, taps, channels, parameters, calibration)
    storage = LocalStorage(path)
    create_cache(storage, spec, calibration)
    samples = [len(row) * GEOMETRY.hop for row in rows]
    plan = make_plan(list(features), samples, spec, codec.bytes_per_frame)
    writer = SegmentWriter(storage, spec, codec, "segments/000000", plan)
    writer.begin()
    quarantine = quarantine or {}
    for shard in range(plan.shards):
        block = writer.new_block()
        left_out = []
        for row in plan.shard_rows(shard):
            utterance_id = plan.ids[plan.utterance[row]]
            if utterance_id in quarantine:
                left_out.append({"row": row, "id": utterance_id, "reason": quarantine[utterance_id]})
                continue
            at = int(plan.position[row]) - shard * plan.shard_frames
            keep = int(plan.keep[row])
            first = int(plan.start[row]) // GEOMETRY.hop + keep
            piece = features[utterance_id][first : first + int(plan.frames[row])]
            block.put(codec.encode(piece).planes, at)
        proofs = writer.write_files(writer.render(block, shard))
        span = plan.shard_rows(shard)
        audio = ["" if plan.ids[plan.utterance[r]] in quarantine else f"{r:064x}" for r in span]
        writer.record(
            ShardRecord.model_validate(
                {
                    "shard": shard,
                    "files": proofs,
                    "first": span.start,
                    "audio": audio,
                    "quarantined": left_out,
                }
            )
        )
    columns = sorted({name for row in (labels or {}).values() for name in row})
    writer.seal({c: [(labels or {}).get(i, {}).get(c) for i in features] for c in columns})
    return Path(path)


def make_speech(folder: Path, count: int, seconds: float = 0.5, level: float = 0.3) -> Path:
    """A manifest of `count` noises of different lengths, with a speaker each of three, and their recordings."""
    rng = np.random.default_rng(count)
    rows = []
    for i in range(count):
        samples = int(16_000 * seconds) + 160 * i
        soundfile.write(folder / f"{i}.wav", rng.uniform(-level, level, samples), 16_000, "PCM_16")
        rows.append(
            manifest.Row(
                id=f"u{i}",
                audio_filepath=f"{i}.wav",
                duration=samples / 16_000,
                text=f"word {i}",
                labels={"speaker": f"s{i % 3}", "n": i},
            )
        )
    manifest.write(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a cache but its log of times, and the names of half-written ones."""
    return {key: (path / key).read_bytes() for key in LocalStorage(path).list_keys() if not key.startswith("log/")} | {
        str(p.relative_to(path)): b"" for p in path.rglob(".tmp-*")
    }


@dataclass(frozen=True)
class Output:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


def run_cli(*arguments: object) -> Output:
    """The command line `featcache`, in this process: a start of its own takes seconds."""
    from featcache import cli

    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["featcache", *map(str, arguments)]),
    ):
        try:
            cli.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
    return Output(status, out.getvalue(), err.getvalue())
