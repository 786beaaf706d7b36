"""Training from the cache against training with all features decoded in memory, and with the model run each time.

The three take turns, some steps each, with the same head, batches and number of threads. `efficiency` is the
steps per second of the first over those of the second. On a CPU it can be above 1: the threads that read a cache
prepare its batches as well (`Learner.prepare`), where those in memory are left to the thread that trains.
"""

from __future__ import annotations

import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from featcache.audio import load as load_audio
from featcache.manifest import read as read_manifest
from featcache.manifest import resolve
from featcache.products import left_to_torch, used_on
from featcache.store import Cache
from featcache.upstreams import UpstreamConfig
from featcache.upstreams import load as load_upstream
from fusion import head, recipe
from fusion.data import Batch, Loader, Place, Sampler, Slot, Stopwatch
from fusion.distributed import use_threads, world
from fusion.learner import Learner
from fusion.run import Files
from pipelines.bench.machine import stamp
from pipelines.bench.read import drop_pages

RECIPE = Path("pipelines/recipes/asr.toml")
# Steps that one way does before it is the next one's turn, and how often each has a turn.
BLOCK = 8
messages = Console(stderr=True)


@dataclass(frozen=True)
class Spent:
    """Seconds by the clock, and of CPU on all threads of this process."""

    clock: float
    cpu: float


