"""Progress of long work on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

LINE_SECONDS = 10.0


def size_text(size: float) -> str:
    """Bytes for people: 1.5 MB is 1,500,000 bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"


def time_text(seconds: float) -> str:
    """Seconds for people: 1:02:03 or 2:03."""
    whole = int(round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def speech_text(seconds: float) -> str:
    """An amount of speech for people: hours, and of less than six minutes the seconds, since 0.00 h says nothing."""
    return f"{seconds / 3600:.2f} h" if seconds >= 360 else f"{seconds:.1f} s"


class _Detail(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("detail", "")))


class _Progress(ABC):
    """Work of a known amount; what its unit is and what else is shown is up to the subclass."""

    def __init__(self, what: str, total: float, done: float = 0.0) -> None:
        self.what = what
        self.total = total
        self.done = done
        self._began_with = done
        self._began = time.monotonic()
        self._last_line = self._began
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
                _Detail(), TextColumn("left"), TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(what, total=max(total, 1e-9), detail="")
            self._bar.update(self._task, completed=done)

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif kind is None:
            self._line()

    @property
    def rate(self) -> float:
        """Amount done per second since the start."""
        return (self.done - self._began_with) / max(time.monotonic() - self._began, 1e-9)

    @abstractmethod
    def _details(self) -> list[str]:
        """What is shown beside the share that is done."""

    def _add(self, amount: float) -> None:
        self.done += amount
        if self._bar:
            self._bar.update(self._task, completed=self.done, detail=", ".join(self._details()))
        elif time.monotonic() - self._last_line > LINE_SECONDS:
            self._line()

    def _line(self) -> None:
        self._last_line = time.monotonic()
        share = 100 * self.done / self.total if self.total else 100.0
        left = max(self.total - self.done, 0) / self.rate if self.rate > 0 else 0.0
        parts = [f"{share:.0f} %", *self._details(), f"{time_text(left)} left"]
        print(f"{self.what}: {', '.join(parts)}", file=sys.stderr, flush=True)


class AudioProgress(_Progress):
    """Counts seconds of audio and bytes written; shows rate (times real time), time left and bytes."""

    def __init__(self, what: str, seconds: float, done_seconds: float = 0.0) -> None:
        self.bytes = 0
        super().__init__(what, seconds, done_seconds)

    @property
    def realtime(self) -> float:
        """Seconds of audio done per second since the start."""
        return self.rate

    def advance(self, seconds: float = 0.0, written: int = 0) -> None:
        self.bytes += written
        self._add(seconds)

    def _details(self) -> list[str]:
        return [f"{self.rate:.0f}x real time", size_text(self.bytes)]


class ByteProgress(_Progress):
    """Counts bytes; shows them, their rate and the time left. Safe to advance from several threads."""

    def __init__(self, what: str, total: int) -> None:
        self._lock = threading.Lock()
        super().__init__(what, total)

    def advance(self, size: int) -> None:
        with self._lock:
            self._add(size)

    def _details(self) -> list[str]:
        return [f"{size_text(self.done)} of {size_text(self.total)}", f"{size_text(self.rate)}/s"]
