"""Run a plan: read -> forward -> encode -> write shard -> ledger record, all at the same time.

Three stages joined by bounded queues: a thread reads audio, makes the model's input of it and takes the shards'
leases; this thread runs the model; a thread puts encoded rows into shards. Data goes forward only; a failure in any
stage stops all of them. On a CPU the writing thread also encodes rows and finishes shards, as the forward has the
cores; beside another device both have threads of their own.

Where batches are cut over a group of shards, all of its shards are filled at a time. A batch runs whole even where
some of its rows are of shards that are not ours to write: what it gives for those is thrown away.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from featcache.activations import Activations, begin_rows
from featcache.block import ShardBlock
from featcache.codec import EncodedRow
from featcache.cores import usable_cores
from featcache.crew import Crew, crew_for, launching
from featcache.errors import JobError
from featcache.filling import ShardState
from featcache.geometry import SAMPLE_RATE
from featcache.lease import Leases
from featcache.ledger import Quarantined, Saturated
from featcache.manifest import Row
from featcache.memory import REMEDY, ran_out
from featcache.pipe import Pipe, Pool
from featcache.plan import Plan
from featcache.reading import Pcm, load_window
from featcache.shards import finish, leased_groups
from featcache.spans import Spans
from featcache.upstreams import Upstream
from featcache.upstreams.base import Begin, Prepared
from featcache.writer import SegmentWriter

QUEUED_BATCHES = 2
# A model that has had no audio for this long ends what it has begun.
PATIENCE_SECONDS = 0.05


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
    """A batch with its samples, and the shards that are ours to write of those it has rows of.

    Without rows: shards that have none to compute. `prepared`: for the model, where there are samples.
    """

    shards: list[int]
    rows: list[int]
    audio: list[Pcm]
    prepared: Prepared


# A row as it is stored, or the reason against it; the call waits for that.
_Encoding = Callable[[], EncodedRow | str]


@dataclass(frozen=True)
class _Computed:
    """What became of a batch's rows, but for those of other shards; None where there was no audio."""

    shards: list[int]
    rows: list[int]
    audio: list[Pcm]
    encodings: list[_Encoding | None]


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
        on_progress: called with the seconds of audio computed and the bytes written since the last call, by
            several threads but one at a time.
        strict: stop at the first row that cannot be used.
        spans: gets what the stages did, and when; made by the calling thread.

    Raises:
        JobError: no space, lost lease, out of memory, or a row that cannot be used and `strict`.
    """
    crew = crew_for(upstream.device, usable_cores())
    return _Run(writer, rows, manifest, upstream, on_progress, strict, spans or Spans(enabled=False), crew).run(shards)


class _Run:
    """The stages, and what they share."""

    def __init__(
        self,
        writer: SegmentWriter,
        rows: Sequence[Row],
        manifest: Path,
        upstream: Upstream,
        on_progress: Callable[[float, int], None],
        strict: bool,
        spans: Spans,
        crew: Crew,
    ) -> None:
        self.writer, self.plan = writer, writer.plan
        self.rows, self.manifest, self.upstream = rows, manifest, upstream
        self.on_progress, self.strict, self.spans, self.crew = on_progress, strict, spans, crew
        self.done = Done()
        # Of `done` and `on_progress`.
        self.counting = threading.Lock()
        self.pipe = Pipe()
        self.leases = Leases(writer.storage)
        self.loaded: queue.Queue[_Read | None] = queue.Queue(QUEUED_BATCHES)
        self.computed: queue.Queue[_Computed | None] = queue.Queue(QUEUED_BATCHES)
        self.encoders = Pool(self.pipe, crew.encoders, "encode")
        self.finishers = Pool(self.pipe, crew.finishers, "finish")
        self.compressors = ThreadPoolExecutor(crew.compressors, "compress") if crew.compressors else None
        # Of the thread that writes: shards that are being filled, and the ends of those that are full.
        self.filling: dict[int, ShardState] = {}
        self.finishing: deque[Callable[[], None]] = deque()
        # Blocks of shards that are finished, for the next ones.
        self.blocks: list[ShardBlock] = []

    def run(self, shards: Sequence[int]) -> Done:
        def read() -> None:
            self.read(shards)

        threads: list[threading.Thread] = []
        try:
            for stage in (read, self.write):
                threads.append(self.pipe.run(stage))
            self.compute()
        except BaseException as error:
            self.pipe.fail(error)
        finally:
            try:
                with self.spans.span("wait for the writer"):
                    for thread in threads:
                        thread.join()
                    self.encoders.close()
                    self.finishers.close()
                    if self.compressors is not None:
                        self.compressors.shutdown()
            finally:
                self.leases.close()
        failed = self.pipe.error
        if failed is not None:
            if ran_out(failed) and not isinstance(failed, JobError):
                raise JobError(f"out of memory: {REMEDY}") from failed
            raise failed
        self.done.quarantined.sort(key=lambda q: q.row)
        return self.done

    # The stages

    def read(self, shards: Sequence[int]) -> None:
        with (
            ThreadPoolExecutor(self.crew.readers, "read") as rows,
            ThreadPoolExecutor(self.crew.batches, "prepare") as batches,
        ):
            groups = self.plan.grouped(shards)
            for ours in leased_groups(self.writer, self.leases, groups, self.pipe.stop.is_set):
                bare = [shard for shard in ours if not self.plan.rows_with_frames(shard)]
                if bare:
                    self.pipe.put(self.loaded, _Read(bare, [], [], self.upstream.prepare([])))
                begun: deque[Future[_Read]] = deque()
                for batch, among in self.plan.batches_of(ours):
                    if self.pipe.stop.is_set():
                        return
                    begun.append(batches.submit(self._prepared, rows, batch, among))
                    if len(begun) == self.crew.batches:
                        self.pipe.put(self.loaded, begun.popleft().result())
                for left in begun:
                    self.pipe.put(self.loaded, left.result())
        self.pipe.put(self.loaded, None)

    def compute(self) -> None:
        with launching(self.upstream.device), self.upstream.overlapping() as begin:
            begun: deque[tuple[_Read, Callable[[], list[Activations]]]] = deque()
            for item in self.spans.each("wait for audio", self.pipe.poll(self.loaded, PATIENCE_SECONDS)):
                if item is not None:
                    with _memory_explained(self.plan), self.spans.span("forward"):
                        begun.append((item, self._begun(item, begin)))
                # No batch waits for one that may not come: the next shards may be another process's, which may be
                # waiting for ours.
                stay = self.crew.begun - 1 if item is not None else 0
                while len(begun) > stay:
                    ended = self._ended(*begun.popleft())
                    with self.spans.span("wait for the writer"):
                        self.pipe.put(self.computed, ended)
        self.pipe.put(self.computed, None)

    def write(self) -> None:
        # The forward passes have the cores: a product of the codec that is shared out waits for them in every call.
        torch.set_num_threads(1)
        for batch in self.pipe.get(self.computed):
            for shard in batch.shards:
                self._begin_filling(shard)
            with self.spans.span("wait for the encoding" if self.crew.encoders else "encode"):
                self._put(batch)
            with self.counting:
                self.on_progress(self.plan.model_seconds(batch.rows), 0)
            for shard in batch.shards:
                self._end_filling(shard)
        while self.finishing and not self.pipe.stop.is_set():
            self.finishing.popleft()()

    # Their parts

    def _prepared(self, threads: ThreadPoolExecutor, batch: list[int], among: list[int]) -> _Read:
        with self.spans.span("read"):
            audio = list(threads.map(self._load, batch))
            samples = [pcm.samples for pcm in audio if pcm.samples is not None]
            return _Read(among, batch, audio, self.upstream.prepare(samples, threads.map))

    def _load(self, row: int) -> Pcm:
        return load_window(self.rows[int(self.plan.utterance[row])], self.manifest, self.plan, row)

    def _begun(self, item: _Read, begin: Begin) -> Callable[[], list[Activations]]:
        """Begin the forward pass of a batch, and what its device does for the encoding."""
        plan, codec = self.plan, self.writer.codec
        usable = [row for row, pcm in zip(item.rows, item.audio, strict=True) if pcm.samples is not None]
        kept = [slice(int(plan.keep[row]), int(plan.keep[row] + plan.frames[row])) for row in usable]
        return begin_rows(codec, self.upstream.device, begin(item.prepared), kept, self.spans)

    def _ended(self, item: _Read, end: Callable[[], list[Activations]]) -> _Computed:
        with _memory_explained(self.plan):
            outputs = iter(end())
        ended = _Computed(item.shards, [], [], [])
        for row, pcm in zip(item.rows, item.audio, strict=True):
            features = next(outputs) if pcm.samples is not None else None
            if self.plan.shard[row] in item.shards:
                ended.rows.append(row)
                ended.audio.append(pcm)
                ended.encodings.append(
                    self.encoders.begin(partial(self._encoded, row, features)) if features is not None else None
                )
        return ended

    def _encoded(self, row: int, features: Activations) -> EncodedRow | str:
        """A row as it is stored, or the reason why it is not."""
        plan, spec = self.plan, self.writer.spec
        expected = spec.geometry.frames(int(plan.stop[row] - plan.start[row]))
        if features.frames != expected:
            raise JobError(
                f"the model gave {features.frames} frames for {plan.ids[plan.utterance[row]]!r} where its geometry "
                f"says {expected}: the installed model library behaves otherwise than the one that made this cache"
            )
        bad = features.bad_taps()
        if len(bad):
            return f"the model's activations are not finite from tap {spec.taps[bad[0]]} on"
        # On the writing thread it is part of what that is at.
        with self.spans.span("encode") if self.crew.encoders else contextlib.nullcontext():
            return features.encode()

    def _begin_filling(self, shard: int) -> None:
        if shard in self.filling:
            return
        # In memory are no more shards than a group has, and one a finisher. Those that are being filled are of one
        # group, so that there is one to wait for.
        while len(self.filling) + len(self.finishing) >= self.plan.shards_together + self.crew.finishers:
            with self.spans.span("wait for a shard's end"):
                self.finishing.popleft()()
        self.filling[shard] = self._new_state(shard)

    def _end_filling(self, shard: int) -> None:
        if self.filling[shard].missing:
            return
        finish_it = self.finishers.begin(partial(self._finish, self.filling.pop(shard)))
        if self.crew.finishers:
            self.finishing.append(finish_it)
        else:
            finish_it()

    def _new_state(self, shard: int) -> ShardState:
        state = ShardState(shard, self.plan, self.blocks.pop() if self.blocks else self.writer.new_block())
        for row in state.span:
            if self.plan.frames[row] <= 0:
                state.leave_out(self.plan, row, self._why_no_frames(row))
        return state

    def _why_no_frames(self, row: int) -> str:
        """The reason in the recording itself, where it is unreadable; otherwise that it is too short."""
        duration = self.rows[int(self.plan.utterance[row])].duration
        return self._load(row).reason or f"{duration:.3f} s is too short for the model to make a frame of"

    def _put(self, batch: _Computed) -> None:
        plan = self.plan
        for row, pcm, encoding in zip(batch.rows, batch.audio, batch.encodings, strict=True):
            state = self.filling[int(plan.shard[row])]
            state.missing -= 1
            found = pcm.reason if encoding is None else encoding()
            if isinstance(found, str):
                state.leave_out(plan, row, found)
                if self.strict:
                    raise JobError(f"{plan.ids[plan.utterance[row]]!r} cannot be used: {found} (--strict)")
                continue
            at = int(plan.position[row]) - state.shard * plan.shard_frames
            state.block.put(found.planes, at, found.held)
            state.audio[row] = pcm.digest
            if found.saturated:
                state.saturated.append(Saturated(row=row, values=found.saturated))
            state.seconds += len(pcm.samples) / SAMPLE_RATE if pcm.samples is not None else 0.0

    def _finish(self, state: ShardState) -> None:
        """Write a full shard, then its record."""
        if self.strict and state.quarantined:
            first = state.quarantined[0]
            raise JobError(f"{first.id!r} cannot be used: {first.reason} (--strict)")
        with self.spans.span("write"):
            written = finish(
                self.writer, self.leases, state.shard, state.block, [state.audio[row] for row in state.span],
                sorted(state.quarantined, key=lambda q: q.row), sorted(state.saturated, key=lambda s: s.row),
                map if self.compressors is None else self.compressors.map,
            )  # fmt: skip
            state.block.clear()
            self.blocks.append(state.block)
        with self.counting:
            self.on_progress(0.0, written)
            self.done.shards += 1
            self.done.bytes += written
            self.done.seconds += state.seconds
            self.done.saturated += sum(found.values for found in state.saturated)
            self.done.quarantined += state.quarantined


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
