"""The profiles that store each value by itself: `fp16` (the reference) and `int8`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Fp16(Codec):
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

    def decode_into(
        self,
        planes: Mapping[str, torch.Tensor],
        lengths: Sequence[int],
        taps: Sequence[int],
        out: Sequence[torch.Tensor],
    ) -> None:
        values = planes["values"]
        scale = rows_of(self.calibration["scale"], taps, values.device)
        for row, part in zip(out, values.split(list(lengths)), strict=True):
            row.copy_(part).mul_(scale)

    def select(self, planes: Arrays, taps: Sequence[int]) -> tuple[Arrays, Sequence[int]]:
        return {"values": pick(planes["values"], taps, self.taps)}, taps


class Int8(Codec):
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

    def decode_into(
        self,
        planes: Mapping[str, torch.Tensor],
        lengths: Sequence[int],
        taps: Sequence[int],
        out: Sequence[torch.Tensor],
    ) -> None:
        steps_into(planes["codes"], lengths, taps, self.calibration["step"], self.calibration["offset"], out)

    def select(self, planes: Arrays, taps: Sequence[int]) -> tuple[Arrays, Sequence[int]]:
        return {"codes": pick(planes["codes"], taps, self.taps)}, taps


def rows_of(array: np.ndarray, taps: Sequence[int], device: torch.device) -> torch.Tensor:
    """The calibration of these taps, on a device."""
    return torch.from_numpy(array[list(taps)]).to(device)


def steps_into(
    codes: torch.Tensor,
    lengths: Sequence[int],
    taps: Sequence[int],
    step: np.ndarray,
    offset: np.ndarray,
    out: Sequence[torch.Tensor],
) -> None:
    """`Codec.decode_into` where values are `codes * step + offset`, both float32 `(stored taps, channels)`."""
    scale, shift = (rows_of(array, taps, codes.device) for array in (step, offset))
    for row, part in zip(out, codes.split(list(lengths)), strict=True):
        row.copy_(part).mul_(scale).add_(shift)


def pick(plane: np.ndarray, taps: Sequence[int], stored: int) -> np.ndarray:
    """A plane `(frames, taps, channels)` with these taps alone, as a view where it can be."""
    return plane if list(taps) == list(range(stored)) else plane[:, list(taps)]


def _no_parameters(profile: str, parameters: Mapping[str, Any]) -> None:
    if parameters:
        raise UsageError(
            f"profile {profile} takes no parameters, but got {', '.join(sorted(parameters))}: leave them out"
        )
