"""Train heads from a cache: `fit` makes a run, or goes on with one; `fit_together` makes many from one pass.

Every random number of a step (dropout, masking) comes from a generator seeded with (seed, step, rank), the
order of batches from (seed, epoch), the learning rate from the step. So the state of a run is its weights,
the optimiser's moments and a few numbers, and a run that was killed and resumed ends, on the CPU, in the
same bits as one that was not, and a head that was trained beside others in the same bits as one alone that had
the same `train.threads`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from featcache.errors import Interrupted, UsageError
from featcache.startup import check_trace
from fusion import caches, head
from fusion.console import plain_console
from fusion.distributed import World, use_threads, world
from fusion.learner import Diverged, Learner, Moments
from fusion.lock import locked
from fusion.recipe import Recipe, differences
from fusion.run import Files, Run
from fusion.stream import Stream, streams
from fusion.trace import Tracer

if TYPE_CHECKING:
    from featcache.store import Cache

IGNORED_ON_RESUME = ("train.workers", "train.device")
"""Keys that decide no bit of the result."""


def fit(
    recipe: Recipe,
    *,
    runs: str | Path = "runs",
    mode: str = "auto",
    console: Console | None = None,
    make: Callable[..., Learner] = Learner,
    trace: Path | None = None,
) -> Run:
    """Train a head as a recipe says, evaluate the best checkpoint on test once, and return the run.

    Args:
        runs: the folder of all runs; this one is `runs/NAME`.
        mode: `auto` goes on with an unfinished run of the same recipe and leaves a finished one alone;
            `resume` wants one that was begun; `restart` throws away what is there.
        make: makes the learner; takes the arguments of `Learner`.
        trace: write a trace of some steps there, and print where their time went (`fusion.trace`).

    Raises:
        UsageError: the recipe does not fit the cache, another recipe made the run that is there, or another process is
            training it.
        Interrupted: a signal came; the state is saved.
        JobError: the loss is not finite, or the disk is full.
    """
    [run] = fit_together([recipe], runs=runs, mode=mode, console=console, make=make, trace=trace)
    return run


def fit_together(
    recipes: Sequence[Recipe],
    *,
    runs: str | Path = "runs",
    mode: str = "auto",
    console: Console | None = None,
    make: Callable[..., Learner] = Learner,
    trace: Path | None = None,
) -> list[Run]:
    """Train a head a recipe, in as few passes over the caches as give each what it would get alone.

    Recipes with the same cache, training rows, batch size and seed share a pass (`fusion.stream`). Each run is
    stored, resumed and finished as if it were alone.

    Args:
        runs, mode, make: as for `fit`, for every recipe.
        trace: as for `fit`, of the first pass.

    Raises:
        UsageError: as for `fit`; or two recipes have one name, or want different devices or threads; or
            the trace cannot be written.
        Interrupted: a signal came; the states are saved.
        Diverged: the loss of a head is not finite; the others were finished first.
        JobError: the disk is full.
    """
    console = console or plain_console(stderr=True)
    recipes = [head.resolve(recipe) for recipe in recipes]
    _check(recipes)
    with world(recipes[0].train.device) as here:
        use_threads(recipes[0].train.threads, here.device)
        if trace is not None and here.first:
            check_trace(trace)
        learners, finished = _prepare(recipes, Path(runs), mode, here, console, make)
        # Only now is it known that all recipes fit, and nothing is made or thrown away for a mistake.
        with locked(learner.files for learner in learners) if here.first else nullcontext():
            here.barrier()
            for learner in learners:
                if here.first and not learner.state.step:
                    learner.files.clear()
            here.barrier()
            if trace is not None and not learners and here.first:
                console.print(
                    f"no trace: nothing was left to train; --restart trains anew and traces into {trace}",
                    highlight=False, soft_wrap=True, markup=False,
                )  # fmt: skip
            for together in streams(learners):
                tracer = Tracer(trace, console.print) if trace is not None and here.first else None
                trace = None
                # A profiler sees one thread.
                stream = Stream(together, here, console, tracer or (lambda: None), in_turn=tracer is not None)
                try:
                    with tracer or nullcontext():
                        stream.run()
                except Diverged as error:
                    if len(recipes) == 1:
                        raise
                    together[0].failure = error
                finished |= {run.recipe.name: run for run in stream.finish() if run is not None}
    failures = [learner.failure for learner in learners if learner.failure is not None]
    if failures:
        in_order = {recipe.name: finished[recipe.name] for recipe in recipes if recipe.name in finished}
        raise Diverged("; ".join(map(str, failures)), in_order)
    return [finished[recipe.name] for recipe in recipes]


@dataclass(frozen=True)
class Planned:
    """A run that would be written, and the step that it would go on from; `replaces` says that a run is there."""

    path: Path
    step: int
    steps: int
    replaces: bool


@dataclass(frozen=True)
class Outlook:
    """What `fit_together` would do: runs that share batches, pass by pass, and runs that are finished already."""

    passes: list[list[Planned]]
    finished: list[Path]


def outlook(
    recipes: Sequence[Recipe], *, runs: str | Path = "runs", mode: str = "auto", console: Console | None = None
) -> Outlook:
    """What `fit_together` would do with the same arguments; it raises the same mistakes, and writes nothing."""
    console = console or plain_console(stderr=True)
    recipes = [head.resolve(recipe) for recipe in recipes]
    _check(recipes)
    with world(recipes[0].train.device) as here:
        learners, finished = _prepare(recipes, Path(runs), mode, here, console, Learner)
    passes = [
        [
            Planned(
                learner.files.path, learner.state.step, learner.recipe.train.steps,
                replaces=not learner.state.step and learner.files.recipe.exists(),
            )
            for learner in together
        ]
        for together in streams(learners)
    ]  # fmt: skip
    return Outlook(passes, [run.path for run in finished.values()])


def _prepare(
    recipes: Sequence[Recipe], runs: Path, mode: str, here: World, console: Console, make: Callable[..., Learner]
) -> tuple[list[Learner], dict[str, Run]]:
    """The learners of runs that are to be trained, where they stand, and the finished runs by name."""
    finished: dict[str, Run] = {}
    learners: list[Learner] = []
    opened: dict[str, Cache] = {}
    known: Moments = {}
    for recipe in recipes:
        files = Files(runs / recipe.name)
        begun = _begun(files, recipe, mode)
        if begun and files.finished:
            if here.first:
                text = f"run {files.path} is finished; --restart trains it anew"
                console.print(text, highlight=False, soft_wrap=True, markup=False)
            finished[recipe.name] = Run.open(files.path)
            continue
        if recipe.cache not in opened:
            opened[recipe.cache] = caches.open_cache(recipe.cache)
        learner = make(recipe, opened[recipe.cache], files, here, console, known)
        if begun:
            learner.load()
        learners.append(learner)
    return learners, finished


def _check(recipes: Sequence[Recipe]) -> None:
    """
    Raises:
        UsageError: the recipes cannot be trained in one process.
    """
    if not recipes:
        raise UsageError("no recipe is given; give the paths of TOML files")
    # On many a disk of macOS or Windows names that differ only in case are one.
    [(folder, count)] = Counter(recipe.name.casefold() for recipe in recipes).most_common(1)
    if count > 1:
        names = dict.fromkeys(recipe.name for recipe in recipes if recipe.name.casefold() == folder)
        raise UsageError(
            f"{count} recipes have the name {' or '.join(map(repr, names))}, and a run has a folder of its own: "
            "set key name"
        )
    for key in ("device", "threads"):
        values = sorted({str(getattr(recipe.train, key)) for recipe in recipes})
        if len(values) > 1:
            raise UsageError(f"key train.{key}: a sweep needs one value, the recipes have {', '.join(values)}")


def _begun(files: Files, recipe: Recipe, mode: str) -> bool:
    """Whether there is a run to go on with.

    Raises:
        UsageError: there is none and it has to be, or another recipe made the one that is there.
    """
    there = files.recipe.exists()
    if mode == "resume" and not there:
        raise UsageError(f"there is no run {files.path} to resume; leave --resume out to start it")
    if there and mode != "restart":
        before = Run.read_recipe(files.path)
        changed = differences(before, recipe, IGNORED_ON_RESUME)
        if changed == ["cache"] and not caches.is_there(before.cache):
            way = caches.moved(before.cache, files.path, files.recipe)
            raise UsageError(f"{way}; or use --restart to replace the run")
        if changed:
            raise UsageError(
                f"run {files.path} was made by a recipe that differs in {', '.join(changed)}; "
                "use --restart to replace it or --set name=OTHER to keep both"
            )
    return there and mode != "restart" and files.checkpoint.exists()


__all__ = ["Diverged", "Interrupted", "Outlook", "Planned", "fit", "fit_together", "outlook"]
