"""The parameters of the `residual` profile: as users write them, and checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from featcache.codec.literal import PACKS
from featcache.errors import UsageError

TARGETS = ("bits", "nmse", "step")
PACK = "pack"
DEFAULT_BITS = 2.0
# Of zstd, for planes that are almost empty.
DEFAULT_LEVEL = 1


@dataclass(frozen=True)
class Asked:
    """What a profile is fitted for: `value` of `target`, and how codes are packed."""

    target: str = "bits"
    value: float = DEFAULT_BITS
    pack: str = "small"


def parse(text: str) -> dict[str, Any]:
    """Parameters from what stands after the colon in `residual:1.5`, `residual:nmse=0.05,pack=fast`.

    A bare number is bits per value.

    Raises:
        UsageError: it is none of these.
    """
    found: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = part.rpartition("=")
        name = name.strip() or "bits"
        value = value.strip()
        if name == PACK:
            found[name] = value
            continue
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
    unknown = sorted(set(parameters) - {*TARGETS, PACK})
    if unknown:
        raise UsageError(
            f"profile residual has no parameter {unknown[0]!r}: give one of {', '.join(TARGETS)} or {PACK}"
        )
    pack = parameters.get(PACK, Asked.pack)
    if pack not in PACKS:
        raise UsageError(f"profile residual: {PACK} = {pack!r} is none of {', '.join(PACKS)}")
    given = [name for name in TARGETS if name in parameters]
    if len(given) > 1:
        raise UsageError(f"profile residual got both {given[0]} and {given[1]}: give one of them")
    target = given[0] if given else "bits"
    value = parameters.get(target, DEFAULT_BITS)
    if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise UsageError(f"profile residual: {target} = {value!r} is not a positive number")
    return Asked(target, float(value), pack)
