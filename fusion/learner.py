"""One head in training: its task, its rows, its weights and its state, on disk and in memory.

A learner is fed by `fusion.stream`, alone or beside others: nothing that it does depends on who else is fed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.profiler import record_function

from featcache.errors import JobError, MismatchError, UsageError
from fusion import checkpoint, head, labels, modules, optimiser, tasks
from fusion.data import Batch, moments
from fusion.distributed import World, autocast
from fusion.labels import Example, Split
from fusion.modules import randomness
from fusion.predict import Predictions, Reader
from fusion.recipe import Recipe
from fusion.run import Files, Run
from fusion.state import State, digest
from fusion.views import Pool, pool

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from featcache.store import Cache

Moments = dict[tuple[str, tuple[str, ...], bytes, int], tuple[Tensor, Tensor]]
"""What `moments` gave, by cache, taps, rows and seed."""


class Diverged(JobError):
    """The loss is no number. Where heads were trained together, `finished` are the others, by name."""

    def __init__(self, message: str, finished: Mapping[str, Run] | None = None) -> None:
        super().__init__(message)
        self.finished = dict(finished or {})


class Learner:
    """A run in the making.

    Args:
        recipe: resolved.
        known: moments of features, which learners on the same rows share.

    Raises:
        UsageError: the recipe does not fit the cache.
    """

    def __init__(
        self, recipe: Recipe, cache: Cache, files: Files, here: World, console: Console, known: Moments
    ) -> None:
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
        self.head = self._build().to(here.device)
        self.splits: dict[str, Split] = {}
        self.skipped = list(selection.skipped)
        for name, examples in selection.splits.items():
            frames = self.head.output_frames(examples)
            self.splits[name] = labels.prepare(examples, name, self.task, frames, learn=name == "train")
            self.skipped += self.splits[name].skipped
        for name in ("train", "dev"):
            if not len(self.splits[name]):
                raise UsageError(
                    f"{name} has no usable row: {labels.list_reasons(self.skipped, name)}; use another task.label or "
                    "task.where, or more frames of logits (fuser.pool, decoder.stack)"
                )
        for name in ("dev", "test"):
            if len(self.splits[name]):
                self.task.check_split(name, self.splits[name].references, self.splits[name].targets)
        self.notes = selection.notes
        self.views_unused = 0 if recipe.train.views else len(selection.views)
        self.pool = self._pool(selection.views)
        key = (cache.path, self.spec.taps, self.splits["train"].rows.tobytes(), recipe.seed)
        if key not in known:
            known[key] = self._moments()
        self.head.standardise_by(*known[key])
        self.model = here.wrap(self.head)
        self.optimiser = self._build_optimiser()
        self.state = State(data=digest(self.pool.split, self.splits["dev"]), processes=here.size)
        self.seconds = 0.0
        self.failure: Diverged | None = None
        self._loss_sum, self._loss_steps, self._last_loss = torch.zeros((), device=here.device), 0, math.nan
        self._writer: SummaryWriter | None = None

    @property
    def running(self) -> bool:
        return not self.state.finished and self.failure is None

    # what a head that is fed otherwise than from a cache does in another way

    def _build(self) -> head.Head:
        return head.build(self.spec)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return moments(self.cache, self.splits["train"], self.spec.taps, self.recipe.seed)

    def _pool(self, views: Sequence[Example]) -> Pool:
        share = self.recipe.train.views
        if not share:
            return Pool.plain(self.splits["train"])
        found = pool(self.splits["train"], views, share, self.task, self.head.output_frames)
        self.skipped += found.split.skipped
        if not len(found.of):
            raise UsageError(
                f"key train.views: {share:g} of the draws are to be views, and no usable row of train has one in "
                f"{self.cache.path}; `featcache manifest views` adds them to a manifest"
            )
        return found

    def _build_optimiser(self) -> torch.optim.Optimizer:
        return optimiser.build(self.head, self.recipe.train)

    def open_best(self) -> Run:
        """The best checkpoint, ready to be evaluated."""
        return Run.open(self.files.path, self.here.device)

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
            self.say(f"going on from step {state.step}")
            if state.processes not in (0, self.here.size):
                self.say(
                    f"so far a step took a batch of each of {state.processes} processes, from here on of "
                    f"{self.here.size}: it ends in weights that neither gives alone; --restart trains it anew"
                )
            self.state = replace(state, processes=self.here.size)

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

    def begin(self) -> None:
        """Get ready for the first step, or the next one."""
        if self.state.step == 0:
            self._save_facts()
            self._announce()
        self._open_tensorboard()
        self.head.train()

    def end(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @property
    def feed(self) -> Hashable:
        """What decides what `prepare` makes of a batch: learners of one stream with the same feed may share it."""
        moments = torch.stack([self.head.centre, self.head.deviation]).cpu().numpy().tobytes()
        return self.spec.taps, self.head.pool, moments, self.mask_shares

    @property
    def mask_shares(self) -> tuple[float, float, float]:
        """Of time, channels and taps."""
        settings = self.recipe.train
        return settings.mask_time, settings.mask_channels, settings.mask_taps

    def prepare(self, step: int, batch: Batch) -> Batch:
        """What of a step needs no weights: its batch masked, in place, then as the head takes it.

        Any thread may do it, ahead of the step: every random number is seeded by that.
        """
        time, channels, taps = self.mask_shares
        with torch.no_grad(), record_function("prepare"):
            features = modules.mask_features(
                batch.features, batch.lengths, time=time, channels=channels, taps=taps, fill=self.head.centre,
                generator=torch.Generator().manual_seed(self._seed(step)),
            )  # fmt: skip
            features, lengths = self.head.prepare(features, batch.lengths)
        return replace(batch, features=features, lengths=lengths)

    def step(self, batch: Batch) -> None:
        """One update from a batch that was prepared for it; every random number is seeded by the step."""
        settings = self.recipe.train
        step = self.state.step + 1
        seed = self._seed(step)
        torch.manual_seed(seed)
        optimiser.set_rate(self.optimiser, optimiser.rate(settings, step))
        self.optimiser.zero_grad(set_to_none=True)
        with record_function("forward"), randomness.seeded(seed):
            with autocast(settings.precision, self.here.device):
                logits, lengths = self.model(batch.features, batch.lengths, prepared=True)
            loss = self.task.loss(logits, lengths, self.pool.split.targets_of(batch.slot.positions))
        with record_function("backward"):
            loss.backward()
        with record_function("update"):
            if settings.clip:
                torch.nn.utils.clip_grad_norm_(self.head.parameters(), settings.clip)
            self.optimiser.step()
        self._loss_sum += loss.detach()
        self._loss_steps += 1
        self.state = replace(self.state, step=step, epoch=batch.slot.epoch, step_of_epoch=batch.slot.step + 1)

    def due(self) -> bool:
        """Whether dev is to be looked at after this step."""
        settings = self.recipe.train
        return self.state.step % settings.eval_every == 0 or self.state.step == settings.steps

    def loss_so_far(self) -> float:
        """The mean of this process since the last look, or at it; waits for the device."""
        return float(self._loss_sum) / self._loss_steps if self._loss_steps else self._last_loss

    def mean_loss(self) -> float:
        """The mean over steps and processes since the last look; nothing is saved after one that is no number.

        Raises:
            Diverged: it is not finite.
        """
        loss = float(self.here.mean(self._loss_sum / max(self._loss_steps, 1)))
        if not math.isfinite(loss):
            kept = "the last good state is kept" if self.files.checkpoint.exists() else "no state was saved before"
            raise Diverged(
                f"{self.recipe.name}: the loss is {loss} around step {self.state.step}; {kept}, lower train.lr or "
                "train.clip in its recipe, and give it to `fusion train` with --restart"
            )
        return loss

    def reader(self, split: str) -> Reader:
        return Reader(self.head, self.task, self.splits[split], self.spec.taps, self.recipe.train.precision)

    def look(self, found: Predictions, loss: float, speeds: dict[str, float], say: Callable[[str], None]) -> None:
        """Take in what the head says of dev, keep the weights where they are the best, and save.

        Args:
            loss: of training, since the last look.
            speeds: figures for TensorBoard.
            say: prints a line.
        """
        settings, state = self.recipe.train, self.state
        scores = self.task.measure(self.splits["dev"].references, found.values)
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
        self._loss_sum, self._loss_steps, self._last_loss = torch.zeros_like(self._loss_sum), 0, loss
        text = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        mark = "  best so far" if better else ""
        say(f"step {state.step}: loss {loss:.3f}  dev loss {found.loss:.3f}  dev {text}{mark}")
        if finished and state.step < settings.steps:
            say(f"no better dev {self.metric.title} in {looks} looks: stopping early")
        if self._writer is not None:
            values = {"train/loss": loss, "train/lr": optimiser.rate(settings, state.step), "dev/loss": found.loss}
            values |= {f"dev/{name}": value for name, value in scores.items()}
            for name, value in (values | speeds).items():
                self._writer.add_scalar(name, value, state.step)
            self._writer.flush()
        self.save()

    # the end

    def final_split(self) -> Split:
        """What the best checkpoint is evaluated on, once."""
        split = self.splits["test"]
        if not len(split):
            self.say("test has no usable row: the figures are of dev, which also chose the checkpoint")
            split = self.splits["dev"]
        return split

    def facts(self) -> dict[str, object]:
        """What the metrics say of the training."""
        train_hours = float(self.splits["train"].frames.sum()) / self.cache.frame_rate / 3600
        return {
            "best_step": self.state.best_step,
            "steps": self.state.step,
            "seconds": round(self.seconds, 1),
            "dev": self.state.best_dev,
            "train_utterances": len(self.splits["train"]),
            "train_hours": round(train_hours, 3),
            "train_views": len(self.pool.of),
            "skipped": labels.count_reasons(self.skipped),
        }

    def say(self, text: str) -> None:
        if self.here.first:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _seed(self, step: int) -> int:
        return int(np.random.SeedSequence([self.recipe.seed, step, self.here.rank]).generate_state(1, np.uint64)[0])

    def _announce(self) -> None:
        for note in self.notes:
            self.say(note)
        for name, split in self.splits.items():
            hours = float(split.frames.sum()) / self.cache.frame_rate / 3600
            self.say(f"{name}: {len(split)} utterances, {hours:.2f} h{self._skipped_of(name)}")
        if self.pool.share:
            count, of = len(self.pool.of), len(np.unique(self.pool.of))
            reasons = self._skipped_of(labels.VIEWS)
            self.say(f"views: {count} of {of} utterances of train, drawn at {self.pool.share:.0%}{reasons}")
        elif self.views_unused:
            self.say(f"views: {self.views_unused}, not used (key train.views is 0)")
        fuser, decoder = modules.count_parameters(self.head.fuser), modules.count_parameters(self.head.decoder)
        self.say(
            f"{self.recipe.fuser.kind} ({fuser:,} parameters) over {len(self.spec.taps)} taps, "
            f"{self.recipe.decoder.kind} ({decoder:,}), {self.task.outputs} outputs, on {self.here.device}"
        )

    def _skipped_of(self, name: str) -> str:
        """How many rows of a split were skipped and why, to be put behind what is said of it."""
        reasons = labels.count_reasons(skip for skip in self.skipped if skip.split == name)
        return f", skipped {', '.join(f'{n} ({reason})' for reason, n in reasons.items())}" if reasons else ""

    def _open_tensorboard(self) -> None:
        if self.here.first:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.files.tensorboard), purge_step=self.state.step + 1)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
