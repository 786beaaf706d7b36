"""The profiles that store each value by itself: `fp16` (the reference) and `int8`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch

from featcache.codec.base import Arrays, Codec, EncodedRow, Plane
from featcache.errors import UsageError

# A value of the calibration's largest size is stored as at most 256, so that later recordings may be
# 255 times louder before float16 (largest 65504) saturates.
FP16_TARGET = 256.0
FP16_LIMIT = 65504.0
# The int8 range covers the calibration's range with this much to spare.
INT8_HEADROOM = 1.25
INT8_LIMIT = 127
LARGEST = float(np.finfo(np.float32).max)


Affine = tuple[np.ndarray | None, np.ndarray | None]


class ByValue(Codec):
    """A profile that stores each value by itself, in its only plane `(frames, taps, channels)`."""

    @property
    @abstractmethod
    def affine(self) -> Affine:
        """What a stored value is multiplied by, and what is added then: float32 `(taps, channels)`, or None."""

    def decode_into(self, planes: Mapping[str, torch.Tensor], taps: Sequence[int], out: Sequence[torch.Tensor]) -> None:
        stored = planes[self.planes[0].name]
        scale, offset = (
            None if array is None else torch.from_numpy(array[list(taps)]).to(stored.device) for array in self.affine
        )
        for row, part in zip(out, stored.split([len(row) for row in out]), strict=True):
            row.copy_(part)
            if scale is not None:
                row.mul_(scale)
            if offset is not None:
                row.add_(offset)
            if self._overflows:
                row.clamp_(-LARGEST, LARGEST)

    @cached_property
    def _overflows(self) -> bool:
        """Whether a stored value can stand for one beyond float32, as the last step does next to its limit."""
        scale, offset = self.affine
        if scale is None:
            return False
        kind = np.dtype(self.planes[0].dtype)
        most = float(np.finfo(kind).max if kind.kind == "f" else np.iinfo(kind).max)
        reach = most * scale.astype(np.float64) + (0.0 if offset is None else np.abs(offset.astype(np.float64)))
        return bool((reach > LARGEST).any())

    def select(self, planes: Arrays, taps: Sequence[int]) -> tuple[Arrays, Sequence[int]]:
        name = self.planes[0].name
        # As a view where it can be.
        return {name: planes[name] if list(taps) == list(range(self.taps)) else planes[name][:, list(taps)]}, taps


class Fp16(ByValue):
    """IEEE half precision after division by a power of two per tap and channel.

    The relative error is at most 2^-11 for normal values; a power of two adds no error of its own, and
    lets models whose activations reach 1e37 be stored.
    """

    profile = "fp16"
    version = 1

    @classmethod
    def fit(cls, rows: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Arrays:
        _no_parameters(cls.profile, parameters)
        peak = np.maximum.reduce([np.abs(row).max(axis=0) for row in rows]).astype(np.float64)
        peak[peak == 0] = 1.0
        exponent = np.clip(np.ceil(np.log2(peak / FP16_TARGET)), -126, 127)
        return {"scale": np.exp2(exponent).astype(np.float32)}

    @property
    def planes(self) -> tuple[Plane, ...]:
        return (Plane("values", "<f2", (self.taps, self.channels)),)

    def encode(self, features: np.ndarray) -> EncodedRow:
        scaled = features / self.calibration["scale"]
        saturated = int(np.count_nonzero(np.abs(scaled) > FP16_LIMIT))
        if saturated:
            scaled = np.clip(scaled, -FP16_LIMIT, FP16_LIMIT)
        return EncodedRow({"values": scaled.astype(np.float16)}, saturated)

    @property
    def affine(self) -> Affine:
        return self.calibration["scale"], None


class Int8(ByValue):
    """Uniform steps of 8 bits between the calibration's extremes, with headroom, per tap and channel."""

    profile = "int8"
    version = 1

    @classmethod
    def fit(cls, rows: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Arrays:
        _no_parameters(cls.profile, parameters)
        low = np.minimum.reduce([row.min(axis=0) for row in rows]).astype(np.float64)
        high = np.maximum.reduce([row.max(axis=0) for row in rows]).astype(np.float64)
        step = (high - low) * (INT8_HEADROOM / (2 * INT8_LIMIT))
        # A constant channel is its offset; any step serves, and 1 keeps the division safe. A step below the
        # smallest normal number would be flushed to zero by some processors.
        step = np.where(step > 0, np.maximum(step, np.finfo(np.float32).tiny), 1.0)
        return {"offset": ((high + low) / 2).astype(np.float32), "step": step.astype(np.float32)}

    @property
    def planes(self) -> tuple[Plane, ...]:
        return (Plane("codes", "|i1", (self.taps, self.channels)),)

    def encode(self, features: np.ndarray) -> EncodedRow:
        codes = features - self.calibration["offset"]
        codes /= self.calibration["step"]
        np.rint(codes, out=codes)
        saturated = int(np.count_nonzero(np.abs(codes) > INT8_LIMIT))
        if saturated:
            np.clip(codes, -INT8_LIMIT, INT8_LIMIT, out=codes)
        return EncodedRow({"codes": codes.astype(np.int8)}, saturated)

    @property
    def affine(self) -> Affine:
        return self.calibration["step"], self.calibration["offset"]


def _no_parameters(profile: str, parameters: Mapping[str, Any]) -> None:
    if parameters:
        raise UsageError(
            f"profile {profile} takes no parameters, but got {', '.join(sorted(parameters))}: leave them out"
        )
