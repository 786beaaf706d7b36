"""Where a run stands, and how it is told to stop."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from featcache.errors import FeatcacheError
from fusion.labels import Split


@dataclass(frozen=True)
class State:
    """Where a run stands. JSON-able; travels with the weights."""

    step: int = 0
    epoch: int = 0
    step_of_epoch: int = 0
    best: tuple[float, float] = (math.inf, math.inf)
    """Cost (the score, with a sign that makes less better) and loss on dev of the best checkpoint: while the
    score stands still, less loss is better."""
    best_step: int = 0
    best_dev: dict[str, float] = field(default_factory=dict)
    dev: dict[str, float] = field(default_factory=dict)
    """The last scores on dev."""
    least_loss: float = math.inf
    """The least loss on dev so far."""
    looks_without_better: int = 0
    """Looks at dev since the score or the loss was last better: on the plateau on which CTC starts, the score
    wanders while the loss falls."""
    finished: bool = False
    data: str = ""
    """Digest of the utterances and targets of train and dev."""
    processes: int = 0
    """How many share a step; 0 in checkpoints from before this was kept."""

    def to_json(self) -> dict[str, Any]:
        values = dict(vars(self))
        values["best"] = [_finite(value) for value in self.best]
        values["least_loss"] = _finite(self.least_loss)
        return values

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> State:
        """
        Raises:
            FeatcacheError: it is of another version.
        """
        try:
            score, loss = (_number(part) for part in value["best"])
            least = _number(value["least_loss"])
            dev, best_dev = (
                {name: math.nan if one is None else one for name, one in value[key].items()}
                for key in ("dev", "best_dev")
            )
            found = {"best": (score, loss), "least_loss": least, "dev": dev, "best_dev": best_dev}
            return cls(**(value | found))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FeatcacheError(
                f"the checkpoint is of another version of this program ({error}); train again with --restart"
            ) from error


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity


def _number(value: float | None) -> float:
    return math.inf if value is None else value


def digest(*splits: Split) -> str:
    """What a run learns from and is chosen by: SHA-256 of ids, targets and references."""
    content = [[split.ids, split.targets, split.references] for split in splits]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets; the second SIGINT stops at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def handle(number: int, _: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    for number in old:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
