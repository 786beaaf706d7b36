"""Reading whole utterances in random order: our store and others, with the same features in each.

All of them read in turns, some utterances each, so that what else the machine does meets them alike. Before the
cold pass, the pages of every file are dropped from the system's cache; below a virtual machine, the host may
still hold them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from featcache.console import table_console
from featcache.crew import one_thread
from featcache.errors import UsageError
from featcache.index import id_hash
from featcache.push import push
from featcache.select import subset
from featcache.store import Cache
from pipelines.bench.machine import stamp
from pipelines.bench.s3_server import MotoServer, variables
from pipelines.bench.stores import Reader, open_all

OURS, MAP = "featcache", "raw memory map of the codes"
# Utterances that one store reads before it is the next one's turn.
TURN = 5
messages = Console(stderr=True)


def measure(source: Path, utterances: int, passes: int, s3: bool) -> dict[str, Any]:
    """`rows[]` by store; rates are utterances a second on one thread, by the clock and (warm) by CPU time.

    Raises:
        UsageError: the cache has too few utterances.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack, one_thread():
        folder = Path(name)
        place = folder / "cache"
        subset(source, place, {"id": _draw(Cache.open(source), utterances)})
        cache = Cache.open(place)
        blocks = folder / "blocks"
        url = ""
        if s3:
            url = f"{stack.enter_context(_served(blocks))}/cache"
            push(str(place), url)
        rows = [cache.read(i) for i in range(len(cache))]
        megabytes = sum(row.nbytes for row in rows) / 1e6
        messages.print(f"writing {len(rows)} utterances, {megabytes:.0f} MB, to every store")
        readers = open_all(place, rows, folder, url)
        _check(readers, rows)
        order = np.random.default_rng(0).permutation(len(rows))
        shutil.rmtree(blocks, ignore_errors=True)
        for reader in readers:
            drop_pages(reader.files)
        cold = _read_in_turns(readers, order)
        warm = _read_in_turns(readers, np.tile(order, passes))
        found = [
            {
                "name": reader.name,
                "utterances_s_cold": _rate(len(order), cold[reader.name][0]),
                "utterances_s_warm": _rate(passes * len(order), warm[reader.name][0]),
                "utterances_s_warm_cpu": _rate(passes * len(order), warm[reader.name][1]),
                "bytes": reader.bytes,
            }
            for reader in readers
        ]
    return {
        "rows": found,
        "utterances": len(rows),
        "mean_frames": round(float(np.mean([len(row) for row in rows])), 1),
        **stamp(),
    }


@contextlib.contextmanager
def _served(blocks: Path) -> Iterator[str]:
    """The URL of an empty bucket of a server on loopback, which the environment names meanwhile.

    Args:
        blocks: the folder for pieces of what is read.
    """
    server = MotoServer()
    before = dict(os.environ)
    try:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            del os.environ[name]
        os.environ.update(variables(server.endpoint), FEATCACHE_BLOCKS=str(blocks))
        yield f"s3://{server.new_bucket()}"
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.stop()


def _draw(cache: Cache, count: int) -> set[str]:
    usable = [i for i, n in zip(cache.ids, cache.lengths.tolist(), strict=True) if n]
    if len(usable) < count:
        raise UsageError(f"{cache.path} holds {len(usable)} utterances: lower --utterances")
    return set(sorted(usable, key=lambda i: (id_hash(i), i))[:count])


def _check(readers: Sequence[Reader], rows: Sequence[np.ndarray]) -> None:
    """All stores hold the same features, up to what they are told to lose."""
    for reader in readers:
        for number in (0, 1, 2):
            found = reader.read(number)
            if found.shape != rows[number].shape or np.abs(found - rows[number]).mean() > 0.05:
                raise RuntimeError(f"{reader.name} does not give utterance {number} as it was written")


def drop_pages(files: Sequence[Path]) -> None:
    """Write a file's pages back and drop them from memory."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _read_in_turns(readers: Sequence[Reader], order: np.ndarray) -> dict[str, tuple[float, float]]:
    """Seconds by the clock and of CPU that each reader took for all of `order`."""
    spent = {reader.name: (0.0, 0.0) for reader in readers}
    for first in range(0, len(order), TURN):
        for reader in readers:
            began, cpu = time.perf_counter(), time.process_time()
            for number in order[first : first + TURN].tolist():
                reader.read(number)
            clock, work = spent[reader.name]
            spent[reader.name] = clock + time.perf_counter() - began, work + time.process_time() - cpu
    return spent


def _rate(count: int, seconds: float) -> float:
    return round(count / max(seconds, 1e-9), 1)


def print_table(result: dict[str, Any]) -> None:
    """The rows for people, on standard output."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, caption=f"utterances a second; {result['machine']}")
    for column in ("store", "cold", "warm", "warm, CPU", "bytes"):
        table.add_column(column, justify="left" if column == "store" else "right", overflow="fold")
    for row in result["rows"]:
        table.add_row(*(f"{value:,}" if not isinstance(value, str) else value for value in row.values()))
    table_console().print(table)
