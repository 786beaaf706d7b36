"""A job whose shards are tasks of a dask cluster: each worker process loads the model once and keeps it.

Every process of the cluster needs this package, and sees manifest, recordings and cache under the same
paths. The plan follows from manifest and cache, so that a task is no more than the number of a shard, or those of a
group of shards that batches are cut over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from featcache.cluster import absolute, run_tasks
from featcache.device import choose_device
from featcache.errors import MismatchError
from featcache.extract import Done, run_shards
from featcache.job import Job, Request
from featcache.progress import AudioProgress
from featcache.spec import CacheSpec
from featcache.storage import Address
from featcache.upstreams import Upstream, UpstreamConfig, places

# Under this topic the cluster's log has a line for every model that a worker has loaded.
EVENTS = "featcache"


@dataclass(frozen=True)
class Order:
    """What a worker must know to make the same plan. `plan` is its digest, "" before there is one.

    `command` tells two commands apart that ask for the same: rows and cache may be others by the second, with a plan of
    the same digest.
    """

    command: str
    manifest: str
    place: Address
    request: Request
    device: str | None
    limit: int | None
    plan: str = ""


class ClusterJob(Job):
    """As `Job`, with the model on the workers: this process need not have what it needs (a GPU, say)."""

    def __init__(
        self,
        manifest: str | Path,
        place: str | Path,
        request: Request,
        client: Any,
        device: str | None = None,
        limit: int | None = None,
    ) -> None:
        super().__init__(absolute(manifest), absolute(place), request, device or "cpu", limit)
        self.client = client
        self._order = Order(uuid4().hex, str(self.manifest), self.storage.address, self.request, device, limit)

    def init(self) -> CacheSpec:
        if self.exists or self.request.upstream is None:
            return super().init()
        run_tasks(_init, [(self._order,)], self.client, name="calibrate", a_worker=1)
        return self.spec

    def check_values(self) -> None:
        """Each worker compares what its own model says, before its first shard."""

    def _run(self, left: Sequence[int], strict: bool) -> Done:
        order = Order(**{**vars(self._order), "plan": self.plan.digest})
        seconds = {shard: self.plan.shard_seconds(shard) for shard in range(self.plan.shards)}
        total, todo = sum(seconds.values()), sum(seconds[shard] for shard in left)
        groups = self.plan.grouped(left)
        done = Done()
        with AudioProgress("extracting", total, total - todo) as progress:

            def add(number: int, result: Done) -> None:
                done.add(result)
                progress.advance(sum(seconds[shard] for shard in groups[number]), result.bytes)

            tasks = [(order, shards, strict) for shards in groups]
            labels = [f"{shards[0]:06d}" for shards in groups]
            run_tasks(_extract, tasks, self.client, name="extract-shard", labels=labels, on_result=add, a_worker=1)
        return done


# In a worker

# One task at a time in a process: the model, and the number of threads that it runs on, are the process's.
_lock = threading.Lock()
_job: tuple[Order, Job] | None = None
_upstream: tuple[set[str], Upstream] | None = None


def _init(order: Order) -> None:
    """Calibrate and create the cache; the model stays for the shards."""
    with _lock:
        job = _make(order)
        _give_model(job)
        job.init()


def _extract(order: Order, shards: list[int], strict: bool) -> Done:
    """Shards of one group, from recordings to their records; what `run_shards` raises."""
    global _job
    with _lock:
        if _job is None or _job[0] != order:
            job = _make(order)
            if job.plan.digest != order.plan:
                raise MismatchError(
                    f"a worker plans other shards for {order.place} than the command that was given: "
                    "let all machines see the same manifest and cache, and have the same version of speech-featcache"
                )
            _give_model(job)
            job.check_values()
            _job = order, job
        job = _job[1]
        return run_shards(job.writer, job.new_rows, job.manifest, job.upstream, shards, strict=strict)


def _make(order: Order) -> Job:
    import torch
    from distributed import get_worker

    torch.set_num_threads(get_worker().state.nthreads)
    return Job(order.manifest, order.place, order.request, choose_device(order.device), order.limit)


def _give_model(job: Job) -> None:
    """Give the job the model that this process has, where it is the one that it needs; else load that, for good."""
    global _job, _upstream
    config = job.upstream_config
    key = _model_key(job, config)
    if _upstream is None or key not in _upstream[0]:
        from distributed import get_worker

        _job = _upstream = None  # two models at a time may not fit the device
        began = time.monotonic()
        # A model fills in what its configuration leaves open, and a cache holds it filled in.
        _upstream = {key, _model_key(job, job.upstream.config)}, job.upstream
        said = {"loaded": config.id, "device": job.device, "seconds": round(time.monotonic() - began, 2)}
        get_worker().log_event(EVENTS, said)
    job.use(_upstream[1])


def _model_key(job: Job, config: UpstreamConfig) -> str:
    # A worker may live for weeks, in which a checkpoint is trained further.
    return f"{job.device} {config.model_dump_json()} {places.stamps(config)}"