def measure(
    cache: str,
    manifest: Path,
    utterances: int,
    turns: int,
    device: str,
    workers: int | None = None,
    decode: Place = "auto",
    recipe_file: Path = RECIPE,
) -> dict[str, Any]:
    """`efficiency`, `efficiency_cold`, `wait_share` and `vs_on_the_fly`.

    `vs_on_the_fly_by_torch`: the model and the step that is live without `featcache.products`.
    `reading_cpu_share` is what reading and decoding take of all CPU time: other work does not change it.

    Args:
        utterances: of training, whose decoded features fit in memory.
        turns: how often each way is measured; the median of their ratios counts.
        workers: threads that read ahead; None is as many as training has by default.
    """
    given = {
        "cache": json.dumps(cache),
        "limit": utterances,
        "train.device": json.dumps(device),
        "train.workers": json.dumps("auto" if workers is None else workers),
        "train.steps": 100_000,
    }
    wanted = head.resolve(recipe.read(recipe_file, [f"{key}={value}" for key, value in given.items()]))
    with tempfile.TemporaryDirectory() as folder, world(wanted.train.device) as here:
        use_threads(wanted.train.threads, here.device)
        opened = Cache.open(cache)
        learner = Learner(wanted, opened, Files(Path(folder) / "run"), here, messages, {})
        learner.head.train()
        split = learner.splits["train"]
        sampler = Sampler(split.frames, round(wanted.train.batch_seconds * opened.frame_rate), wanted.seed)
        slots = list(itertools.islice(iter(sampler), sampler.steps_of_epoch()))

        def loader() -> Loader:
            return Loader(opened, split, here.device, learner.spec.taps, wanted.train.workers, decode)

        messages.print(f"decoding {len(split)} utterances to memory")
        with loader() as everything:
            kept = {_key(batch.slot): batch for batch in everything.batches(slots)}
        endless = itertools.cycle(slots)
        # A GPU meets every shape once before the clock runs: memory of a new size is slow to get there.
        first_steps = len(slots) if here.device.type == "cuda" else BLOCK
        _steps(learner, _kept(learner, kept, itertools.islice(endless, first_steps)), here.device)
        ratios, waits, shares = [], [], []
        for _ in range(turns):
            block = list(itertools.islice(endless, BLOCK))
            # The first batch is on its way when the clock starts, as in the middle of a run.
            with loader() as reading:
                batches = reading.prepared(itertools.chain(block, block[:1]), learner.prepare)
                first = next(batches)
                reading.watch = Stopwatch()
                following = itertools.chain([first], itertools.islice(batches, BLOCK - 1))
                from_cache = _steps(learner, following, here.device)
                waits.append(reading.watch.share)
            in_memory = _steps(learner, _kept(learner, kept, block), here.device)
            ratios.append(in_memory.clock / from_cache.clock)
            shares.append(1 - in_memory.cpu / from_cache.cpu)
        cold = []
        for _ in range(max(1, turns // 2)):
            block = list(itertools.islice(endless, BLOCK))
            drop_pages([path for path in Path(cache).rglob("*") if path.is_file()])
            with loader() as reading:
                from_cache = _steps(learner, reading.prepared(block, learner.prepare), here.device)
            in_memory = _steps(learner, _kept(learner, kept, block), here.device)
            cold.append(in_memory.clock / from_cache.clock)
        block = list(itertools.islice(endless, 2))
        ours = used_on(here.device)
        live, step = _on_the_fly(learner, opened, manifest, block, kept)
        with left_to_torch():
            by_torch = _on_the_fly(learner, opened, manifest, block, kept) if ours else (live, step)
    efficiency = statistics.median(ratios)
    return {
        "efficiency": round(efficiency, 3),
        "efficiency_cold": round(statistics.median(cold), 3),
        "wait_share": round(statistics.median(waits), 4),
        "vs_on_the_fly": round((live + step) / (step / efficiency), 2),
        "vs_on_the_fly_by_torch": round(sum(by_torch) / (step / efficiency), 2),
        "steps_s": round(len(block) * efficiency / step, 2),
        "reading_cpu_share": round(statistics.median(shares), 4),
        "steps_per_turn": BLOCK,
        "threads": torch.get_num_threads(),
        "workers": everything.workers,
        "decoded_on": "device" if here.device.type == "cuda" and not everything.on_host else "host",
        "device": str(here.device),
        "cache": cache,
        "upstream": opened.upstream,
        **stamp(),
    }


def _key(slot: Slot) -> bytes:
    return slot.positions.tobytes()


def _steps(learner: Learner, batches: Iterable[Batch], device: torch.device) -> Spent:
    """What training on these batches, which are prepared, takes."""
    began, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        learner.step(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Spent(time.perf_counter() - began, time.process_time() - cpu)


def _kept(learner: Learner, kept: dict[bytes, Batch], slots: Iterable[Slot]) -> Iterator[Batch]:
    for number, slot in enumerate(slots):
        batch = kept[_key(slot)]
        # Masking is in place, and batches in memory are used again.
        yield learner.prepare(number, replace(batch, features=batch.features.clone()))


def _on_the_fly(
    learner: Learner, cache: Cache, manifest: Path, slots: list[Slot], kept: dict[bytes, Batch]
) -> tuple[float, float]:
    """Seconds of reading the audio and running the model for these batches, and of the steps on them."""
    rows = {row.id: row for row in read_manifest(manifest)}
    upstream = load_upstream(UpstreamConfig.model_validate(cache.spec.upstream), device=str(learner.here.device))

    def forward(slot: Slot) -> Tensor:
        found = []
        for position in slot.positions.tolist():
            row = rows[cache.ids[int(learner.splits["train"].rows[position])]]
            found.append(load_audio(resolve(row, manifest), offset=row.offset, duration=row.duration))
        return torch.nn.utils.rnn.pad_sequence(upstream.forward_tensors(found), batch_first=True)

    def live(slots: list[Slot]) -> Iterator[Batch]:
        for number, slot in enumerate(slots):
            yield learner.prepare(number, replace(kept[_key(slot)], features=forward(slot)))

    forward(slots[0])
    both = _steps(learner, live(slots), learner.here.device).clock
    step = _steps(learner, _kept(learner, kept, slots), learner.here.device).clock
    return max(both - step, 0.0), step


def print_table(result: dict[str, Any]) -> None:
    """The result for people, on standard output."""
    for name, value in result.items():
        print(f"{name:16} {value}")
