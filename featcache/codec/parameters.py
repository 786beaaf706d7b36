"""The parameters of the `residual` profile: as users write them, and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featcache.errors import UsageError

TARGETS = ("bits", "nmse", "step")
LAST = "last"
DEFAULT_BITS = 2.0
# Heads read the last tap most (docs/decisions/0014-bits-where-heads-read.md). An error that is asked for is that of
# every tap.
DEFAULT_LAST = {"bits": 3.0, "nmse": 1.0, "step": 1.0}
LAST_RANGE = (1.0, 8.0)
# Steps that can be asked for, in standard deviations. At a coarser one every value is the mean; at a finer one most
# are beyond the codes of 16 bits.
STEP_LIMITS = (1e-4, 100.0)
# Of zstd, for planes that are almost empty.
DEFAULT_LEVEL = 1


@dataclass(frozen=True)
class Asked:
    """What a profile is fitted for: `value` of `target`, and how many times finer than the others the last tap's
    steps are."""

    target: str = "bits"
    value: float = DEFAULT_BITS
    last: float = DEFAULT_LAST["bits"]


def parse(text: str) -> dict[str, Any]:
    """Parameters from what stands after the colon in `residual:1.5`, `residual:nmse=0.05`, `residual:1,last=3`.

    A bare number is bits per value.

    Raises:
        UsageError: it is none of these.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = part.rpartition("=")
        name = name.strip() or "bits"
        value = value.strip()
        if name in found:
            raise UsageError(f"residual:{text}: {name} is given twice: give it once")
        try:
            found[name] = float(value.removesuffix("bit"))
        except ValueError:
            raise UsageError(
                f"residual:{text}: {part!r} is no parameter; write residual:1.5, residual:nmse=0.05 or residual:step=1"
            ) from None
    check(found)
    return found


def check(parameters: Mapping[str, Any]) -> Asked:
    """The parameters with their defaults.

    Raises:
        UsageError: one is unknown or out of its range, or two exclude one another.
    """
    unknown = sorted(set(parameters) - {*TARGETS, LAST})
    if unknown:
        raise UsageError(
            f"profile residual has no parameter {unknown[0]!r}: give one of {', '.join(TARGETS)} or {LAST}"
        )
    given = [name for name in TARGETS if name in parameters]
    if len(given) > 1:
        raise UsageError(f"profile residual got both {given[0]} and {given[1]}: give one of them")
    target = given[0] if given else "bits"
    value = parameters.get(target, DEFAULT_BITS)
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UsageError(f"profile residual: {target} = {value!r} is not a positive number")
    if target == "step":
        check_step("residual", value)
    last = parameters.get(LAST, DEFAULT_LAST[target])
    if not isinstance(last, (int, float)) or not LAST_RANGE[0] <= last <= LAST_RANGE[1]:
        raise UsageError(f"profile residual: {LAST} = {last!r} is not from {LAST_RANGE[0]:g} to {LAST_RANGE[1]:g}")
    return Asked(target, float(value), float(last))


def check_step(profile: str, step: float) -> None:
    """Raise `UsageError` where a step is not one that makes sense; it is in standard deviations."""
    finest, coarsest = STEP_LIMITS
    if not finest <= step <= coarsest:
        raise UsageError(
            f"profile {profile}: step = {step!r} is not from {finest:g} to {coarsest:g} standard deviations: "
            "0.5 is a usual one"
        )
