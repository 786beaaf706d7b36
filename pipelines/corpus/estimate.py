"""What a corpus would take by profile, from what a cache says of itself, a trial segment, and given prices."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from featcache import codec as codecs
from featcache import layout
from featcache.blocks import BLOCK_BYTES, DEFAULT_GB
from featcache.errors import CacheError, UsageError
from featcache.geometry import SAMPLE_RATE
from featcache.lease import TTL_SECONDS
from featcache.rates import measured_rates
from featcache.sizes import profile_sizes
from featcache.spec import CacheSpec
from featcache.store import Cache
from featcache.transfer import PART_MIB
from pipelines.corpus.trial import SHARDS, Written, kind_of, write

# What obstore puts in one piece, and the size of its parts beyond: `chunk_size` of `obstore.put`.
PUT_PART = 5 << 20
# Speech that other profiles than the cache's own are fitted to, for how many bytes a frame of theirs has.
FIT_SECONDS = 12.0


@dataclass(frozen=True)
class Question:
    """What is asked. All prices are in dollars, and all of them and `realtime` are the user's.

    Attributes:
        hours: of speech.
        utterance_seconds: length of every utterance; 0 takes the cache's own lengths, again and again.
        segment_hours: what one `extract` run adds.
        taps, channels: 0 takes the cache's.
        realtime: seconds of speech that a GPU extracts in a second; 0 takes what the cache's log says.
        passes: of training over the whole corpus.
        put_dollars, get_dollars: for a million requests; LIST costs as PUT, HEAD as GET, DELETE nothing.
        block_cache_gb: of every reading machine; see `featcache.blocks`.
    """

    hours: float = 1e6
    utterance_seconds: float = 10.0
    segment_hours: float = 10_000.0
    taps: int = 0
    channels: int = 0
    gpus: int = 64
    realtime: float = 0.0
    passes: int = 10
    months: float = 1.0
    gpu_dollars: float = 2.0
    storage_dollars_tb_month: float = 23.0
    put_dollars: float = 5.0
    get_dollars: float = 0.4
    block_cache_gb: float = DEFAULT_GB


@dataclass(frozen=True)
class Figures:
    """A profile's line.

    Attributes:
        bits: per value, from the calibration.
        bytes: all included; `shard_bytes` of it are codes.
        objects: by kind, see `pipelines.corpus.trial`.
        requests: of extracting straight to S3, by verb, parts of large objects each.
        push_requests: PUT requests of `featcache push` instead.
        pass_requests: GET and HEAD requests of one pass in random order that reads from S3 by blocks.
        pass_bytes: what these bring.
        pull_requests: GET requests of `featcache pull`, which copies all of it once.
    """

    profile: str
    bits: float
    bytes: int
    shard_bytes: int
    shards: int
    objects: dict[str, int]
    requests: dict[str, int]
    push_requests: int
    pass_requests: int
    pass_bytes: int
    pull_requests: int
    write_dollars: float
    storage_dollars: float
    pass_dollars: float

    @property
    def dollars(self) -> float:
        """Writing and keeping; passes come on top."""
        return self.write_dollars + self.storage_dollars


@dataclass(frozen=True)
class Estimate:
    """The answer; `device` is what the rate was measured on, or `given`."""

    question: Question
    upstream: str
    taps: int
    channels: int
    frame_rate: float
    utterances: int
    segments: int
    frames: int
    device: str
    realtime: float
    gpu_hours: float
    gpu_dollars: float
    profiles: list[Figures]

    @property
    def days(self) -> float:
        return self.gpu_hours / self.question.gpus / 24


def estimate(cache: Cache, question: Question) -> Estimate:
    """What the corpus takes in every profile that the cache's calibration has tried.

    Raises:
        UsageError: there is no rate of extraction, neither given nor measured.
        CacheError: the cache is empty.
    """
    device, realtime = ("given", question.realtime) if question.realtime else _measured(cache)
    samples, segments = _lengths(cache, question)
    spec = _spec_of(cache, question)
    found = []
    written: Written | None = None
    codec_of = _Codecs(cache)
    for size in profile_sizes([int(samples[0])], cache.spec):
        codec = codec_of(size.profile)
        if codec is None:
            continue
        # Before packing, a frame's bytes grow with its values, but for a few.
        factor = len(spec.taps) * spec.channels / (codec.taps * codec.channels)
        written = write(cache, spec, codec, samples, math.ceil(codec.bytes_per_frame * factor)).times(segments)
        found.append(_figures(size.profile, size.bits_per_value, written, spec, question, realtime))
    if written is None:
        raise CacheError(f"no profile of {cache.path} can be used: see `featcache info {cache.path}`")
    hours = written.utterances * float(samples.mean()) / SAMPLE_RATE / 3600
    gpu_hours = hours / realtime
    return Estimate(
        question, cache.upstream, len(spec.taps), spec.channels, spec.geometry.frame_rate, written.utterances, segments,
        written.frames, device, realtime, gpu_hours, gpu_hours * question.gpu_dollars, found,
    )  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """Objects and bytes of one kind, as predicted and as they lie there."""

    kind: str
    objects: int
    objects_held: int
    bytes: int
    bytes_held: int


def check(cache: Cache) -> list[Compared]:
    """The same arithmetic for what the cache itself holds, from its lengths and its calibration; then the sum.

    Raises:
        CacheError: the cache is empty.
    """
    samples, spec = _own_lengths(cache), cache.spec
    per_segment = math.ceil(len(samples) / len(cache.segments))
    codec = cache.codec
    written = write(cache, spec, codec, samples[:per_segment], codec.bytes_per_frame).times(len(cache.segments))
    codes = _code_bytes(int(spec.geometry.frames_of(samples).sum()), spec, spec.bits_per_value)
    objects, sizes = dict(written.objects), {**written.bytes, SHARDS: codes}
    held: dict[str, list[int]] = {}
    for key in cache.storage.list_keys():
        if not key.startswith(f"{layout.LOG}/"):
            held.setdefault(kind_of(key), []).append(cache.storage.size(key) or 0)
    rows = [Compared(kind, objects[kind], len(of), sizes[kind], sum(of)) for kind, of in sorted(held.items())]
    columns = zip(*((r.objects, r.objects_held, r.bytes, r.bytes_held) for r in rows), strict=True)
    return [*rows, Compared("in all", *map(sum, columns))]


def block_requests(frames: int, bytes_per_frame: float, chunk_frames: int, block: int = BLOCK_BYTES) -> float:
    """Blocks, in the mean, that a row of so many frames lies in, wherever its first frame lies.

    A row is read in whole chunks, and chunks in whole blocks.
    """
    chunks = 1 + (frames - 1) / chunk_frames
    return 1 + (chunks * chunk_frames * bytes_per_frame - 1) / block


def put_requests(size: float, part: int) -> int:
    """Requests to put an object: one, or a beginning, its parts and an end."""
    return 1 if size <= part else math.ceil(size / part) + 2


def _figures(
    profile: str, bits: float, written: Written, spec: CacheSpec, question: Question, realtime: float
) -> Figures:
    shard_bytes = _code_bytes(written.frames, spec, bits)
    # Of several planes, one holds nearly all.
    of_shard = shard_bytes / max(written.shards, 1)
    requests = dict(written.requests)
    requests["PUT"] += written.shards * (put_requests(of_shard, PUT_PART) - 1)
    for verb, count in _renewals(written, spec, realtime).items():
        requests[verb] += count
    objects = sum(written.objects.values())
    size = shard_bytes + sum(written.bytes.values())
    part = PART_MIB << 20
    per_pass, blocks = _pass(written, spec, shard_bytes, question)
    paid = question.put_dollars * (requests["PUT"] + requests["LIST"])
    paid += question.get_dollars * (requests["GET"] + requests["HEAD"])
    return Figures(
        profile=profile,
        bits=bits,
        bytes=size,
        shard_bytes=shard_bytes,
        shards=written.shards,
        objects=written.objects,
        requests=requests,
        push_requests=objects + written.shards * (put_requests(of_shard, part) - 1),
        pass_requests=per_pass,
        pass_bytes=blocks * BLOCK_BYTES,
        pull_requests=objects + written.shards * (math.ceil(of_shard / part) - 1),
        write_dollars=paid / 1e6,
        storage_dollars=size / 1e12 * question.storage_dollars_tb_month * question.months,
        pass_dollars=question.get_dollars * per_pass / 1e6,
    )


def _pass(written: Written, spec: CacheSpec, shard_bytes: int, question: Question) -> tuple[int, int]:
    """Requests of one pass in random order, and how many of them bring a block."""
    kept = question.block_cache_gb * 1e9
    frames = written.frames / max(written.rows, 1)
    rows = written.rows * block_requests(
        max(round(frames), 1), shard_bytes / max(written.frames, 1), spec.layout.chunk_frames
    )
    # A shard's own index is a block too. Either all of them stay on the local disk, or a row's has to be fetched.
    indices = written.shards if written.shards * BLOCK_BYTES <= kept else written.rows
    blocks = round(rows) + indices
    if shard_bytes <= kept:
        blocks = min(blocks, math.ceil(shard_bytes / BLOCK_BYTES) + written.shards)
    # And each shard is asked for its size once.
    return blocks + written.shards, blocks


def _renewals(written: Written, spec: CacheSpec, realtime: float) -> dict[str, int]:
    """A lease is read and written anew every third of its time while its shard is computed."""
    seconds = written.frames / max(written.shards, 1) / spec.geometry.frame_rate / realtime
    count = written.shards * int(seconds / (TTL_SECONDS / 3))
    return {"GET": count, "PUT": count}


def _code_bytes(frames: int, spec: CacheSpec, bits: float) -> int:
    return int(frames * len(spec.taps) * spec.channels * bits / 8)


def _lengths(cache: Cache, question: Question) -> tuple[np.ndarray, int]:
    """Samples of the utterances of a segment, `(utterances,)` int64, and how many such segments there are."""
    segments = max(1, math.ceil(question.hours / question.segment_hours))
    seconds = question.hours * 3600 / segments
    if question.utterance_seconds:
        count = max(1, round(seconds / question.utterance_seconds))
        return np.full(count, round(question.utterance_seconds * SAMPLE_RATE), np.int64), segments
    own = _own_lengths(cache)
    return np.resize(own, max(1, round(seconds * SAMPLE_RATE / float(own.mean())))), segments


def _own_lengths(cache: Cache) -> np.ndarray:
    if not len(cache):
        raise CacheError(f"{cache.path} holds no utterance: give a cache that does")
    return np.concatenate([segment.column("samples") for segment in cache.segments])


def _spec_of(cache: Cache, question: Question) -> CacheSpec:
    taps = tuple(map(str, range(question.taps))) if question.taps else cache.spec.taps
    return cache.spec.model_copy(update={"taps": taps, "channels": question.channels or cache.spec.channels})


class _Codecs:
    """Codecs by profile: the cache's own, the others fitted to a little of what it holds."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    @cached_property
    def _fits(self) -> codecs.Fits:
        """Of utterances spread evenly over the cache, `FIT_SECONDS` in all."""
        cache = self._cache
        usable = np.flatnonzero(cache.lengths)
        mean = float(cache.lengths[usable].mean()) / cache.frame_rate
        count = min(len(usable), max(2, math.ceil(FIT_SECONDS / mean)))
        return codecs.Fits([cache.read(int(usable[i * len(usable) // count])) for i in range(count)])

    def __call__(self, profile: str) -> codecs.Codec | None:
        """None where the profile cannot be fitted."""
        cache = self._cache
        if profile == cache.spec.profile_text:
            return cache.codec
        name, parameters = codecs.parse_profile(profile)
        kind = codecs.profile_class(name)
        try:
            calibration = self._fits(kind, parameters)
        except UsageError:
            return None
        return codecs.build(name, kind.version, len(cache.taps), cache.channels, parameters, calibration)


def _measured(cache: Cache) -> tuple[str, float]:
    """The device and its rate that the cache's log tells of."""
    for device, rate in measured_rates(cache.storage).items():
        if rate > 0:
            return device, rate
    raise UsageError(f"{cache.path} has no log of how fast it was extracted: give the rate with --gpu-realtime")
