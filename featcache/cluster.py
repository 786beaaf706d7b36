"""Many tasks at once: on threads of this process, or on the workers of a dask.distributed cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from multiprocessing import resource_tracker
from typing import Any
from uuid import uuid4

from dask.base import compute
from dask.delayed import delayed

from featcache.cores import usable_cores
from featcache.errors import JobError, UsageError

CONNECT_SECONDS = 20
# How long to wait for the first worker: a batch system may take its time to start one.
WORKER_SECONDS = 600


@contextlib.contextmanager
def connect(workers: int | None, scheduler: str | None) -> Iterator[Any | None]:
    """A client of the cluster at `scheduler`, or of `workers` processes here; None where neither is asked for.

    Raises:
        UsageError: both are asked for, or the address is none, or one of TLS without certificates.
        JobError: no scheduler answers, or it has no worker.
    """
    if workers is not None and scheduler is not None:
        raise UsageError("--workers starts processes here and --scheduler uses those of a cluster: give one of them")
    if workers is None and scheduler is None:
        yield None
        return
    # A second of imports that nobody else needs.
    from distributed import Client, LocalCluster
    from distributed.security import Security

    # A client without certificates fails in a thread of its own, and is closed for most of a minute.
    encrypted = scheduler is not None and scheduler.startswith(("tls://", "wss://"))
    if encrypted and Security().get_connection_args("client").get("ssl_context") is None:
        raise UsageError(
            f"--scheduler {scheduler}: no certificates are named for TLS: name them in dask's configuration "
            "(distributed.comm.tls), or write tcp://HOST:8786"
        )
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet())
        if scheduler is None:
            threads = max(1, usable_cores() // (workers or 1))
            loop = stack.enter_context(_loop_without_interrupts())
            address: Any = stack.enter_context(
                LocalCluster(
                    n_workers=workers, threads_per_worker=threads, processes=True, dashboard_address=":0",
                    memory_limit=0, silence_logs=logging.CRITICAL, loop=loop,
                )
            )  # fmt: skip
            stack.enter_context(_killed_when_interrupted(address))
        else:
            address = scheduler
        try:
            client = stack.enter_context(Client(address, timeout=CONNECT_SECONDS, set_as_default=False))
        except ValueError as error:
            raise UsageError(f"--scheduler {scheduler}: no address ({error}); write tcp://HOST:8786") from error
        except OSError as error:
            raise JobError(
                f"no scheduler answers at {scheduler}: start one with `dask scheduler`, and workers with "
                f"`dask worker {scheduler} --nthreads 1`"
            ) from error
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError as error:
            raise JobError(
                f"the scheduler at {scheduler} has no worker: start some with `dask worker {scheduler} --nthreads 1`"
            ) from error
        yield client


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Of what goes wrong a command says one line; dask's log has the same, with tracebacks of every process.

    Workers read the variable where they start. Who has set it wants to see the log.
    """
    variable = "DASK_LOGGING__DISTRIBUTED"
    if variable in os.environ:
        yield
        return
    import distributed  # noqa: F401 - which sets levels itself

    levels = {name: logging.getLogger(name).level for name in ("distributed", "distributed.client")}
    os.environ[variable] = "critical"
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        del os.environ[variable]
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def _loop_without_interrupts() -> Iterator[Any]:
    """An event loop, in a thread, whose processes never see Ctrl-C: it is this process's to end them.

    A terminal sends it to all of them, and each would print a traceback or two. A signal that is blocked in a thread
    is so in the threads and processes that it starts.
    """
    from distributed.utils import LoopRunner

    # It would be started with the first worker, and let that one's thread have interrupts again.
    resource_tracker.ensure_running()
    runner = LoopRunner()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()


@contextlib.contextmanager
def _killed_when_interrupted(cluster: Any) -> Iterator[None]:
    """Workers may be killed at any moment. dask would wait some seconds for their shards, which take longer."""

    async def kill() -> None:
        # One that is not killed so is dask's to end when it closes the cluster.
        kills = (nanny.kill(timeout=1) for nanny in cluster.workers.values())
        await asyncio.gather(*kills, return_exceptions=True)

    try:
        yield
    except KeyboardInterrupt:
        cluster.sync(kill)
        raise


def absolute(place: str | os.PathLike[str]) -> str:
    """A path that means the same in every process of a machine, and on all that mount it there; URLs as they are."""
    return str(place) if "://" in str(place) else os.path.abspath(place)


def run_tasks(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    client: Any | None = None,
    *,
    name: str,
    labels: Sequence[str] | None = None,
    on_result: Callable[[int, Any], None] = lambda number, result: None,
    a_worker: int | None = None,
) -> list[Any]:
    """`function(*a)` for each `a` of `arguments`, in any order; the results in theirs.

    Args:
        client: whose workers do it; threads of this process where it is None.
        name: what the tasks are called in the cluster's dashboard.
        labels: what follows the name there, one a task; their numbers by default.
        on_result: called with the number and the result of each task as it ends, one call at a time.
        a_worker: tasks that a worker has at a time; twice its threads where it is None.

    Raises:
        JobError: a task's worker died again and again, or the scheduler is gone.
        Exception: whatever the first task that failed has raised; what is not begun by then is dropped.
    """
    if client is not None:
        labels = labels or [f"{number:06d}" for number in range(len(arguments))]
        return _on_cluster(function, arguments, client, [f"{name}-{label}" for label in labels], on_result, a_worker)
    lock = threading.Lock()

    def call(number: int, task: tuple[Any, ...]) -> Any:
        result = function(*task)
        with lock:
            on_result(number, result)
        return result

    tasks = (delayed(call, pure=False)(number, task) for number, task in enumerate(arguments))
    return list(compute(*tasks, scheduler="threads"))


def _on_cluster(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Any, ...]],
    client: Any,
    names: Sequence[str],
    on_result: Callable[[int, Any], None],
    a_worker: int | None,
) -> list[Any]:
    """Submit no more than the workers can take now: a fast one gets more, and one that joins gets some."""
    from distributed import as_completed
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    results: list[Any] = [None] * len(arguments)
    numbers: dict[str, int] = {}
    run = uuid4().hex[:8]
    ended = as_completed(loop=client.loop)
    waiting = iter(range(len(arguments)))

    def submit() -> None:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        room = sum(a_worker or 2 * worker["nthreads"] for worker in workers) or 1
        while len(numbers) < room:
            number = next(waiting, None)
            if number is None:
                return
            key = f"{names[number]}-{run}"
            numbers[key] = number
            ended.add(client.submit(function, *arguments[number], key=key, pure=False))

    submit()
    try:
        for future in ended:
            number = numbers.pop(future.key)
            try:
                results[number] = future.result()
            except KilledWorker as error:
                # Workers of `--workers` have none.
                logs = "" if client.cluster is not None else "see the workers' logs, then "
                raise JobError(
                    f"{error.allowed_failures + 1} workers died one after the other of {names[number]} (out of memory, "
                    f"most likely): finished work is safe; {logs}run the same command again"
                ) from error
            on_result(number, results[number])
            submit()
    except (CancelledError, CommClosedError) as error:
        # Nobody else cancels what is awaited here.
        raise JobError(
            "the connection to the cluster's scheduler was lost: finished work is safe; see its log, start it and its "
            "workers again where they are gone, and run the same command again"
        ) from error
    finally:
        # Where the scheduler is gone there is nothing to cancel.
        with contextlib.suppress(CancelledError, CommClosedError):
            client.cancel(list(ended.futures))
    return results
