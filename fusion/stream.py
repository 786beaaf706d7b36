"""A pass over the cache that feeds one head or several.

The same decoded batch goes to every head of a stream, so that reading and decoding are paid once. Heads belong
to one stream if each alone would be given the same batches in the same order: same cache, same training rows and
views, same batch size, same seed. What a head learns does not depend on its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import call
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from torch.profiler import record_function

from featcache.errors import Interrupted
from fusion.crew import Crew
from fusion.data import Batch, Loader, Sampler, Stopwatch, most_of, pick_taps, union_of_taps
from fusion.distributed import World
from fusion.labels import Split
from fusion.learner import Diverged, Learner
from fusion.modules.randomness import draws_from_torch
from fusion.predict import Predictions, Reader, predict_together
from fusion.progress import TrainingProgress, line
from fusion.run import Run
from fusion.state import stop_signals

if TYPE_CHECKING:
    from featcache.store import Cache

STOP_EVERY = 10
"""Steps between two agreements of several processes on whether to stop."""

T = TypeVar("T")


def streams(learners: Iterable[Learner]) -> list[list[Learner]]:
    """The learners that can share a pass, in the order of their first."""

    def key(learner: Learner) -> Hashable:
        recipe, pool = learner.recipe, learner.pool
        drawn = (_rows(pool.split), pool.of.tobytes(), pool.share)
        return learner.cache.path, drawn, recipe.train.batch_seconds, recipe.seed

    return _groups(learners, key)


class Stream:
    """Trains the learners of one stream together; those that are ahead wait for the others to catch up.

    Args:
        on_step: called after every step.
        in_turn: one head after the other, also where the machine could take several at a time.
    """

    def __init__(
        self,
        learners: Sequence[Learner],
        here: World,
        console: Console,
        on_step: Callable[[], None] = lambda: None,
        in_turn: bool = False,
    ) -> None:
        self.learners, self.here, self.console, self.on_step = learners, here, console, on_step
        self.in_turn = in_turn or any(draws_from_torch(learner.head) for learner in learners)
        first = learners[0]
        self.cache: Cache = first.cache
        self.batch_seconds = first.recipe.train.batch_seconds
        self.workers = most_of([learner.recipe.train.workers for learner in learners])
        self.threads = first.recipe.train.threads
        self.taps = union_of_taps([learner.spec.taps for learner in learners], self.cache.taps)

    def run(self) -> None:
        """Train until the last step or the end of patience of every learner, or a signal.

        A learner whose loss is no number fails alone, where it has neighbours; see `Learner.failure`.

        Raises:
            Interrupted: a signal came; the states are saved.
            Diverged: the loss of the only learner is not finite.
        """
        learners = [learner for learner in self.learners if learner.running]
        if not learners:
            return
        last = min(learners, key=lambda learner: learner.state.step)
        step, total = last.state.step, max(learner.recipe.train.steps for learner in learners)
        pool = last.pool
        sampler = Sampler(
            pool.split.frames, round(self.batch_seconds * self.cache.frame_rate), last.recipe.seed, self.here.rank,
            self.here.size, last.state.epoch, last.state.step_of_epoch, pool.draw if pool.share else None,
        )  # fmt: skip
        for learner in learners:
            learner.begin()
        feed_of = {id(learner): learner.feed for learner in learners}
        feeds = {feed_of[id(learner)]: learner for learner in learners}
        clock = time.perf_counter()
        with (
            stop_signals() as stop,
            Loader(self.cache, pool.split, self.here.device, self.taps, self.workers) as loader,
            Crew(len(learners), self.here, self.threads, self.in_turn) as crew,
            TrainingProgress(self.console, total, step, quiet=not self.here.first) as progress,
        ):
            loader.watch = Stopwatch()
            for made in loader.prepared(iter(sampler), partial(_prepare, feeds, self.taps), step + 1):
                active = [learner for learner in learners if learner.running and learner.state.step == step]
                step += 1
                if not active:
                    continue  # those that were behind have ended before they caught up
                crew.map(call, [partial(learner.step, made[feed_of[id(learner)]]) for learner in active])
                now = time.perf_counter()
                for learner in active:
                    learner.seconds += now - clock
                clock = now
                looking = [learner for learner in active if learner.due()]
                if looking:
                    with loader.watch.paused(), record_function("look at dev"):
                        self._look(looking, loader.watch, progress)
                if looking or progress.due():
                    progress.update(step, self._line(active, loader.watch))
                self.on_step()
                if not any(learner.running for learner in learners):
                    break
                if (self.here.size == 1 or step % STOP_EVERY == 0) and self.here.any(stop.is_set()):
                    self._stop(active, step, total)
        for learner in learners:
            learner.end()

    def finish(self) -> list[Run | None]:
        """Evaluate the best checkpoint of every learner on test, once; None for one that failed."""
        self.here.barrier()  # the best checkpoints are written by the first process
        done = [learner for learner in self.learners if learner.failure is None]
        runs = {id(learner): learner.open_best() for learner in done}
        splits = {id(learner): learner.final_split() for learner in done}
        readers = [run.reader(splits[key]) for key, run in runs.items()]
        for learner, found in zip(done, self._read(readers), strict=True):
            run = runs[id(learner)]
            evaluation = run.score(self.cache, splits[id(learner)], found, learner.facts())
            if self.here.first:
                run.write(evaluation)
        self.here.barrier()
        return [runs.get(id(learner)) for learner in self.learners]

    def _look(self, looking: Sequence[Learner], watch: Stopwatch, progress: TrainingProgress) -> None:
        losses = []
        for learner in looking:
            try:
                losses.append(learner.mean_loss())
            except Diverged as error:
                if len(self.learners) == 1:
                    raise
                learner.failure = error
                progress.say(str(error))
        looking = [learner for learner in looking if learner.failure is None]
        speeds = {"speed/frames_per_second": watch.rate * self.here.size, "speed/share_waiting": watch.share}
        found = self._read([learner.reader("dev") for learner in looking])
        for learner, loss, of_dev in zip(looking, losses, found, strict=True):
            name = f"{learner.recipe.name}  " if len(self.learners) > 1 else ""
            learner.look(of_dev, loss, speeds, lambda text, name=name: progress.say(name + text))  # type: ignore[misc]

    def _read(self, readers: Sequence[Reader]) -> list[Predictions]:
        """What each says of its split; those with the same rows share a pass."""
        found: dict[int, Predictions] = {}
        for group in _groups(readers, lambda reader: _rows(reader.split)):
            together = predict_together(
                group,
                self.cache,
                self.here,
                batch_seconds=self.batch_seconds,
                workers=self.workers,
                threads=self.threads,
            )
            found.update(zip(map(id, group), together, strict=True))
        return [found[id(reader)] for reader in readers]

    def _line(self, active: Sequence[Learner], watch: Stopwatch) -> str:
        loss = sum(learner.loss_so_far() for learner in active) / len(active)
        heads = f"{len(active)} heads  " if len(self.learners) > 1 else ""
        dev = active[0].state.dev if len(self.learners) == 1 else {}
        return heads + line(loss, dev, watch.rate * self.here.size, self.cache.frame_rate, watch.share)

    def _stop(self, active: Sequence[Learner], step: int, total: int) -> None:
        for learner in active:
            try:
                learner.mean_loss()
            except Diverged as error:
                learner.failure = error
            else:
                learner.save()
        if len(self.learners) == 1 and active[0].failure:
            raise active[0].failure
        where = self.learners[0].files.path if len(self.learners) == 1 else "the folders of its runs"
        raise Interrupted(
            f"stopped at step {step} of {total}, all saved in {where}; the same command goes on from there"
        )


def _prepare(feeds: Mapping[Hashable, Learner], taps: Sequence[str], step: int, batch: Batch) -> dict[Hashable, Batch]:
    """The batch of a step, of these taps, as each of several learners, by its feed, wants it."""
    made: dict[Hashable, Batch] = {}
    for feed, learner in feeds.items():
        features = pick_taps(batch.features, taps, learner.spec.taps)
        if features is batch.features and any(learner.mask_shares) and len(feeds) > 1:
            features = features.clone()  # masked in place, and others read the batch
        made[feed] = learner.prepare(step, replace(batch, features=features))
    return made


def _rows(split: Split) -> bytes:
    return split.rows.tobytes()


def _groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
