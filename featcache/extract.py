"""Run a plan: read -> forward -> encode -> write shard -> ledger record, all at the same time.

Three stages joined by bounded queues: a thread reads audio and takes the shards' leases, this thread runs
the model, a thread encodes and writes. Data goes forward only; a failure in any stage stops all of them.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from featcache.activations import Activations, begin_rows
from featcache.codec import Codec
from featcache.errors import JobError
from featcache.geometry import SAMPLE_RATE
from featcache.lease import Leases
from featcache.ledger import Quarantined, Saturated
from featcache.manifest import Row
from featcache.memory import REMEDY, ran_out
from featcache.plan import Plan
from featcache.reading import Pcm, load_window
from featcache.shards import finish, leased
from featcache.spans import Spans
from featcache.upstreams import Upstream
from featcache.upstreams.base import Begin
from featcache.writer import SegmentWriter

READERS = 2
QUEUED_BATCHES = 2
# Batches in the model at a time: the rows of the next one take the threads that the last rows of one leave idle.
BEGUN_BATCHES = 2

Item = TypeVar("Item")


@dataclass
class Done:
    """What a run did, for its report."""

    shards: int = 0
    seconds: float = 0.0
    bytes: int = 0
    saturated: int = 0
    quarantined: list[Quarantined] = field(default_factory=list)
    # Shards that are not finished, since they are other parts'.
    left_to_others: int = 0

    def add(self, other: Done) -> None:
        """Count what another run did as well."""
        self.shards += other.shards
        self.seconds += other.seconds
        self.bytes += other.bytes
        self.saturated += other.saturated
        self.quarantined += other.quarantined


@dataclass(frozen=True)
class _Read:
    """A batch with its samples; `last` where it ends its shard."""

    shard: int
    rows: list[int]
    audio: list[Pcm]
    last: bool


@dataclass(frozen=True)
class _Computed:
    """Activations (or the reason against them) of a batch's rows."""

    shard: int
    rows: list[int]
    audio: list[Pcm]
    features: list[Activations | None]
    last: bool


