"""What goes wrong in a long extraction, done on purpose: kills, flipped bytes, bad recordings."""

from __future__ import annotations

import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featcache.errors import UsageError
from featcache.job import Job, Request
from featcache.manifest import absolute, read, write
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig
from pipelines.bench.faults.flips import flip_bytes
from pipelines.bench.faults.inputs import try_bad_inputs
from pipelines.bench.faults.kills import kill_and_resume

LONGEST_SECONDS = 4.0


@dataclass(frozen=True)
class Plan:
    """How much of each; the same seed draws the same times (in shares of the job) and bytes."""

    kills: int = 50
    flips: int = 1000
    long_seconds: float = 600.0
    utterances: int = 24
    seed: int = 1


def run(manifest: Path, upstream: str, plan: Plan) -> dict[str, Any]:
    """All faults on the first short utterances of a manifest; the counts, and what went otherwise than it should.

    Raises:
        UsageError: the manifest holds too few short utterances.
    """
    rows = [row for row in read(manifest) if 0 < row.duration <= LONGEST_SECONDS][: plan.utterances]
    if len(rows) < plan.utterances:
        raise UsageError(
            f"{manifest} holds {len(rows)} utterances of up to {LONGEST_SECONDS:g} s where {plan.utterances} are "
            "asked for: lower --utterances"
        )
    request = Request(
        UpstreamConfig(id=upstream),
        "int8",
        layout=Layout(chunk_frames=32, shard_frames=256, batch_seconds=8),
        calibration_seconds=30,
    )
    chance = random.Random(plan.seed)
    began, processor = time.monotonic(), time.process_time()
    with tempfile.TemporaryDirectory(prefix="featcache-faults-") as name:
        folder = Path(name)
        speech = folder / "manifest.jsonl"
        write(speech, absolute(rows, manifest))
        job = Job(speech, folder / "reference", request)
        job.extract()
        reference, model = folder / "reference", job.upstream
        found = {
            "upstream": upstream,
            "utterances": len(rows),
            "shards": sum(segment.seal.shards for segment in job.cache.segments),
            **kill_and_resume(speech, reference, request, model, plan.kills, chance, folder),
            **flip_bytes(reference, plan.flips, chance, folder),
            **try_bad_inputs(rows[:4], manifest, request, model, plan.long_seconds, folder),
        }
    spent = time.process_time() - processor + found.pop("cpu_seconds_of_killed", 0.0)
    return found | {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(spent, 1)}
