"""One row of the table, trained in a process of its own, so that its peak of memory is its own."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from featcache.errors import FeatcacheError, Interrupted, JobError, UsageError
from fusion import checkpoint
from fusion.recipe import Recipe
from fusion.run import Files
from fusion.state import stop_signals
from pipelines.reproduce import memory
from pipelines.reproduce.entries import Entry
from pipelines.reproduce.learners import LiveLearner, Measured, MeasuredLearner

IGNORED = ("train.workers", "train.device")


class Order(BaseModel):
    """What a row is trained as; stored beside its run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    row: dict[str, Any]
    """The fields of an `Entry`."""
    recipe: Recipe
    manifest: str
    runs: str
    warm: str = ""
    """The weights to start from."""
    warm_sha256: str = ""

    @classmethod
    def make(cls, entry: Entry, recipe: Recipe, manifest: Path, runs: Path, warm: Path | None) -> Order:
        # How many steps it has is the recipe's.
        row = {key: value for key, value in vars(entry).items() if key not in ("title", "times")}
        row["settings"] = dict(entry.settings)
        found = hashlib.sha256(warm.read_bytes()).hexdigest() if warm else ""
        return cls(
            row=row, recipe=recipe, manifest=str(manifest), runs=str(runs), warm=str(warm or ""), warm_sha256=found
        )  # fmt: skip

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.recipe.name

    @property
    def place(self) -> Path:
        return Files(self.folder).order

    @property
    def finished(self) -> bool:
        return Files(self.folder).finished and Measured.place(self.folder).exists()

    def same_as(self, other: Order) -> bool:
        """Whether both give the same row."""
        return self._deciding() == other._deciding()

    def _deciding(self) -> dict[str, Any]:
        values = self.model_dump(mode="json", exclude={"runs", "warm"})
        for key in IGNORED:
            section, name = key.split(".")
            values["recipe"][section].pop(name)
        return values


def read(place: Path) -> Order:
    """An order as it is stored.

    Raises:
        UsageError: there is none. FeatcacheError: it is damaged, or of another version.
    """
    try:
        return Order.model_validate(checkpoint.read_json(place))
    except ValidationError as error:
        raise FeatcacheError(f"{place} is not of this version ({error.errors()[0]['msg']}): use --restart") from error


def run(order: Order, *, restart: bool = False) -> bool:
    """Train a row in a new process, unless it is there; whether there was anything to do.

    Raises:
        UsageError: other settings made what is there.
        Interrupted: a signal came; the row goes on where it stopped.
        JobError: the row could not be trained; the process has said why.
    """
    if order.place.exists() and not restart:
        if not order.same_as(read(order.place)):
            raise UsageError(f"{order.folder} was made with other settings; use --restart, or other --runs to keep it")
        if order.finished:
            return False
    else:
        Files(order.folder).clear()
        Measured.place(order.folder).unlink(missing_ok=True)
    checkpoint.write_json(order.place, order.model_dump(mode="json"))
    command = [sys.executable, "-m", "pipelines.reproduce", str(order.place)]
    with stop_signals() as stop, subprocess.Popen(command, stdout=2) as process:
        while process.poll() is None:
            if stop.wait(0.2):
                process.terminate()
                process.wait()
    if stop.is_set():
        raise Interrupted(f"stopped in row {order.row['name']}; the same command goes on from there")
    if process.returncode:
        raise JobError(f"row {order.row['name']} could not be trained, see above; the same command goes on from there")
    return True


def train(order: Order) -> None:
    """Train a row here."""
    import torch

    from fusion.distributed import pick_device
    from fusion.train import fit

    entry = Entry(**{"title": "", **order.row})
    device = pick_device(order.recipe.train.device)
    if device.type == "cuda":
        # It would make a plan for every shape, tens of milliseconds each, and hardly any two batches have the same.
        torch.backends.cuda.enable_cudnn_sdp(False)
    _import_libraries(entry)
    make: Callable[..., MeasuredLearner] = partial(MeasuredLearner, baseline=memory.held(device))
    if entry.live:
        make = partial(
            LiveLearner, baseline=memory.held(device), entry=entry, manifest=Path(order.manifest),
            warm=Path(order.warm) if order.warm else None,
        )  # fmt: skip
    fit(order.recipe, runs=order.runs, make=make)


def _import_libraries(entry: Entry) -> None:
    """What would be imported later: code is not what a row's memory is compared for."""
    import torch
    import torch.utils.tensorboard

    # making an optimiser imports torch's compiler
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)
    if entry.live:
        import transformers.models.whisper.modeling_whisper  # noqa: F401
    if entry.method == "lora":
        with contextlib.suppress(ImportError):  # the method says what to do
            import peft  # noqa: F401
