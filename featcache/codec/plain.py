"""Profiles that hand each value by itself to a codec of numcodecs: `blosc`, `pcodec` and `bitround`.

They are what others would use, and what `residual` is compared with: larger at the same error, and simpler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from featcache.codec.base import Arrays, EncodedRow, Plane
from featcache.codec.direct import Affine, ByValue
from featcache.codec.parameters import check_step
from featcache.errors import UsageError

LIMIT = 32767
MANTISSA_BITS = 23


class Uniform(ByValue):
    """Whole numbers of steps; `step` is in standard deviations of each tap and channel, 0.5 if not given."""

    version = 1
    coder: ClassVar[str]

    @classmethod
    def parse(cls, text: str) -> dict[str, Any]:
        return {"step": _number(cls.profile, "step", text)}

    @classmethod
    def fit(cls, rows: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Arrays:
        from featcache.codec.fitting import moments

        step = _checked(cls.profile, "step", parameters, 0.5)
        check_step(cls.profile, step)
        mean, deviation = moments(rows)
        return {"mean": mean.astype(np.float32), "step": np.maximum(deviation * step, 2.0**-100).astype(np.float32)}

    @property
    def planes(self) -> tuple[Plane, ...]:
        return (Plane("codes", "<i2", (self.taps, self.channels), coder=self.coder),)

    def encode(self, features: np.ndarray) -> EncodedRow:
        with np.errstate(over="ignore"):  # what is endless here is cut like all that is beyond the limit
            codes = np.rint((features - self.calibration["mean"]) / self.calibration["step"])
        saturated = int(np.count_nonzero(np.abs(codes) > LIMIT))
        return EncodedRow({"codes": np.clip(codes, -LIMIT, LIMIT).astype(np.int16)}, saturated)

    @property
    def affine(self) -> Affine:
        return self.calibration["step"], self.calibration["mean"]


class Blosc(Uniform):
    """Bit planes of the codes, compressed with zstd."""

    profile = "blosc"
    coder = "blosc"


class PCodec(Uniform):
    """The codes through PCodec, which needs the package pcodec."""

    profile = "pcodec"
    coder = "pcodec"


class BitRound(ByValue):
    """float32 of which `keep` bits of the mantissa are kept, 3 if not given; bit planes compressed with zstd."""

    profile = "bitround"
    version = 1

    @classmethod
    def parse(cls, text: str) -> dict[str, Any]:
        keep = _number(cls.profile, "keep", text)
        return {"keep": _keep({"keep": keep})}

    @classmethod
    def fit(cls, rows: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Arrays:
        _keep(parameters)
        return {}

    @property
    def planes(self) -> tuple[Plane, ...]:
        return (Plane("values", "<f4", (self.taps, self.channels), coder="blosc"),)

    def encode(self, features: np.ndarray) -> EncodedRow:
        from numcodecs import BitRound as Rounding

        keep = _keep(self.parameters)
        rounded = Rounding(keepbits=keep).encode(np.ascontiguousarray(features, np.float32))
        values = np.asarray(rounded).view(np.float32).reshape(features.shape)
        # The largest values round up to infinity: they become the largest that so many bits can say.
        beyond = np.isinf(values) & np.isfinite(features)
        if beyond.any():
            values = np.where(beyond, np.copysign(np.float32((2 - 2.0**-keep) * 2.0**127), features), values)
        return EncodedRow({"values": values}, int(np.count_nonzero(beyond)))

    @property
    def affine(self) -> Affine:
        return None, None


def _keep(parameters: Mapping[str, Any]) -> int:
    keep = _checked("bitround", "keep", parameters, 3)
    if not 1 <= keep <= MANTISSA_BITS or keep != int(keep):
        raise UsageError(f"profile bitround: keep = {keep!r} is no number of bits from 1 to {MANTISSA_BITS}")
    return int(keep)


def _checked(profile: str, name: str, parameters: Mapping[str, Any], default: float) -> float:
    if unknown := sorted(set(parameters) - {name}):
        raise UsageError(f"profile {profile} has no parameter {unknown[0]!r}: its only one is {name}")
    value = parameters.get(name, default)
    if not isinstance(value, (int, float)):
        raise UsageError(f"profile {profile}: {name} = {value!r} is not a number")
    return value


def _number(profile: str, name: str, text: str) -> float:
    try:
        return float(text.strip().removeprefix(f"{name}="))
    except ValueError:
        raise UsageError(f"{profile}:{text}: {text!r} is no {name}; write {profile}:{name}=0.5 or the like") from None
