"""From a manifest and a place to a finished cache: `init` and `extract` as functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from featcache import codec as codecs
from featcache import layout
from featcache.agreement import refuse_other_request, refuse_other_values, refuse_recoded
from featcache.calibrate import SECONDS, calibrate
from featcache.description import read_spec
from featcache.device import memory_of
from featcache.errors import UpstreamError, UsageError
from featcache.extract import Done, run_shards
from featcache.labels import check_columns
from featcache.lease import Leases, clear_dead
from featcache.ledger import Seal
from featcache.manifest import Row
from featcache.manifest import read as read_manifest
from featcache.plan import Part, Plan, make_plan
from featcache.progress import AudioProgress
from featcache.rates import measured_rates, save_rate
from featcache.reading import row_samples
from featcache.segment import Segment
from featcache.sizes import refuse_without_space, shard_bytes
from featcache.spans import tracing
from featcache.spec import CacheSpec, Layout
from featcache.startup import check_trace
from featcache.storage import Address, Storage, open_storage
from featcache.store import Cache
from featcache.strict import refuse_complete_without, refuse_left_out
from featcache.turns import adding, making
from featcache.upstreams import Upstream, UpstreamConfig, load, places
from featcache.windows import windows
from featcache.writer import SegmentWriter, create_cache, refuse_foreign

INIT_LEASE = f"{layout.LOG}/leases/init"
# Free space asked for beyond the prediction, which is good to 10 %.
DISK_MARGIN = 1.1


@dataclass(frozen=True)
class Request:
    """What the user asks of a new cache. For one that exists, what is given must agree with it.

    What `layout` leaves open is as suits the device that the cache is made on (`Layout.on`). How much speech a cache
    was calibrated on is not recorded in it, so `calibration_seconds` are of new ones only.
    """

    upstream: UpstreamConfig | None = None
    profile: str | None = None
    parameters: dict[str, Any] | None = None
    layout: Layout = Layout()
    calibration_seconds: float = SECONDS


class Job:
    """A manifest, a cache, and what is still to be done to have the one in the other."""

    def __init__(
        self,
        manifest: str | Path,
        place: str | Path | Address,
        request: Request,
        device: str = "cpu",
        limit: int | None = None,
    ) -> None:
        self.manifest = Path(manifest)
        self.storage: Storage = open_storage(place)
        named = request.upstream
        self.request = request if named is None else replace(request, upstream=places.absolute(named))
        self.device = device
        self.limit = limit
        # Where a trace of the shards goes, if one is wanted.
        self.trace: Path | None = None
        self._upstream: Upstream | None = None

    # The steps

    def init(self) -> CacheSpec:
        """Calibrate and create the cache, unless it is there.

        Raises:
            UsageError: no upstream was named.
            MismatchError: the cache was made for another one, or what lies at the place that is asked for is another.
        """
        if self.exists:
            self.check_request()
            if self.relocated:
                self.check_values()
            return self.spec
        everything = read_manifest(self.manifest)
        if self.request.upstream is None:
            raise UsageError(f"there is no cache at {self.storage} yet: name the model with --upstream to make one")
        refuse_foreign(self.storage)
        upstream = self.upstream
        leases = Leases(self.storage)
        try:
            while not leases.acquire(INIT_LEASE):
                leases.wait(1.0)
            # Another process that was given the same command may have made it meanwhile.
            if not self.exists:
                self._create(everything, upstream)
        finally:
            leases.close()
        self.__dict__.pop("cache", None)
        self.check_request()
        return self.spec

    def _create(self, everything: Sequence[Row], upstream: Upstream) -> None:
        # Before the calibration: whether the longest can be cut for the model at all.
        windows(max((row_samples(row) for row in everything), default=0), upstream.geometry)
        # The whole manifest is drawn from even under --limit, so that the rest can be added later.
        made = calibrate(
            everything,
            self.manifest,
            upstream,
            self.request.profile or codecs.DEFAULT_PROFILE,
            self.request.parameters or {},
            self.request.layout.on(self.device, memory_of(self.device)),
            self.request.calibration_seconds,
        )
        config = places.absolute(UpstreamConfig.model_validate(made.spec.upstream))
        spec = made.spec.model_copy(update={"upstream": config.model_dump(mode="json")})
        with making(self.storage):
            create_cache(self.storage, spec, made.calibration)
        save_rate(self.storage, self.device, made.realtime)

    def extract(self, strict: bool = False, check_disk: bool = True, part: Part | None = None) -> Done | None:
        """Do what is missing and seal the segment; None where nothing is.

        Args:
            part: only this share of the groups of shards; the part that finds all others finished seals.

        Raises:
            MismatchError: the model gives other values than the cache was made for, or its codes are made otherwise.
            CacheError: something is being removed from it.
            UsageError: the trace that is wanted cannot be written.
            JobError: no space, or the job could not go on; finished shards are kept.
        """
        if self.trace is not None:
            check_trace(self.trace)
        self.init()
        if strict:
            refuse_complete_without(self.cache, {row.id for row in self.rows})
        if not self.new_rows:
            return None
        self.refuse_recoded()
        with adding(self.storage):
            return self._fill(strict, check_disk, part)

    def _fill(self, strict: bool, check_disk: bool, part: Part | None) -> Done:
        writer = self.writer
        writer.begin()
        records = writer.records()
        plan = self.plan
        if strict:
            refuse_left_out(self.storage, records)
        left = [s for s in range(plan.shards) if s not in records and (part is None or part.holds(plan.group(s)))]
        done = Done()
        if left:
            if check_disk:
                self._check_disk(left)
            self.check_values()
            done = self._run(left, strict)
        done.left_to_others = plan.shards - len(writer.records()) if part else 0
        if not done.left_to_others:
            # Others may have left out some meanwhile.
            if strict:
                refuse_left_out(self.storage, writer.records())
            self._seal()
        return done

    # What is there

    @property
    def exists(self) -> bool:
        return self.storage.exists(layout.ROOT)

    @cached_property
    def cache(self) -> Cache:
        return Cache.open(self.storage.address)

    @cached_property
    def spec(self) -> CacheSpec:
        return read_spec(self.storage)[0]

    @cached_property
    def rows(self) -> list[Row]:
        return read_manifest(self.manifest, limit=self.limit)

    @cached_property
    def new_rows(self) -> list[Row]:
        """The rows that no sealed segment holds."""
        return rows_not_in(self.cache.segments, self.rows)

    @cached_property
    def plan(self) -> Plan:
        rows = self.new_rows
        return make_plan(
            [row.id for row in rows], [row_samples(row) for row in rows], self.spec, self.cache.codec.bytes_per_frame
        )

    @cached_property
    def writer(self) -> SegmentWriter:
        cache = self.cache
        check_columns(label_names(self.new_rows), self.storage)
        # The name comes from the same look at the cache as the rows: a segment that another process has begun
        # since then is this one, and a later look would make a second one of the same rows.
        there = [*(segment.name for segment in cache.segments), *cache.unsealed]
        name = cache.unsealed[0] if cache.unsealed else layout.next_segment(there)
        return SegmentWriter(self.storage, self.spec, cache.codec, name, self.plan)

    @property
    def upstream(self) -> Upstream:
        """The model, loaded when it is first needed.

        Raises:
            UpstreamError: it cannot be loaded, or is not where the cache has it and no other place was named.
        """
        if self._upstream is None:
            config = self.upstream_config
            lost = places.missing(config) if self.exists and not self.relocated else None
            if lost:
                raise UpstreamError(f"{self.storage}: {lost}")
            self._upstream = load(config, device=self.device)
        return self._upstream

    @property
    def upstream_config(self) -> UpstreamConfig:
        """What is loaded: the cache's model at the place that is asked for, or what a new cache is asked for."""
        asked = self.request.upstream
        if not self.exists:
            assert asked is not None
            return asked
        stored = UpstreamConfig.model_validate(self.spec.upstream)
        return places.moved(asked, stored) if asked is not None else stored

    @property
    def relocated(self) -> bool:
        """Whether a cache's model is asked for at another place than the cache has it."""
        if self.request.upstream is None or not self.exists:
            return False
        return self.upstream_config != places.absolute(UpstreamConfig.model_validate(self.spec.upstream))

    def use(self, upstream: Upstream) -> None:
        """Take a model that is loaded already; `check_values` says whether it is the cache's."""
        self._upstream = upstream

    # Checks

    def check_request(self) -> None:
        """Compare what is asked for with what the cache is.

        Raises:
            MismatchError: they differ; says in what.
        """
        refuse_other_request(self.request, self.spec, self.storage)

    def check_values(self) -> None:
        """Compare what the model says decides its values with the cache's.

        Raises:
            MismatchError: they differ; says in what.
        """
        refuse_other_values(self.upstream, self.spec, self.storage)

    def refuse_recoded(self) -> None:
        """Codes made of the model's own values do not lie beside those that were made of another cache's codes.

        Raises:
            MismatchError: the cache was recoded, and lacks rows of the manifest.
        """
        if self.new_rows:
            refuse_recoded(self.spec, self.storage, f"{len(self.new_rows)} utterances of {self.manifest}")

    def _check_disk(self, left: Sequence[int]) -> None:
        need = int(shard_bytes(self.plan, left, self.spec) * DISK_MARGIN)
        refuse_without_space(self.storage, need, "free some space, choose another path or a smaller --profile")

    # Work

    def _run(self, left: Sequence[int], strict: bool) -> Done:
        total = self.plan.model_seconds()
        todo = sum(self.plan.shard_seconds(shard) for shard in left)
        upstream = self.upstream
        with tracing(self.trace) as spans, AudioProgress("extracting", total, total - todo) as progress:
            done = run_shards(
                self.writer, self.new_rows, self.manifest, upstream, left, progress.advance, strict, spans
            )
            rate = progress.realtime
        if done.shards:
            save_rate(self.storage, self.device, rate)
        return done

    def _seal(self) -> Seal | None:
        """Seal the segment; where another process is doing so, wait for it to finish."""
        leases = Leases(self.storage)
        name = self.writer.name
        try:
            while not leases.acquire(f"{name}/leases/seal"):
                if self.storage.exists(f"{name}/seal.json"):
                    return None
                leases.wait(0.5)
            if self.storage.exists(f"{name}/seal.json"):
                return None
            return self.writer.seal(label_columns(self.new_rows))
        finally:
            leases.close()
            clear_dead(self.storage, f"{name}/leases")
            self.__dict__.pop("cache", None)

    def realtime(self) -> float | None:
        """Seconds of speech a second that extraction on this kind of device took last; None where it is not known."""
        return measured_rates(self.storage).get(self.device.split(":")[0])


def rows_not_in(segments: Sequence[Segment], rows: Sequence[Row]) -> list[Row]:
    """The rows whose ids none of these segments holds."""
    ids = [row.id for row in rows]
    present = np.zeros(len(rows), bool)
    for segment in segments:
        present |= segment.holds(ids)
    return [row for row, found in zip(rows, present.tolist(), strict=True) if not found]


def label_names(rows: Sequence[Row]) -> set[str]:
    """The label columns that rows make; `text` is one where any row has it."""
    text = {"text"} if any(row.text is not None for row in rows) else set()
    return {name for row in rows for name in row.labels} | text


def label_columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """The label columns of manifest rows."""
    return {
        name: [row.text if name == "text" else row.labels.get(name) for row in rows]
        for name in sorted(label_names(rows))
    }
