"""All rows of the table: trained where they are not there yet, and what each has cost."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from featcache.errors import UsageError
from featcache.job import Job, Request
from featcache.store import Cache
from featcache.upstreams import UpstreamConfig
from fusion import head, recipe
from fusion.console import plain_console
from fusion.recipe import Recipe
from fusion.run import Files, Run
from pipelines.reproduce import worker
from pipelines.reproduce.entries import BASE_RECIPE, ENTRIES, Entry, Scale, scale_of, select
from pipelines.reproduce.learners import Measured
from pipelines.reproduce.worker import Order

DEMO_MODEL, DEMO_MANIFEST, DEMO_CACHE = "package:whisper-base", Path("data/demo/manifest.jsonl"), Path("caches/demo")


@dataclass(frozen=True)
class Row:
    """One row. Rates are fractions, times are of training steps without looks at dev.

    Attributes:
        encoder_parameters: trained ones of the upstream, and those of the fuser.
        encoder_parameters_pct: of all parameters of the upstream, in per cent.
        peak_memory_mb: on a CPU of the process, less what it held before anything was loaded; on a GPU of torch.
        epoch_s: once through the training speech.
        time_to_best_s: until the weights that were best on dev.
        hours_per_hour: hours of speech trained on in an hour.
        warm_start_s: training of the head that the row starts from, until its best; not in the other times.
        break_even_epoch: of a live row, the first epoch after which cached HFF is ahead of it, the extraction of the
            cache counted; of a cached row, the one after which it is ahead of full fine-tuning. None: never, or not
            known.
    """

    name: str
    title: str
    wer: float
    wer_ci95: tuple[float, float]
    cer: float
    dev_wer: float
    encoder_parameters: int
    encoder_parameters_pct: float
    fusion_parameters: int
    decoder_parameters: int
    peak_memory_mb: float
    epoch_s: float
    steps_per_s: float
    time_to_best_s: float
    hours_per_hour: float
    steps: int
    best_step: int
    warm_start_s: float | None
    break_even_epoch: int | None
    run: str


@dataclass(frozen=True)
class Result:
    """The table, and what it was made with."""

    scale: Scale
    recipe: Recipe
    """As all rows share it."""
    upstream: str
    upstream_parameters: int
    device: str
    extraction_s: float | None
    rows: tuple[Row, ...]


def reproduce(
    scale: str,
    model: str,
    manifest: Path,
    cache: Path | None = None,
    *,
    only: Sequence[str] = (),
    base: Path = BASE_RECIPE,
    runs: Path = Path("runs"),
    overrides: Sequence[str] = (),
    restart: bool = False,
    console: Console | None = None,
) -> Result:
    """Extract the cache where it is absent, train every row in turn, and measure. What is finished is kept.

    Args:
        model: id of the upstream.
        cache: if not given the demo's where model and manifest are, else `caches/reproduce/MODEL-MANIFEST`.
        only: names of rows; all where empty.
        overrides: recipe keys for every row, after those of the scale.

    Raises:
        UsageError: an unknown scale or row, settings that a recipe does not take, a recipe of another task than ctc,
            or no GPU where one is needed.
        Interrupted: a signal came. JobError: a row could not be trained. The same command goes on.
    """
    console = console or plain_console(stderr=True)
    budget, entries = scale_of(scale), select(only)
    cache = cache or default_cache(model, manifest)
    place = [f"cache={json.dumps(str(cache))}"]
    shared = recipe.read(base, [*budget.overrides, *overrides, *place])
    if shared.task.kind != "ctc":
        raise UsageError(
            f"key task.kind of {base}: the table is of word error rates, and task {shared.task.kind!r} has none; give "
            "--recipe a recipe of task ctc"
        )
    device = _device(budget, shared)
    console.print(budget_line(budget, shared), highlight=False, soft_wrap=True)
    extraction = extract(manifest, cache, model, device)
    orders: dict[str, Order] = {}
    for entry in entries:
        warm = Files(orders[entry.warm].folder).best if entry.warm else None
        order = Order.make(entry, recipe_of(entry, shared, budget), manifest, runs, warm)
        console.print(f"{entry.title}: {order.folder}", highlight=False, soft_wrap=True)
        if not worker.run(order, restart=restart):
            console.print("finished before", highlight=False)
        orders[entry.name] = order
    measured = {name: Measured.read(order.folder) for name, order in orders.items()}
    parameters = max(found.upstream_parameters for found in measured.values()) or count_upstream(cache)
    rows = {entry.name: _row(entry, orders, measured, parameters) for entry in entries}
    rows = {name: replace(row, break_even_epoch=_break_even(row, rows, extraction)) for name, row in rows.items()}
    return Result(budget, shared, model, parameters, device, extraction, tuple(rows.values()))


def default_cache(model: str, manifest: Path) -> Path:
    """Where the cache of a model and a manifest is, or goes."""
    if (model, manifest) == (DEMO_MODEL, DEMO_MANIFEST):
        return DEMO_CACHE
    parts = [model, manifest.parent.name, manifest.stem]
    return Path("caches") / "reproduce" / "-".join(_slug(part) for part in parts if part)


def recipe_of(entry: Entry, shared: Recipe, budget: Scale) -> Recipe:
    """The recipe of a row: the shared one with its steps, and its fuser, which takes from it what it knows."""
    kept = shared.fuser.parameters
    if entry.fuser != shared.fuser.kind:
        kept = {key: value for key, value in kept.items() if key == "width"}
    fuser = shared.fuser.replaced(entry.fuser, **kept)
    name = f"reproduce/{_slug(Path(shared.cache).name)}-{budget.name}/{entry.name}"
    steps = {key: entry.times * getattr(shared.train, key) for key in ("steps", "eval_every")}
    train = shared.train.model_copy(update=steps)
    return head.resolve(shared.model_copy(update={"fuser": fuser, "name": name, "train": train}))


def budget_line(budget: Scale, shared: Recipe) -> str:
    """The budget in words."""
    train = shared.train
    stop = f"until {train.patience} looks at dev were no better" if train.patience else "to the end"
    return (
        f"budget {budget.name} ({budget.text}), the same for every row that names no other: {train.steps:,} steps of "
        f"{train.batch_seconds:g} s of speech, {stop}; dev every {train.eval_every} steps"
    )


def extract(manifest: Path, cache: Path, model: str, device: str) -> float | None:
    """Make the cache where it is not there, and say what it takes: seconds, None where it was made elsewhere."""
    job = Job(manifest, cache, Request(upstream=UpstreamConfig(id=model)), device)
    job.extract()
    realtime = job.realtime()
    return float(Cache.open(cache).seconds.sum()) / realtime if realtime else None


def count_upstream(cache: Path) -> int:
    """Parameters of the model that a cache is of."""
    from featcache import upstreams
    from fusion.modules import count_parameters

    config = UpstreamConfig.model_validate(Cache.open(cache).spec.upstream)
    return count_parameters(upstreams.load(config).network().module, trainable_only=False)


def _device(budget: Scale, shared: Recipe) -> str:
    """cpu or cuda, as the rows will choose."""
    wanted = shared.train.device
    if budget.needs_gpu and wanted == "auto" and not torch.cuda.is_available():
        raise UsageError(
            f"scale {budget.name} wants a GPU, and there is none: use --scale overnight, or --set train.device=cpu "
            "to wait for it"
        )
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def _row(entry: Entry, orders: dict[str, Order], measured: dict[str, Measured], upstream_parameters: int) -> Row:
    order, took = orders[entry.name], measured[entry.name]
    metrics = Run.read_metrics(order.folder)
    encoder = took.encoder_parameters + int(metrics["fusion_parameters"])
    frames_per_s = took.frames / took.seconds
    frame_rate = Run.read_spec(order.folder).frame_rate
    warm = None
    if entry.warm:
        warm = _time_to_best(measured[entry.warm], Run.read_metrics(orders[entry.warm].folder))
    return Row(
        name=entry.name,
        title=entry.title,
        wer=metrics["wer"],
        wer_ci95=(metrics["wer_ci95"][0], metrics["wer_ci95"][1]),
        cer=metrics["cer"],
        dev_wer=metrics["dev"]["wer"],
        encoder_parameters=encoder,
        encoder_parameters_pct=round(100 * encoder / upstream_parameters, 3),
        fusion_parameters=int(metrics["fusion_parameters"]),
        decoder_parameters=int(metrics["decoder_parameters"]),
        peak_memory_mb=round(took.peak_bytes / 1e6, 1),
        epoch_s=round(took.epoch_frames / frames_per_s, 3),
        steps_per_s=round(took.steps / took.seconds, 4),
        time_to_best_s=round(_time_to_best(took, metrics), 1),
        hours_per_hour=round(frames_per_s / frame_rate, 1),
        steps=int(metrics["steps"]),
        best_step=int(metrics["best_step"]),
        warm_start_s=None if warm is None else round(warm, 1),
        break_even_epoch=None,
        run=str(order.folder),
    )


def _time_to_best(took: Measured, metrics: dict[str, Any]) -> float:
    return int(metrics["best_step"]) * took.seconds / took.steps


def _break_even(row: Row, rows: dict[str, Row], extraction: float | None) -> int | None:
    """The first epoch at whose end the cache has paid; see `Row.break_even_epoch`."""
    live = next(entry.live for entry in ENTRIES if entry.name == row.name)
    cached, other = (rows.get("hff"), row) if live else (row, rows.get("full"))
    if extraction is None or cached is None or other is None or cached.epoch_s >= other.epoch_s:
        return None
    return math.floor(extraction / (other.epoch_s - cached.epoch_s)) + 1


def _slug(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-")