class _Pipe:
    """Queues that give up waiting as soon as any stage has failed."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.error: BaseException | None = None

    def fail(self, error: BaseException) -> None:
        if self.error is None:
            self.error = error
        self.stop.set()

    def put(self, target: queue.Queue[Item | None], item: Item | None) -> None:
        while not self.stop.is_set():
            try:
                return target.put(item, timeout=0.2)
            except queue.Full:
                continue

    def get(self, source: queue.Queue[Item | None]) -> Iterator[Item]:
        while not self.stop.is_set():
            try:
                item = source.get(timeout=0.2)
            except queue.Empty:
                continue
            if item is None:
                return
            yield item

    def run(self, stage: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                stage()
            except BaseException as error:
                self.fail(error)

        thread = threading.Thread(target=guarded, name=stage.__name__, daemon=True)
        thread.start()
        return thread


def run_shards(
    writer: SegmentWriter,
    rows: Sequence[Row],
    manifest: Path,
    upstream: Upstream,
    shards: Sequence[int],
    on_progress: Callable[[float, int], None] = lambda seconds, written: None,
    strict: bool = False,
    spans: Spans | None = None,
) -> Done:
    """Compute and record these shards of a segment; returns when all are recorded, by us or by others.

    Args:
        rows: the manifest's rows, one for each utterance of the plan.
        on_progress: called with the seconds of audio computed and the bytes written since the last call.
        strict: stop at the first row that cannot be used.
        spans: gets what the stages did, and when; made by the calling thread.

    Raises:
        JobError: no space, lost lease, out of memory, or a row that cannot be used and `strict`.
    """
    plan = writer.plan
    done = Done()
    pipe = _Pipe()
    spans = spans or Spans(enabled=False)
    leases = Leases(writer.storage)
    loaded: queue.Queue[_Read | None] = queue.Queue(QUEUED_BATCHES)
    computed: queue.Queue[_Computed | None] = queue.Queue(QUEUED_BATCHES)

    def read() -> None:
        with ThreadPoolExecutor(READERS, "read") as pool:
            for shard in leased(writer, leases, shards, pipe.stop.is_set):
                batches = list(plan.batches(shard))
                if not batches:
                    pipe.put(loaded, _Read(shard, [], [], True))
                for number, batch in enumerate(batches):
                    with spans.span("read"):
                        audio = list(
                            pool.map(lambda r: load_window(rows[int(plan.utterance[r])], manifest, plan, r), batch)
                        )
                    pipe.put(loaded, _Read(shard, batch, audio, number + 1 == len(batches)))
        pipe.put(loaded, None)

    def write() -> None:
        # The forward passes have the cores: a product of the codec that is shared out waits for them in every call.
        torch.set_num_threads(1)
        state: _ShardState | None = None
        for batch in pipe.get(computed):
            if state is None or state.shard != batch.shard:
                state = _ShardState(batch.shard, writer)
                for row in state.span:
                    if plan.frames[row] <= 0:
                        state.leave_out(plan, row, _why_no_frames(rows[int(plan.utterance[row])], manifest, plan, row))
            with spans.span("encode"):
                _encode(writer, batch, state, strict)
            on_progress(plan.model_seconds(batch.rows), 0)
            if batch.last:
                with spans.span("write"):
                    written = _finish(writer, leases, state, strict)
                on_progress(0.0, written)
                done.shards += 1
                done.bytes += written
                done.seconds += state.seconds
                done.saturated += sum(found.values for found in state.saturated)
                done.quarantined += state.quarantined

    threads: list[threading.Thread] = []
    try:
        for stage in (read, write):
            threads.append(pipe.run(stage))
        with upstream.overlapping() as begin:
            begun: deque[tuple[_Read, Callable[[], list[Activations]]]] = deque()
            for item in spans.each("wait for audio", pipe.get(loaded)):
                with _memory_explained(plan), spans.span("forward"):
                    begun.append((item, _begun(plan, writer.codec, upstream, item, begin, spans)))
                # The last batch of a shard waits for none: the next shard may be another process's, which may
                # be waiting for ours.
                while begun and (item.last or len(begun) >= BEGUN_BATCHES):
                    ended = _ended(plan, *begun.popleft())
                    with spans.span("wait for the writer"):
                        pipe.put(computed, ended)
        pipe.put(computed, None)
    except BaseException as error:
        pipe.fail(error)
    finally:
        try:
            with spans.span("wait for the writer"):
                for thread in threads:
                    thread.join()
        finally:
            leases.close()
    if pipe.error is not None:
        if ran_out(pipe.error) and not isinstance(pipe.error, JobError):
            raise JobError(f"out of memory: {REMEDY}") from pipe.error
        raise pipe.error
    return done


def _why_no_frames(row: Row, manifest: Path, plan: Plan, planned: int) -> str:
    """The reason in the recording itself, where it is unreadable; otherwise that it is too short."""
    pcm = load_window(row, manifest, plan, planned)
    return pcm.reason or f"{row.duration:.3f} s is too short for the model to make a frame of"


@contextlib.contextmanager
def _memory_explained(plan: Plan) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not ran_out(error):
            raise
        raise JobError(
            f"out of memory on batches of {plan.batch_samples / SAMPLE_RATE:.0f} s of audio: batches are part of the "
            "cache's plan and are never cut silently; finished shards are safe: go on with the same command on a "
            "larger machine, or make the cache anew with a smaller --batch-seconds"
        ) from error


def _begun(
    plan: Plan, codec: Codec, upstream: Upstream, item: _Read, begin: Begin, spans: Spans
) -> Callable[[], list[Activations]]:
    """Begin the forward pass of a batch, and what its device does for the encoding."""
    usable = [(row, pcm.samples) for row, pcm in zip(item.rows, item.audio, strict=True) if pcm.samples is not None]
    kept = [slice(int(plan.keep[row]), int(plan.keep[row] + plan.frames[row])) for row, _ in usable]
    return begin_rows(codec, upstream.device, begin([samples for _, samples in usable]), kept, spans)


def _ended(plan: Plan, item: _Read, end: Callable[[], list[Activations]]) -> _Computed:
    with _memory_explained(plan):
        outputs = iter(end())
    features = [next(outputs) if pcm.samples is not None else None for pcm in item.audio]
    return _Computed(item.shard, item.rows, item.audio, features, item.last)


class _ShardState:
    """The shard that is being filled, and what is known of it so far."""

    def __init__(self, shard: int, writer: SegmentWriter) -> None:
        self.shard = shard
        self.span = writer.plan.shard_rows(shard)
        self.block = writer.new_block()
        self.audio = dict.fromkeys(self.span, "")
        self.quarantined: list[Quarantined] = []
        self.saturated: list[Saturated] = []
        self.seconds = 0.0

    def leave_out(self, plan: Plan, row: int, reason: str) -> None:
        self.quarantined.append(Quarantined(row=row, id=plan.ids[plan.utterance[row]], reason=reason))


def _encode(writer: SegmentWriter, batch: _Computed, state: _ShardState, strict: bool) -> None:
    plan = writer.plan
    for row, pcm, features in zip(batch.rows, batch.audio, batch.features, strict=True):
        reason = pcm.reason
        if features is not None:
            expected = writer.spec.geometry.frames(int(plan.stop[row] - plan.start[row]))
            if features.frames != expected:
                raise JobError(
                    f"the model gave {features.frames} frames for {plan.ids[plan.utterance[row]]!r} where its geometry "
                    f"says {expected}: the installed model library behaves otherwise than the one that made this cache"
                )
            bad = features.bad_taps()
            if len(bad):
                reason = f"the model's activations are not finite from tap {writer.spec.taps[bad[0]]} on"
        if reason or features is None:
            state.leave_out(plan, row, reason)
            if strict:
                raise JobError(f"{plan.ids[plan.utterance[row]]!r} cannot be used: {reason} (--strict)")
            continue
        encoded = features.encode()
        at = int(plan.position[row]) - state.shard * plan.shard_frames
        state.block.put(encoded.planes, at)
        state.audio[row] = pcm.digest
        if encoded.saturated:
            state.saturated.append(Saturated(row=row, values=encoded.saturated))
        state.seconds += len(pcm.samples) / SAMPLE_RATE if pcm.samples is not None else 0.0


def _finish(writer: SegmentWriter, leases: Leases, state: _ShardState, strict: bool) -> int:
    """Write a full shard, then its record; returns the bytes written."""
    if strict and state.quarantined:
        first = state.quarantined[0]
        raise JobError(f"{first.id!r} cannot be used: {first.reason} (--strict)")
    return finish(
        writer, leases, state.shard, state.block, [state.audio[row] for row in state.span],
        sorted(state.quarantined, key=lambda q: q.row), sorted(state.saturated, key=lambda s: s.row),
    )  # fmt: skip
