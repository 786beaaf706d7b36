"""Caches on S3: how fast they are copied against s5cmd alone, and read against the local disk.

s5cmd copies the same files with as many jobs and parts; `push` and `pull` also prove every byte. Local files are
in the page cache, and a server on loopback costs the same processors, so that shares are comparable and
megabytes a second are of this machine.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from featcache.errors import JobError, UsageError
from featcache.inspect import parse_where
from featcache.pull import pull
from featcache.push import push
from featcache.s3 import S3Settings, S3Url
from featcache.select import subset
from featcache.store import Cache
from featcache.transfer import JOBS, PART_MIB, program
from pipelines.bench.s3_server import MotoServer, variables

MB = 1_000_000
# Rows that one task reads, and tasks at a time: as a loader of training does.
BATCH, READERS = 8, 2
LOCAL, DIRECT, FIRST, AGAIN = "local disk", "S3, no blocks", "S3, blocks, first pass", "S3, blocks, second pass"


@dataclass(frozen=True)
class Plan:
    """How much of each. `steps` of training on `utterances` of each split; 0 leaves the training out."""

    repeats: int = 3
    utterances: int = 400
    steps: int = 30
    seed: int = 1


def run(cache: Path, where: Sequence[str], url: str, recipe: Path, plan: Plan) -> dict[str, Any]:
    """All measurements on a cache, or on the part of it that `where` (`label=value`) names.

    Args:
        url: an empty place on S3; a server on loopback is started where it is "".
        recipe: what the training goes by, but for cache, steps and utterances.

    Raises:
        UsageError: the place is not on S3, or moto is not installed.
        CacheError, JobError: the cache or the server cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="featcache-s3-") as name, _server(url) as place:
        folder = Path(name)
        if where:
            subset(cache, folder / "part", parse_where(where))
            cache = folder / "part"
        opened = Cache.open(cache)
        files = [path for path in cache.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        copied = _copying(cache, place, size, plan.repeats, folder)
        remote = f"{place}/read"
        push(cache, remote)
        read = _reading(cache, remote, plan, folder)
        trained = _training(cache, remote, recipe, plan, folder) if plan.steps else []
        _s5cmd("rm", f"{remote}/*")
        return {
            "server": url or "moto on loopback",
            "profile": opened.spec.profile_text,
            "utterances": len(opened),
            "files": len(files),
            "mb": round(size / MB, 1),
            "copies": copied,
            "reads": read,
            "training": trained,
        }


@contextmanager
def _server(url: str) -> Iterator[str]:
    """The place to use; of a server of our own where none is given, which the environment then names."""
    if url:
        yield str(S3Url.parse(url))
        return
    server = MotoServer()
    try:
        others = [name for name in os.environ if name.startswith("AWS_")]
        with _environment(dict.fromkeys(others) | variables(server.endpoint)):
            yield f"s3://{server.new_bucket()}"
    finally:
        server.stop()


@contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Meanwhile the environment has these values; None takes a variable out."""
    before = dict(os.environ)
    os.environ.update({name: value for name, value in values.items() if value is not None})
    for name in [name for name, value in values.items() if value is None]:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _s5cmd(*arguments: str) -> None:
    settings = S3Settings.find()
    command = [program(), f"--numworkers={JOBS}", "--log=error"]
    if settings.endpoint is not None:
        command.append(f"--endpoint-url={settings.endpoint}")
    region = {"AWS_REGION": settings.region} if settings.region else {}
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=os.environ | region, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise JobError(f"s5cmd {arguments[0]} failed: {said}")


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _figure(value: float) -> float:
    """To three digits that count."""
    return float(f"{value:.3g}")


def _copying(cache: Path, place: str, size: int, repeats: int, folder: Path) -> list[dict[str, Any]]:
    """Push and pull and s5cmd alone, in turns, whoever goes first in turns as well; medians of MB/s."""
    seconds: dict[str, list[float]] = {name: [] for name in ("push", "s5cmd push", "pull", "s5cmd pull")}
    part = f"--part-size={PART_MIB}"
    for number in range(repeats):
        ours, alone = f"{place}/{number}/ours", f"{place}/{number}/alone"
        here, there = folder / f"{number}-ours", folder / f"{number}-alone"
        pushes: dict[str, Callable[[], object]] = {
            "push": partial(push, cache, ours),
            "s5cmd push": partial(_s5cmd, "cp", part, f"{cache}/", f"{alone}/"),
        }
        pulls: dict[str, Callable[[], object]] = {
            "pull": partial(pull, ours, here),
            "s5cmd pull": partial(_s5cmd, "cp", part, f"{alone}/*", f"{there}/"),
        }
        for pair in (pushes, pulls):
            for name in list(pair)[:: -1 if number % 2 else 1]:
                seconds[name].append(_seconds(pair[name]))
        _s5cmd("rm", f"{place}/{number}/*")
    speed = {name: size / MB / median(taken) for name, taken in seconds.items()}
    return [
        {
            "verb": verb,
            "mb_s": _figure(speed[verb]),
            "s5cmd_mb_s": _figure(speed[f"s5cmd {verb}"]),
            "share_of_s5cmd": _figure(speed[verb] / speed[f"s5cmd {verb}"]),
        }
        for verb in ("push", "pull")
    ]


def _places(cache: Path, remote: str, folder: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """What is read, from where, and the environment that it is read in; in this order."""
    blocks = {"FEATCACHE_BLOCKS": str(folder / "blocks")}
    yield LOCAL, str(cache), {}
    yield DIRECT, remote, {"FEATCACHE_BLOCKS_GB": "0"}
    yield FIRST, remote, blocks
    yield AGAIN, remote, blocks


def _reading(cache: Path, remote: str, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """Random utterances, each once, as codes."""
    rows = np.flatnonzero(Cache.open(cache).lengths > 0).tolist()
    if not rows:
        raise UsageError(f"{cache} holds no usable utterance: give another cache or --where")
    chosen = random.Random(plan.seed).sample(rows, min(plan.utterances, len(rows)))
    batches = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    found: list[dict[str, Any]] = []
    for name, place, environment in _places(cache, remote, folder / "reading"):
        with _environment(environment):
            opened = Cache.open(place)
            opened.read_encoded(rows[:1])  # the index
            began = time.perf_counter()
            with ThreadPoolExecutor(READERS) as pool:
                size = sum(encoded.nbytes for encoded in pool.map(opened.read_encoded, batches))
            seconds = time.perf_counter() - began
        row = {"from": name, "mb_s": _figure(size / MB / seconds), "utterances_s": _figure(len(chosen) / seconds)}
        found.append(row | {"share_of_local": _figure(row["utterances_s"] / (found or [row])[0]["utterances_s"])})
    return found


def _training(cache: Path, remote: str, recipe: Path, plan: Plan, folder: Path) -> list[dict[str, Any]]:
    """The same steps of the same recipe, to the same weights."""
    from fusion import recipe as recipes
    from fusion.train import fit

    found: list[dict[str, Any]] = []
    for number, (name, place, environment) in enumerate(_places(cache, remote, folder / "training")):
        wanted = recipes.read(
            recipe,
            (
                f"cache={place}", f"name=run{number}", f"limit={plan.utterances}", f"train.steps={plan.steps}",
                f"train.eval_every={plan.steps}",
            ),
        )  # fmt: skip
        with _environment(environment):
            run = fit(wanted, runs=folder / "runs", console=Console(stderr=True))
        # Of the steps alone: the metrics' own figure is rounded.
        seconds = float(json.loads(run.files.state.read_text())["seconds"])
        row = {"from": name, "steps_s": _figure(plan.steps / seconds), "seconds": seconds}
        found.append(row | {"share_of_local": _figure((found or [row])[0]["seconds"] / seconds)})
    return found


def print_tables(result: dict[str, Any]) -> None:
    """The measurements for people."""
    console = Console(width=100, highlight=False)
    console.print(
        f"{result['utterances']:,} utterances, {result['files']:,} files, {result['mb']:,} MB, {result['profile']}; "
        f"{result['server']}"
    )
    for name in ("copies", "reads", "training"):
        rows = result[name]
        if not rows:
            continue
        table = Table(*(column.replace("_", " ") for column in rows[0]), box=None, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*(str(value) for value in row.values()))
        console.print(table)
