"""Compare what a cache holds with what the live model gives, for some utterances drawn at random."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np

from featcache.diff import nmse
from featcache.errors import JobError
from featcache.index import digest_of_windows
from featcache.job import Job, Request
from featcache.manifest import Row
from featcache.plan import make_plan
from featcache.reading import load_window, row_samples
from featcache.upstreams import UpstreamConfig
from featcache.verify import Problem

# A GPU may round otherwise in another batch; a wrong recording, tap or scale is off by far more.
TOLERANCE = 1e-4
OTHER_AUDIO = "has another recording, or another part of one, in the manifest than was extracted"


def recompute(
    manifest: str | Path,
    place: str | Path,
    count: int,
    device: str = "cpu",
    seed: int | None = None,
    upstream: UpstreamConfig | None = None,
) -> list[Problem]:
    """Run the model over `count` random utterances and compare codes; what differs, as problems.

    Args:
        seed: draws the same utterances again; others each time where it is None.
        upstream: names the cache's model where that was moved since.

    Raises:
        MismatchError: the installed model gives other values than the cache was made for.
        JobError: the manifest holds none of the cache's usable utterances.
    """
    job = Job(manifest, place, Request(upstream), device)
    job.check_request()
    job.check_values()
    lengths = job.cache.lengths
    known = {row.id: row for row in job.rows}
    usable = [i for row, i in enumerate(job.cache.ids) if lengths[row] > 0 and i in known]
    if not usable:
        raise JobError(f"{manifest} holds no usable utterance of {place}: give the manifest that it was made from")
    chosen = random.Random(seed).sample(usable, min(count, len(usable)))
    problems = [(utterance_id, _compare(job, known[utterance_id])) for utterance_id in chosen]
    return [Problem(f"(utterance {utterance_id})", what, mendable=False) for utterance_id, what in problems if what]


def _compare(job: Job, row: Row) -> str:
    """What is wrong with the stored codes of an utterance; "" where nothing is."""
    cache = job.cache
    segment = next(segment for segment in cache.segments if segment.find(row.id) is not None)
    at = segment.find(row.id) or 0
    if int(segment.column("samples")[at]) != row_samples(row):
        return OTHER_AUDIO
    plan = make_plan([row.id], [row_samples(row)], job.spec, 1)
    windows = [load_window(row, job.manifest, plan, planned) for planned in range(plan.rows)]
    waves = [pcm.samples for pcm in windows if pcm.samples is not None]
    if len(waves) < plan.rows:
        return f"cannot be read any more: {next(pcm.reason for pcm in windows if pcm.reason)}"
    # One after the other, as far apart from the batches of the plan as it can be.
    outputs = [job.upstream.forward([wave])[0] for wave in waves]
    pieces = [outputs[i][plan.keep[i] : plan.keep[i] + plan.frames[i]] for i in range(plan.rows)]
    encoded = [cache.codec.complete(rest().planes) for rest in cache.codec.encode_rows(pieces)]
    codes = {name: np.concatenate([planes[name] for planes in encoded]) for name in encoded[0]}
    stored = segment.read(at)
    if all(np.array_equal(stored[name], codes[name]) for name in codes if len(stored[name])):
        return ""
    error = nmse(cache.codec.decode_row(codes, len(codes[cache.codec.planes[0].name])), cache.read(row.id))
    if error <= TOLERANCE:
        return ""
    # Only now: a decoder of another version may round otherwise, which is no harm.
    digest = digest_of_windows([bytes.fromhex(pcm.digest) for pcm in windows])
    same = digest == segment.column("audio_sha256")[at].tobytes()
    return f"is not what the model gives (NMSE {error:.2g})" if same else OTHER_AUDIO
