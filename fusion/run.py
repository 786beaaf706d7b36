"""A run on disk: what is in its folder, and a trained head opened from it."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch

from featcache.errors import FeatcacheError, MismatchError, UsageError
from featcache.store import Cache
from fusion import caches, checkpoint, head, labels, tasks
from fusion.data import plan_evaluation
from fusion.distributed import World, autocast, pick_device
from fusion.modules import count_parameters
from fusion.predict import Predictions, Reader, predict_together
from fusion.recipe import Recipe
from fusion.recipe import read as read_recipe

LARGE_BATCH_SECONDS = 600.0
"""Frames of features that `Run.transcribe` puts into one forward, padding included."""


@dataclass(frozen=True)
class Files:
    """The folder of a run."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.toml"

    @property
    def head(self) -> Path:
        return self.path / "head.json"

    @property
    def checkpoint(self) -> Path:
        """The state to go on from; the latest weights."""
        return self.path / "checkpoint.safetensors"

    @property
    def state(self) -> Path:
        return self.path / "state.json"

    @property
    def best(self) -> Path:
        """The weights that were best on dev: the head."""
        return self.path / "best.safetensors"

    @property
    def skipped(self) -> Path:
        """Rows that the task could not use: id, split, reason."""
        return self.path / "skipped.jsonl"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.json"

    @property
    def utterances(self) -> Path:
        """The per-utterance table of test."""
        return self.path / "utterances.jsonl"

    @property
    def order(self) -> Path:
        """What `pipelines reproduce` leaves beside a row of its table, which it alone goes on with."""
        return self.path / "order.json"

    @property
    def lock(self) -> Path:
        """There while a process trains the run (`fusion.lock`)."""
        return self.path / "lock"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tb"

    @property
    def decoding(self) -> Path:
        """What `fusion decode` found: language models, lexicon, tuned weights, scores and tables."""
        return self.path / "decoding"

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end and scored.

        Scores without a step are those that an earlier `fusion eval` stored of any run.
        """
        return self.metrics.exists() and "best_step" in checkpoint.read_json(self.metrics)

    def clear(self) -> None:
        """Remove what a run wrote, and nothing else."""
        for path in (
            self.recipe, self.head, self.checkpoint, self.state, self.best, self.skipped, self.metrics,
            self.utterances,
        ):  # fmt: skip
            path.unlink(missing_ok=True)
        for folder in (self.tensorboard, self.decoding):
            shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a split and its per-utterance table, both JSON-able."""

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]


