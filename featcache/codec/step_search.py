"""The step of the `residual` profile at which a measure reaches its target."""

from __future__ import annotations

import math
from collections.abc import Callable

from featcache.errors import UsageError

# Steps are looked for between these many standard deviations.
STEP_RANGE = (1 / 256, 12.0)
TOLERANCE = 2e-3


def search(
    measure: Callable[[float], float], goal: float, direction: float, asked: str, target: str, frames: int
) -> float:
    """The step whose measure is at the goal or just below it, by secants over the step's logarithm.

    `direction` is 1 where the measure falls with the step (bits), -1 where it rises (errors).
    """
    low, high = STEP_RANGE
    good: float | None = None
    step = 1.0 if direction > 0 else math.sqrt(12 * goal)
    # Both are close to straight lines: bits, and the logarithm of errors.
    height = (lambda value: value) if direction > 0 else (lambda error: math.log2(max(error, 1e-30)))
    usual = -0.9 if direction > 0 else 1.7
    aim = height(goal * (1 - TOLERANCE / 2))
    before: tuple[float, float] | None = None
    for _ in range(12):
        step = min(max(step, low), high)
        value = measure(step)
        within = value <= goal
        if within:
            good = step if good is None else (max(good, step) if direction < 0 else min(good, step))
        if (within and value > goal * (1 - TOLERANCE)) or high / low < 1.002:
            return step if within else (good or step)
        if within == (direction > 0):
            high = step
        else:
            low = step
        here = (math.log2(step), height(value))
        slope = _slope(before, here, usual)
        before = here
        proposed = step * 2.0 ** min(max((aim - here[1]) / slope, -8.0), 8.0)
        step = proposed if low < proposed < high else math.sqrt(low * high)
    if good is None:
        if frames < 1024:
            # Too little speech to say: the finest or the coarsest step is the best answer.
            return high if direction > 0 else low
        raise UsageError(
            f"profile residual cannot reach {target} = {asked} on this calibration: ask for a larger value"
        )
    return good


def _slope(before: tuple[float, float] | None, here: tuple[float, float], usual: float) -> float:
    """Of the line through two points; the usual one where they say nothing, or what no such curve does."""
    if before is None or abs(here[0] - before[0]) < 1e-6:
        return usual
    found = (here[1] - before[1]) / (here[0] - before[0])
    return found if 0.1 < found / usual < 3 else usual
