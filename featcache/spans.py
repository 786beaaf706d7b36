"""Where a pipeline's time goes: named spans of its threads, as a trace for viewers and as a budget that adds up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

Item = TypeVar("Item")


class Span(NamedTuple):
    """What a thread did, and when, in seconds of `time.perf_counter`."""

    name: str
    thread: str
    begin: float
    end: float


class Spans:
    """Spans of one piece of work; threads add to it as they go.

    The thread that makes it is the main one: its spans, which must not overlap, and `other` make up the wall time.
    Those of other threads run beside it.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.begin = time.perf_counter()
        self.main = threading.current_thread().name
        self.found: list[Span] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """What happens in here is called `name`."""
        if not self.enabled:
            yield
            return
        begin = time.perf_counter()
        try:
            yield
        finally:
            # Appending is atomic: no lock.
            self.found.append(Span(name, threading.current_thread().name, begin, time.perf_counter()))

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """The items, and the time until each is there is called `name`."""
        iterator = iter(items)
        end = object()
        while True:
            with self.span(name):
                item = next(iterator, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def budget(self, wall: float) -> tuple[dict[str, float], dict[str, float]]:
        """Seconds by name: of the main thread, with `other` adding up to `wall`, and of the threads beside it."""
        main: dict[str, float] = {}
        beside: dict[str, float] = {}
        for span in self.found:
            seconds = main if span.thread == self.main else beside
            seconds[span.name] = seconds.get(span.name, 0.0) + span.end - span.begin
        return {**main, "other": wall - sum(main.values())}, beside

    def write(self, path: Path) -> None:
        """Chrome's trace format, which Perfetto, chrome://tracing and speedscope open; times in microseconds."""
        threads = {
            name: number
            for number, name in enumerate([self.main, *sorted({s.thread for s in self.found} - {self.main})])
        }
        events: list[dict[str, object]] = [
            {"ph": "M", "name": "thread_name", "pid": 0, "tid": number, "args": {"name": name}}
            for name, number in threads.items()
        ]
        events += [
            {
                "ph": "X", "name": s.name, "pid": 0, "tid": threads[s.thread],
                "ts": round(1e6 * (s.begin - self.begin), 1), "dur": round(1e6 * (s.end - s.begin), 1),
            }
            for s in sorted(self.found, key=lambda s: s.begin)
        ]  # fmt: skip
        path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}), encoding="utf-8")


@contextmanager
def tracing(path: Path | None) -> Iterator[Spans]:
    """Spans of what happens in here; written to `path` at the end, with the budget on standard error.

    A trace that cannot be written then is said to be lost: the work that it is of is not.
    """
    spans = Spans(enabled=path is not None)
    yield spans
    if path is not None:
        wall = time.perf_counter() - spans.begin
        messages = Console(stderr=True)
        messages.print(table(spans, wall))
        try:
            spans.write(path)
            said = f"trace: {path}"
        except OSError as error:
            said = f"no trace: {path} cannot be written ({error.strerror})"
        messages.print(said, highlight=False, soft_wrap=True, markup=False)


def table(spans: Spans, wall: float) -> Table:
    """The budget for people."""
    main, beside = spans.budget(wall)
    out = Table("", "seconds", "of the time", box=box.SIMPLE_HEAD)
    for name, seconds in main.items():
        out.add_row(name, f"{seconds:.2f}", f"{100 * seconds / wall:.1f} %")
    out.add_row("in all", f"{wall:.2f}", "100.0 %", end_section=True)
    for name, seconds in beside.items():
        out.add_row(f"beside it: {name}", f"{seconds:.2f}", f"{100 * seconds / wall:.1f} %")
    return out
