"""Train a head from a cache: `fit` makes a run, or goes on with one.

Every random number of a step (dropout, masking) comes from a generator seeded with (seed, step, rank), the
order of batches from (seed, epoch), the learning rate from the step. So the state of a run is its weights,
the optimiser's moments and a few numbers, and a run that was killed and resumed ends, on the CPU, in the
same bits as one that was not.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console

from featcache.errors import JobError, MismatchError, UsageError
from fusion import checkpoint, head, labels, modules, optimiser, tasks
from fusion.data import Batch, Loader, Sampler, Stopwatch, moments
from fusion.distributed import World, autocast, use_threads, world
from fusion.predict import predict
from fusion.progress import TrainingProgress, line
from fusion.recipe import Recipe, differences
from fusion.run import Files, Run, open_cache
from fusion.state import State, digest, stop_signals

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from featcache.store import Cache

IGNORED_ON_RESUME = ("train.workers", "train.device")
"""Keys that decide no bit of the result."""
STOP_EVERY = 10
"""Steps between two agreements of several processes on whether to stop."""


class Interrupted(JobError):
    """Stopped by a signal, with the state saved."""

    exit_code = 130


def fit(recipe: Recipe, *, runs: str | Path = "runs", mode: str = "auto", console: Console | None = None) -> Run:
    """Train a head as a recipe says, evaluate the best checkpoint on test once, and return the run.

    Args:
        runs: the folder of all runs; this one is `runs/NAME`.
        mode: `auto` goes on with an unfinished run of the same recipe and leaves a finished one alone;
            `resume` wants one that was begun; `restart` throws away what is there.

    Raises:
        UsageError: the recipe does not fit the cache, or another recipe made the run that is there.
        Interrupted: a signal came; the state is saved.
        JobError: the loss is not finite, or the disk is full.
    """
    console = console or Console(stderr=True)
    recipe = head.resolve(recipe)
    files = Files(Path(runs) / recipe.name)
    with world(recipe.train.device) as here:
        use_threads(recipe.train.threads, here.device)
        begun = _begin(files, recipe, mode, here)
        if begun and files.metrics.exists():
            if here.first:
                console.print(f"run {files.path} is finished; --restart trains it anew", highlight=False)
            return Run.open(files.path)
        cache = open_cache(recipe.cache)
        trainer = Trainer(recipe, cache, files, here, console)
        if begun:
            trainer.load()
        trainer.run()
        return trainer.finish()


def _begin(files: Files, recipe: Recipe, mode: str, here: World) -> bool:
    """Whether there is a run to go on with. Makes the folder where there is none."""
    there = files.recipe.exists()
    if mode == "resume" and not there:
        raise UsageError(f"there is no run {files.path} to resume; leave --resume out to start it")
    if there and mode != "restart":
        changed = differences(Run.read_recipe(files.path), recipe, IGNORED_ON_RESUME)
        if changed:
            raise UsageError(
                f"run {files.path} was made by a recipe that differs in {', '.join(changed)}; "
                "use --restart to replace it or --set name=OTHER to keep both"
            )
    resume = there and mode != "restart" and files.checkpoint.exists()
    here.barrier()
    if here.first and not resume:
        files.clear()
    here.barrier()
    return resume


class Trainer:
    """One run in the making."""

    def __init__(self, recipe: Recipe, cache: Cache, files: Files, here: World, console: Console) -> None:
        self.recipe, self.cache, self.files, self.here, self.console = recipe, cache, files, here, console
        selection = labels.select(cache, recipe)
        rate = head.logit_rate(recipe, cache.frame_rate)
        self.task = tasks.fit(recipe.task, selection.labels("train"), rate)
        measures = {measure.name: measure for measure in self.task.measures}
        metric = recipe.train.metric or self.task.chosen_by
        if metric not in measures:
            raise UsageError(f"key train.metric: {metric!r} is not allowed, use {' or '.join(measures)}")
        self.metric = measures[metric]
        self.spec = head.describe(recipe, cache, self.task)
        torch.manual_seed(recipe.seed)
        self.head = head.build(self.spec).to(here.device)
        self.splits = {}
        self.skipped = list(selection.skipped)
        for name, examples in selection.splits.items():
            frames = self.head.output_frames(examples)
            self.splits[name] = labels.prepare(examples, name, self.task, frames, learn=name == "train")
            self.skipped += self.splits[name].skipped
        for name in ("train", "dev"):
            if not len(self.splits[name]):
                reasons = labels.count_reasons(skip for skip in self.skipped if skip.split == name)
                listed = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
                raise UsageError(f"{name} has no usable row left: {listed}")
        self.notes = selection.notes
        self.head.standardise_by(*moments(cache, self.splits["train"], self.spec.taps, recipe.seed))
        self.model = here.wrap(self.head)
        self.optimiser = optimiser.build(self.head, recipe.train)
        self.state = State(data=digest(self.splits["train"], self.splits["dev"]))
        self.seconds = 0.0
        self.writer: SummaryWriter | None = None

    # the state on disk

    def load(self) -> None:
        """Go on from the run's checkpoint."""
        tensors, facts = checkpoint.load(self.files.checkpoint)
        state = State.from_json(facts)
        spec = Run.read_spec(self.files.path)
        if (spec.values_id, spec.encoding_id) != (self.spec.values_id, self.spec.encoding_id):
            raise MismatchError(
                f"run {self.files.path} began on other features than those of {self.cache.path}; --restart it"
            )
        if state.data != self.state.data:
            raise UsageError(
                f"labels or utterances of {self.cache.path} changed since {self.files.path} began; --restart it"
            )
        self.state = state
        checkpoint.load_weights(self.head, _part(tensors, "head."), self.files.checkpoint)
        checkpoint.load_optimiser(self.optimiser, self.head, _part(tensors, "optimiser."))
        if self.files.state.exists():
            self.seconds = float(checkpoint.read_json(self.files.state).get("seconds", 0.0))
        if not state.finished:
            self._say(f"going on from step {state.step}")

    def save(self) -> None:
        if not self.here.first:
            return
        tensors = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        tensors |= {
            f"optimiser.{name}": value
            for name, value in checkpoint.optimiser_tensors(self.optimiser, self.head).items()
        }
        checkpoint.save(self.files.checkpoint, tensors, self.state.to_json())
        checkpoint.write_json(self.files.state, self.state.to_json() | {"seconds": round(self.seconds, 3)})

    def _save_facts(self) -> None:
        """What is known before the first step."""
        if not self.here.first:
            return
        checkpoint.write_json(self.files.head, self.spec.model_dump(mode="json"))
        checkpoint.write_json_lines(self.files.skipped, [vars(skip) for skip in self.skipped])
        checkpoint.write_bytes(self.files.recipe, self.recipe.to_toml().encode())

    # training

    def run(self) -> None:
        """Train until the last step, the end of patience, or a signal."""
        if self.state.finished:
            return
        if self.state.step == 0:
            self._save_facts()
        self._announce()
        settings, state = self.recipe.train, self.state
        batch_frames = round(settings.batch_seconds * self.cache.frame_rate)
        sampler = Sampler(
            self.splits["train"].frames,
            batch_frames,
            self.recipe.seed,
            self.here.rank,
            self.here.size,
            state.epoch,
            state.step_of_epoch,
        )
        self._open_tensorboard()
        self.head.train()
        loss_sum, loss_steps = torch.zeros((), device=self.here.device), 0
        began = time.perf_counter()
        before = self.seconds
        with (
            stop_signals() as stop,
            Loader(self.cache, self.splits["train"], self.here.device, self.spec.taps, settings.workers) as loader,
            TrainingProgress(self.console, settings.steps, state.step, quiet=not self.here.first) as progress,
        ):
            self.progress = progress
            loader.watch = Stopwatch()
            for batch in loader.batches(iter(sampler)):
                loss_sum += self._step(batch)
                loss_steps += 1
                state = self.state
                self.seconds = before + time.perf_counter() - began
                looked = state.step % settings.eval_every == 0 or state.step == settings.steps
                if looked:
                    loss = self._mean_loss(loss_sum, loss_steps)
                    with loader.watch.paused():
                        self._look_at_dev(loss, loader.watch)
                        self.save()
                elif progress.due():
                    loss = float(loss_sum) / loss_steps
                if looked or progress.due():
                    watch = loader.watch
                    rate = watch.rate * self.here.size
                    progress.update(state.step, line(loss, self.state.dev, rate, self.cache.frame_rate, watch.share))
                if looked:
                    loss_sum, loss_steps = torch.zeros_like(loss_sum), 0
                if self.state.finished:
                    break
                if (self.here.size == 1 or state.step % STOP_EVERY == 0) and self.here.any(stop.is_set()):
                    self._mean_loss(loss_sum, loss_steps)
                    self.save()
                    raise Interrupted(
                        f"stopped at step {self.state.step} of {settings.steps}, all saved in "
                        f"{self.files.path}; the same command goes on from there"
                    )
        if self.writer is not None:
            self.writer.close()

    def _step(self, batch: Batch) -> torch.Tensor:
        """One update; returns the loss, on the device."""
        settings = self.recipe.train
        step = self.state.step + 1
        seed = int(np.random.SeedSequence([self.recipe.seed, step, self.here.rank]).generate_state(1, np.uint64)[0])
        torch.manual_seed(seed)
        features = modules.mask_features(
            batch.features, batch.lengths, time=settings.mask_time,
            channels=settings.mask_channels, taps=settings.mask_taps, fill=self.head.centre,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        optimiser.set_rate(self.optimiser, optimiser.rate(settings, step))
        self.optimiser.zero_grad(set_to_none=True)
        with autocast(settings.precision, self.here.device):
            logits, lengths = self.model(features, batch.lengths)
        loss = self.task.loss(logits, lengths, batch.targets)
        loss.backward()
        if settings.clip:
            torch.nn.utils.clip_grad_norm_(self.head.parameters(), settings.clip)
        self.optimiser.step()
        self.state = replace(self.state, step=step, epoch=batch.slot.epoch, step_of_epoch=batch.slot.step + 1)
        return loss.detach()

    def _mean_loss(self, total: torch.Tensor, steps: int) -> float:
        """The mean over steps and processes; nothing is saved after a loss that is not a number."""
        loss = float(self.here.mean(total / max(steps, 1)))
        if not math.isfinite(loss):
            raise JobError(
                f"the loss is {loss} around step {self.state.step}; the last good state is kept, "
                "lower train.lr or train.clip and use --restart"
            )
        return loss

    def _look_at_dev(self, loss: float, watch: Stopwatch) -> None:
        settings, state, dev = self.recipe.train, self.state, self.splits["dev"]
        found = predict(
            self.head, self.task, self.cache, dev, self.here, taps=self.spec.taps,
            batch_seconds=settings.batch_seconds, precision=settings.precision, workers=settings.workers,
        )  # fmt: skip
        scores = self.task.measure(dev.references, found.values)
        now = (self.metric.cost(scores[self.metric.name]), found.loss)
        better = now < state.best
        looks = 0 if better or found.loss < state.least_loss else state.looks_without_better + 1
        finished = state.step >= settings.steps or (settings.patience > 0 and looks >= settings.patience)
        least = min(state.least_loss, found.loss)
        state = replace(state, dev=scores, least_loss=least, looks_without_better=looks, finished=finished)
        if better:
            state = replace(state, best=now, best_step=state.step, best_dev=scores)
            if self.here.first:
                weights = self.head.state_dict()
                checkpoint.save(self.files.best, weights, {"step": state.step, "dev": scores, "dev_loss": found.loss})
        self.state = state
        text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        mark = "  best so far" if better else ""
        self.progress.say(f"step {state.step}: loss {loss:.3f}  dev loss {found.loss:.3f}  dev {text}{mark}")
        if finished and state.step < settings.steps:
            self.progress.say(f"no better dev {self.metric.title} in {looks} looks: stopping early")
        if self.writer is not None:
            values = {
                "train/loss": loss,
                "train/lr": optimiser.rate(settings, state.step),
                "dev/loss": found.loss,
            }
            values |= {f"dev/{name}": value for name, value in scores.items()}
            values |= {
                "speed/frames_per_second": watch.rate * self.here.size,
                "speed/share_waiting": watch.share,
            }
            for name, value in values.items():
                self.writer.add_scalar(name, value, state.step)
            self.writer.flush()

    # the ends

    def finish(self) -> Run:
        """Evaluate the best checkpoint on test, once."""
        self.here.barrier()  # the best checkpoint is written by the first process
        run = Run.open(self.files.path, self.here.device)
        split = self.splits["test"]
        if not len(split):
            self._say("test has no usable row: the figures are of dev, which also chose the checkpoint")
            split = self.splits["dev"]
        train_hours = float(self.splits["train"].frames.sum()) / self.cache.frame_rate / 3600
        facts = {
            "best_step": self.state.best_step,
            "steps": self.state.step,
            "seconds": round(self.seconds, 1),
            "dev": self.state.best_dev,
            "train_utterances": len(self.splits["train"]),
            "train_hours": round(train_hours, 3),
            "skipped": labels.count_reasons(self.skipped),
        }
        evaluation = run.evaluate_split(self.cache, split, self.here, facts)
        if self.here.first:
            run.write(evaluation)
        self.here.barrier()
        return run

    def _announce(self) -> None:
        if self.state.step:
            return
        for note in self.notes:
            self._say(note)
        for name, split in self.splits.items():
            hours = float(split.frames.sum()) / self.cache.frame_rate / 3600
            reasons = labels.count_reasons(skip for skip in self.skipped if skip.split == name)
            without = f", skipped {', '.join(f'{n} ({reason})' for reason, n in reasons.items())}" if reasons else ""
            self._say(f"{name}: {len(split)} utterances, {hours:.2f} h{without}")
        fuser, decoder = (
            modules.count_parameters(self.head.fuser),
            modules.count_parameters(self.head.decoder),
        )
        self._say(
            f"{self.recipe.fuser.kind} ({fuser:,} parameters) over {len(self.spec.taps)} taps, "
            f"{self.recipe.decoder.kind} ({decoder:,}), {self.task.outputs} outputs, on {self.here.device}"
        )

    def _say(self, text: str) -> None:
        if self.here.first:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _open_tensorboard(self) -> None:
        if self.here.first:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.files.tensorboard), purge_step=self.state.step + 1)


def _part(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
