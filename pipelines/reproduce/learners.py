"""`fusion`'s learner with a stopwatch and a meter of memory, and one that trains the upstream too."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from torch import Tensor

from featcache import upstreams
from featcache.cores import usable_cores
from featcache.errors import FeatcacheError, UsageError
from fusion import checkpoint, head, modules, optimiser
from fusion.data import Batch, moments
from fusion.distributed import World
from fusion.learner import Learner, Moments
from fusion.modules.masking import draw_masks
from fusion.predict import Predictions
from fusion.recipe import Recipe
from fusion.run import Files, Run
from pipelines.reproduce import memory
from pipelines.reproduce.entries import Entry
from pipelines.reproduce.live import LiveHead
from pipelines.reproduce.methods import ADDING, METHODS, unreached
from pipelines.reproduce.speech import Speech

if TYPE_CHECKING:
    from featcache.store import Cache


@dataclass(frozen=True)
class Measured:
    """What training has taken so far, looks at dev not counted."""

    steps: int = 0
    seconds: float = 0.0
    frames: int = 0
    peak_bytes: int = 0
    epoch_frames: int = 0
    upstream_parameters: int = 0
    """Of all of the upstream; 0 where it is not there."""
    encoder_parameters: int = 0
    """Trained ones of the upstream."""

    @staticmethod
    def place(run: Path) -> Path:
        return run / "measured.json"

    @classmethod
    def read(cls, run: Path) -> Measured:
        """
        Raises:
            FeatcacheError: there is none, or it is damaged.
        """
        place = cls.place(run)
        try:
            return cls(**checkpoint.read_json(place))
        except TypeError as error:
            raise FeatcacheError(f"{place} is not of this version ({error}): use --restart") from error

    def write(self, run: Path) -> None:
        checkpoint.write_json(self.place(run), vars(self))


class MeasuredLearner(Learner):
    """A learner that writes down time, frames and peak memory whenever it saves its state.

    On a GPU the first step is left out of time, steps and frames: in it kernels are loaded, and some compiled.

    Args:
        baseline: bytes of this process before anything was loaded.
    """

    def __init__(
        self,
        recipe: Recipe,
        cache: Cache,
        files: Files,
        here: World,
        console: Console,
        known: Moments,
        *,
        baseline: int,
    ) -> None:
        super().__init__(recipe, cache, files, here, console, known)
        self.baseline = baseline
        self.measured = Measured(epoch_frames=int(self.splits["train"].frames.sum()))
        self._since: float | None = None  # when the stopwatch was started, where it runs
        self._warming = False

    def load(self) -> None:
        super().load()
        self.measured = Measured.read(self.files.path)

    def begin(self) -> None:
        super().begin()
        memory.reset_peak(self.here.device)
        self._since = time.perf_counter()
        self._warming = self.here.device.type == "cuda"

    def step(self, batch: Batch) -> None:
        super().step(batch)
        if self._warming:
            self._warming = False
            torch.cuda.synchronize(self.here.device)
            self._since = time.perf_counter()
            return
        self._count(steps=self.measured.steps + 1, frames=self.measured.frames + batch.frames)

    def due(self) -> bool:
        due = super().due()
        if due:
            self._stop_watch()
        return due

    def look(self, found: Predictions, loss: float, speeds: dict[str, float], say: Callable[[str], None]) -> None:
        super().look(found, loss, speeds, say)
        self._since = time.perf_counter()

    def save(self) -> None:
        """Also where a signal stops training between two looks."""
        self._stop_watch()
        self.measured.write(self.files.path)
        super().save()

    def _stop_watch(self) -> None:
        if self._since is None:
            return
        if self.here.device.type == "cuda":
            torch.cuda.synchronize(self.here.device)
        peak = memory.peak(self.here.device) - self.baseline
        self._count(
            seconds=self.measured.seconds + time.perf_counter() - self._since,
            peak_bytes=max(self.measured.peak_bytes, peak),
        )
        self._since = None

    def _count(self, **values: float) -> None:
        self.measured = Measured(**(vars(self.measured) | values))


class LiveLearner(MeasuredLearner):
    """A learner that is fed recordings, and trains what `entry` says of the upstream with its head.

    Args:
        cache: its rows, labels and moments are used, and no feature of it.
        manifest: of the cache's recordings.
        warm: weights of a head to start from.

    Raises:
        UsageError: the method does not fit the model.
        UpstreamError: the model cannot be loaded.
    """

    head: LiveHead

    def __init__(
        self, recipe: Recipe, cache: Cache, files: Files, here: World, console: Console, known: Moments, *,
        baseline: int, entry: Entry, manifest: Path, warm: Path | None = None,
    ) -> None:  # fmt: skip
        self.entry, self.warm = entry, warm
        self.features = cache
        super().__init__(recipe, Speech(cache, manifest), files, here, console, known, baseline=baseline)
        if here.device.type == "cpu" and not recipe.train.threads and "OMP_NUM_THREADS" not in os.environ:
            # the model wants all cores: readers of recordings need next to nothing
            torch.set_num_threads(usable_cores())
        network = self.head.network
        self._count(upstream_parameters=self._upstream_parameters, encoder_parameters=modules.count_parameters(network))

    def _build(self) -> LiveHead:
        plain = head.build(self.spec)
        if self.warm is not None:
            tensors, _ = checkpoint.load(self.warm)
            checkpoint.load_weights(plain, tensors, self.warm)
        upstream = upstreams.load(self._config(), device=str(self.here.device))
        network = upstream.network()
        self._upstream_parameters = modules.count_parameters(network.module, trainable_only=False)
        METHODS[self.entry.method](network, **self.entry.settings)
        return LiveHead(plain, upstream)

    def _config(self) -> upstreams.UpstreamConfig:
        """The cache's upstream, with the taps of this row and the arithmetic of its training."""
        settings = self.recipe.train
        bfloat16 = settings.precision == "bfloat16" or (
            settings.precision == "auto" and self.here.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        own = {"taps": self.spec.taps, "dtype": "bfloat16" if bfloat16 else "float32"}
        return upstreams.UpstreamConfig.model_validate(dict(self.features.spec.upstream) | own)

    def _moments(self) -> tuple[Tensor, Tensor]:
        return moments(self.features, self.splits["train"], self.spec.taps, self.recipe.seed)

    def _build_optimiser(self) -> torch.optim.Optimizer:
        return optimiser.build(self.head, self.recipe.train, {self.head.network: self.entry.rate})

    def open_best(self) -> Run:
        tensors, _ = checkpoint.load(self.files.best)
        checkpoint.load_weights(self.head, tensors, self.files.best)
        return Run(self.files, self.spec, self.head.eval(), self.here.device)

    def prepare(self, step: int, batch: Batch) -> Batch:
        """Nothing: the upstream comes before what a learner on the cache prepares."""
        return batch

    def step(self, batch: Batch) -> None:
        time, channels, taps = self.mask_shares
        if time or channels or taps:
            # what a learner on the cache would mask, for the head to mask
            self.head.masks = draw_masks(
                batch.lengths, (int(batch.lengths.max()), len(self.spec.taps), self.spec.channels),
                time=time, channels=channels, taps=taps,
                generator=torch.Generator().manual_seed(self._seed(self.state.step + 1)),
            )  # fmt: skip
        super().step(batch)
        if self.state.step == 1 and self.entry.method in ADDING:
            names = unreached(self.head.network)
            if names:
                raise UsageError(
                    f"row {self.entry.name}: {self.features.upstream} computes around {names[0]}, which would never "
                    "learn; leave the row out with --only"
                )
