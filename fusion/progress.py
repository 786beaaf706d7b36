"""What is seen of a training: one line that moves on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS = 5.0
"""Between two lines where standard error is not a terminal."""


class TrainingProgress:
    """Shows loss, the last scores on dev, speed and the share of time that was spent waiting for data.

    Args:
        quiet: say nothing, as all processes but the first do.
    """

    def __init__(self, console: Console, total: int, done: int, *, quiet: bool = False) -> None:
        self.console, self.total, self.quiet = console, total, quiet
        self._began, self._first = time.monotonic(), done
        self._printed = 0.0
        self._bar: Progress | None = None
        if console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("{task.fields[name]}"), BarColumn(bar_width=20), MofNCompleteColumn(),
                TextColumn("{task.fields[text]}", markup=False), TimeElapsedColumn(), TextColumn("eta"),
                TimeRemainingColumn(),
                console=console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total, completed=done, name="training", text="")

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def due(self) -> bool:
        """Whether a line would be shown now: asking the device for the loss costs a wait."""
        return not self.quiet and (self._bar is not None or time.monotonic() - self._printed >= SECONDS)

    def update(self, step: int, text: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif self.due():
            self._printed = time.monotonic()
            steps = max(step - self._first, 1)
            left = (self.total - step) * (time.monotonic() - self._began) / steps
            self.console.print(f"step {step}/{self.total}  {text}  eta {_clock(left)}", highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)


def line(loss: float, dev: dict[str, float], frames_per_second: float, frame_rate: float, waiting: float) -> str:
    """The moving part of the line."""
    scores = "  ".join(f"dev {name} {value:.3f}" for name, value in dev.items()) or "dev -"
    times = frames_per_second / frame_rate
    speed = f"{frames_per_second:,.0f} frames/s ({times:.0f} x real time)"
    return f"loss {loss:.3f}  {scores}  {speed}  waiting {waiting:.0%}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
