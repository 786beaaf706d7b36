"""Where the time of training steps goes: torch's profiler over some of them, and a budget that adds up.

The parts of a step are marked where they are done, with `torch.profiler.record_function`, so that any other
profiler run over them shows the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from rich import box
from rich.table import Table

PARTS = ("read", "decode", "prepare", "forward", "backward", "update", "look at dev")
# The first steps start threads and compile kernels.
SKIPPED = 10
STEPS = 20


class Tracer:
    """Traces `STEPS` steps after the first `SKIPPED`; use it in a `with` statement, and call it after every step.

    Args:
        path: where the trace goes, in Chrome's format.
        say: prints the budget.
    """

    def __init__(self, path: Path, say: Callable[[object], None]) -> None:
        self.path, self._say = path, say
        self.budget: dict[str, float] = {}
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(skip_first=SKIPPED - 1, wait=0, warmup=1, active=STEPS, repeat=1),
            on_trace_ready=self._ready,
        )

    def __enter__(self) -> Tracer:
        self._profiler.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profiler.__exit__(*error)
        if not self.budget and error[0] is None:
            self._say(f"no trace: a run needs more than {SKIPPED} steps for one")

    def __call__(self) -> None:
        self._profiler.step()

    def _ready(self, profiler: torch.profiler.profile) -> None:
        # A GPU has ranges of the same names, without time of the CPU: those are overwritten.
        events = sorted(profiler.key_averages(), key=lambda event: event.cpu_time_total)
        found = {event.key: event for event in events}
        steps = [event for key, event in found.items() if key.startswith("ProfilerStep")]
        wall = sum(event.cpu_time_total for event in steps) / 1e6
        if not wall:
            return
        self.budget = {name: found[name].cpu_time_total / 1e6 for name in PARTS if name in found}
        self.budget["other"] = wall - sum(self.budget.values())
        profiler.export_chrome_trace(str(self.path))
        count = sum(event.count for event in steps)
        table = Table(f"{count} steps", "ms a step", "of the time", box=box.SIMPLE_HEAD)
        for name, seconds in self.budget.items():
            table.add_row(name, f"{1e3 * seconds / count:.1f}", f"{100 * seconds / wall:.1f} %")
        table.add_row("in all", f"{1e3 * wall / count:.1f}", "100.0 %")
        self._say(table)
        self._say(f"trace: {self.path}")