class Run:
    """A trained head, ready to use. Open with `Run.open`.

    Attributes:
        path: the run's folder.
        spec: what the head is and what it was trained on.
        head: in evaluation mode, on `device`.
        task: reads the logits.
    """

    def __init__(self, files: Files, spec: head.HeadSpec, module: head.Head, device: torch.device) -> None:
        self.files, self.spec, self.head, self.device = files, spec, module, device
        self.task = tasks.from_json(spec.task)

    @classmethod
    def open(cls, path: str | Path, device: str | torch.device = "cpu") -> Run:
        """Open the best checkpoint of a run.

        Raises:
            UsageError: it is not the folder of a run that has got as far as its first checkpoint.
            FeatcacheError: a file of it is damaged.
        """
        files = Files(Path(path))
        spec = cls.read_spec(path)
        module = head.build(spec)
        tensors, _ = checkpoint.load(files.best)
        checkpoint.load_weights(module, tensors, files.best)
        chosen = pick_device(str(device))
        return cls(files, spec, module.to(chosen).eval(), chosen)

    @staticmethod
    def read_spec(path: str | Path) -> head.HeadSpec:
        """What `head.json` of a run says, without its weights."""
        place = Files(Path(path)).head
        try:
            return head.HeadSpec.model_validate(checkpoint.read_json(place))
        except pydantic.ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise FeatcacheError(
                f"{place} is not a head of this version ({where}: {problem['msg']}); train it again"
            ) from error

    @staticmethod
    def read_recipe(path: str | Path) -> Recipe:
        """The resolved recipe of a run."""
        return read_recipe(Files(Path(path)).recipe)

    @property
    def path(self) -> Path:
        return self.files.path

    @property
    def recipe(self) -> Recipe:
        return self.read_recipe(self.path)

    @classmethod
    def read_metrics(cls, path: str | Path) -> dict[str, Any]:
        """The scores that a run was finished with.

        Raises:
            UsageError: it is not finished.
        """
        files = Files(Path(path))
        if not files.finished:
            if not files.recipe.exists():
                raise UsageError(f"{path} is not the folder of a run; `fusion train` prints it as its last line")
            raise UsageError(f"run {path} is not finished: {cls.way_on(path)}")
        metrics: dict[str, Any] = checkpoint.read_json(files.metrics)
        return _with_undefined(metrics)

    @classmethod
    def way_on(cls, path: str | Path) -> str:
        """The command that goes on with a run, in words."""
        files = Files(Path(path))
        if files.order.exists():
            return "`pipelines reproduce` goes on with it, as a row of its table"
        name = cls.read_recipe(path).run_name
        place, depth = Path(path), len(Path(name).parts)
        if place.parts[-depth:] != Path(name).parts:
            place = place.resolve()
        if place.parts[-depth:] != Path(name).parts:
            return f"its recipe has the name {name!r}; move the folder back to where it ends so, and train it there"
        runs = Path(*place.parts[:-depth])
        return f"`fusion train {files.recipe} --runs {runs}` goes on with it"

    @staticmethod
    def read_table(path: str | Path) -> dict[str, dict[str, Any]]:
        """The per-utterance table that a run was finished with, by id.

        Raises:
            FeatcacheError: it is missing or damaged.
        """
        place = Files(Path(path)).utterances
        try:
            rows = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines()]
            return {row["id"]: row for row in rows}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FeatcacheError(f"{place} cannot be read ({error}); `fusion eval {path}` writes it again") from error

    def metrics(self) -> dict[str, Any]:
        """The scores that this run was finished with; see `read_metrics`."""
        return self.read_metrics(self.path)

    @property
    def logit_rate(self) -> float:
        """Frames of logits a second."""
        return head.logit_rate(self.recipe, self.spec.frame_rate)

    def open_cache(self, cache: Cache | str | None = None) -> Cache:
        """The recipe's cache, or another one of the same features.

        Raises:
            UsageError: the recipe's cache is not where it was.
            MismatchError: the features are not those that the head was trained on.
        """
        if cache is None:
            cache = self.recipe.cache
            if not caches.is_there(cache):
                raise UsageError(caches.moved(cache, self.path, self.files.recipe))
        opened = caches.open_cache(cache) if isinstance(cache, str) else cache
        if opened.values_id != self.spec.values_id:
            raise MismatchError(
                f"run {self.path} was trained on features {self.spec.values_id[:12]}, and {opened.path} "
                f"holds {opened.values_id[:12]}; use a cache of {self.spec.upstream['id']} made in the same way"
            )
        return opened

    def evaluate(self, split: str = "test", cache: Cache | str | None = None) -> Evaluation:
        """Score the head on a split.

        Args:
            split: train, dev or test.
            cache: another encoding of the same features; the recipe's own by default.

        Raises:
            UsageError: no such split, or no usable row in it.
            MismatchError: the features are not those that the head was trained on.
        """
        if split not in labels.SPLITS:
            raise UsageError(f"split {split!r} is not allowed, use {' or '.join(labels.SPLITS)}")
        opened = self.open_cache(cache)
        selection = labels.select(opened, self.recipe)
        examples = selection.splits[split]
        chosen = labels.prepare(examples, split, self.task, self.head.output_frames(examples))
        if not len(chosen):
            raise UsageError(f"{split} has no usable row in {opened.path}")
        settings = self.recipe.train
        [found] = predict_together(
            [self.reader(chosen)], opened, World(0, 1, self.device), batch_seconds=settings.batch_seconds,
            workers=settings.workers,
        )  # fmt: skip
        return self.score(opened, chosen, found, self._facts())

    def _facts(self) -> dict[str, Any]:
        """What the metrics say of the training, as far as it has got: see `Learner.facts`."""
        names = ("best_step", "steps", "seconds", "dev", "train_utterances", "train_hours", "train_views")
        old = self.metrics() if self.files.finished else {}
        skipped = Counter(row["reason"] for row in checkpoint.read_json_lines(self.files.skipped))
        return {name: old[name] for name in names if name in old} | {"skipped": dict(skipped.most_common())}

    def reader(self, split: labels.Split) -> Reader:
        return Reader(self.head, self.task, split, self.spec.taps, self.recipe.train.precision)

    def score(self, cache: Cache, split: labels.Split, found: Predictions, facts: Mapping[str, Any]) -> Evaluation:
        """Score what the head said of the rows of a split; `facts` are added to the metrics."""
        settings = self.recipe
        report, rows = self.task.report(split.ids, split.references, found.values)
        metrics = report | {
            "split": split.name,
            "task": self.task.kind,
            "fuser": self.spec.fuser["kind"],
            "decoder": self.spec.decoder["kind"],
            "fusion_parameters": count_parameters(self.head.fuser),
            "decoder_parameters": count_parameters(self.head.decoder),
            "taps": list(self.spec.taps),
            "name": settings.run_name,
            "seed": settings.seed,
            "upstream": self.spec.upstream["id"],
            "values_id": cache.values_id,
            "encoding_id": cache.encoding_id,
            "profile": cache.profile,
            "hours": round(float(split.frames.sum()) / cache.frame_rate / 3600, 3),
            **facts,
        }
        return Evaluation(metrics, rows)

    def write(self, evaluation: Evaluation) -> None:
        """Store the scores and the table in the run's folder."""
        checkpoint.write_json_lines(self.files.utterances, evaluation.rows)
        checkpoint.write_json(self.files.metrics, evaluation.metrics)

    @torch.no_grad()
    def transcribe(self, features: Sequence[np.ndarray]) -> list[str]:
        """Predictions as text (a class by its name) from features.

        Args:
            features: each float32 (frames, taps, channels), with the taps of `spec`.

        Raises:
            UsageError: another number of taps or channels.
        """
        want = self._check(features)
        lengths = np.array([len(array) for array in features], dtype=np.int64)
        found = [""] * len(features)
        budget = round(LARGE_BATCH_SECONDS * self.spec.frame_rate)
        usable = np.flatnonzero(lengths > 0)
        for slot in plan_evaluation(lengths[usable], budget):
            index = usable[slot.positions]
            padded = torch.zeros(len(index), int(lengths[index].max()), *want)
            for i, position in enumerate(index):
                padded[i, : lengths[position]] = torch.from_numpy(
                    np.ascontiguousarray(features[position], dtype=np.float32)
                )
            with autocast(self.recipe.train.precision, self.device):
                logits, out_lengths = self.head(
                    padded.to(self.device), torch.from_numpy(lengths[index]).to(self.device)
                )
            for position, prediction in zip(index, self.task.predict(logits.float(), out_lengths), strict=True):
                found[position] = self.task.text(prediction)
        return found

    @torch.no_grad()
    def log_probs(self, features: np.ndarray) -> torch.Tensor:
        """Log probabilities float32 (frames', outputs), on the CPU, from float32 (frames, taps, channels).

        Raises:
            UsageError: another number of taps or channels.
        """
        self._check([features])
        batch = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32)).unsqueeze(0)
        with autocast(self.recipe.train.precision, self.device):
            logits, lengths = self.head(batch.to(self.device), torch.tensor([len(features)], device=self.device))
        return logits[0, : int(lengths[0])].float().log_softmax(-1).cpu()

    def _check(self, features: Sequence[np.ndarray]) -> tuple[int, int]:
        want = (len(self.spec.taps), self.spec.channels)
        for array in features:
            if array.ndim != 3 or array.shape[1:] != want:
                shape = f"(frames, {want[0]}, {want[1]})"
                raise UsageError(f"features of shape {array.shape} do not fit: this head reads {shape}")
        return want


def _with_undefined(metrics: dict[str, Any]) -> dict[str, Any]:
    """Metrics as they were written, with NaN for a score that was undefined."""
    for measure in tasks.of_kind(metrics["task"]).measures:
        for place, name in ((metrics, measure.name), (metrics.get("dev", {}), measure.name)):
            if name in place and place[name] is None:
                place[name] = math.nan
        ends = f"{measure.name}_ci95"
        if ends in metrics:
            metrics[ends] = [math.nan if end is None else end for end in metrics[ends]]
    return metrics
