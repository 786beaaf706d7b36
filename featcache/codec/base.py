"""What every codec profile offers: how activations become bytes, and how they come back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch

from featcache.errors import UsageError

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Plane:
    """One Zarr array of a segment: its name, its dtype and the shape that one frame has in it.

    `coder` is "zstd", "literal" (also zstd, as `featcache.codec.literal` compresses), "blosc" or "pcodec"; `level` is
    zstd's where the layout's is not the best one. `order` is that of the axes of a chunk, frames first, as they are
    stored; none if that is theirs. `axes` names the axes of a frame where they are not taps
    and channels. A `sparse` plane is almost empty, and does not count for how long a shard is.
    """

    name: str
    dtype: str
    frame_shape: tuple[int, ...]
    coder: str = "zstd"
    level: int | None = None
    order: tuple[int, ...] = ()
    axes: tuple[str, ...] = ("tap", "channel")
    sparse: bool = False

    @property
    def bytes_per_frame(self) -> int:
        return int(np.prod(self.frame_shape)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class EncodedRow:
    """One row as it is stored: an array `(frames, *frame_shape)` per plane, but for sparse ones that are all zeros.

    `saturated` counts the values that lay beyond what the profile can hold and were set to its limit. `held` has, for
    sparse planes of which that is known, the frames that are not all zeros.
    """

    planes: Arrays
    saturated: int
    held: Arrays = field(default_factory=dict)


# The rest of a row's encoding.
Rest = Callable[[], EncodedRow]


@dataclass(frozen=True)
class Begun:
    """A row whose encoding a device has begun; nothing of the device is held.

    Attributes:
        bad_taps: gives the positions of taps whose values are not all finite, int64.
        rest: ends the encoding; only where there are no such taps.
    """

    bad_taps: Callable[[], np.ndarray]
    rest: Rest


def bad_taps(features: np.ndarray) -> np.ndarray:
    """Positions of the taps of a row `(frames, taps, channels)` whose values are not all finite."""
    return np.flatnonzero(~np.isfinite(features).all(axis=(0, 2)))


# The calibration arrays for parameters; where the second argument is true, some near them will do (`Fits`).
Fitting = Callable[[Mapping[str, Any], bool], Arrays]


class Codec(ABC):
    """A profile with its parameters and its calibration, for activations `(frames, taps, channels)`.

    A subclass is made of plain arrays: `calibration` maps names to arrays `(taps, channels, ...)`, which
    are stored beside the codes. `encode` and `decode` depend on nothing else.
    """

    profile: ClassVar[str]
    version: ClassVar[int]

    def __init__(self, taps: int, channels: int, parameters: Mapping[str, Any], calibration: Arrays) -> None:
        self.taps = taps
        self.channels = channels
        self.parameters = dict(parameters)
        self.calibration = calibration

    @classmethod
    def parse(cls, text: str) -> dict[str, Any]:
        """Parameters from what stands after the colon of a profile as users write it.

        Raises:
            UsageError: the profile has none, or this is none of them.
        """
        raise UsageError(f"profile {cls.profile} takes no parameters, but got {text!r}: write --profile {cls.profile}")

    @classmethod
    @abstractmethod
    def fit(cls, rows: Sequence[np.ndarray], parameters: Mapping[str, Any]) -> Arrays:
        """The calibration arrays for these float32 rows `(frames, taps, channels)`; deterministic."""

    @classmethod
    def fitter(cls, rows: Sequence[np.ndarray]) -> Fitting:
        """`fit` to these rows, for parameter after parameter: what does not depend on them is done once."""
        return lambda parameters, rough: cls.fit(rows, parameters)

    @property
    @abstractmethod
    def planes(self) -> tuple[Plane, ...]:
        """The arrays that hold the codes, the largest first."""

    @property
    def bytes_per_frame(self) -> int:
        """What decides how many frames a shard holds: the size of one in the largest plane, before packing."""
        return max(plane.bytes_per_frame for plane in self.planes if not plane.sparse)

    def complete(self, planes: Arrays) -> Arrays:
        """The planes of an encoded row with those that were left out."""
        frames = len(planes[self.planes[0].name])
        return {
            plane.name: planes.get(plane.name, np.zeros((frames, *plane.frame_shape), plane.dtype))
            for plane in self.planes
        }

    @abstractmethod
    def encode(self, features: np.ndarray) -> EncodedRow:
        """Codes of one row, float32 `(frames, taps, channels)`, all finite."""

    def encode_rows(self, rows: Sequence[np.ndarray]) -> list[Rest]:
        """The encoding of each of several rows: what `encode` gives, byte for byte.

        Nothing is done before it is asked for; then a profile may encode other rows of these with it.
        """
        return [partial(self.encode, row) for row in rows]

    def begin_encoding(self, rows: Sequence[torch.Tensor]) -> Callable[[], list[Begun]]:
        """Begin to encode rows, float32 `(frames, taps, channels)` each, on the device that they are on.

        The call that is returned waits for the device. It gives what is left to do on the CPU, row by row, which
        ends in what `encode` gives, byte for byte. A profile that has no way to encode there leaves all of it to
        the CPU.

            end = codec.begin_encoding(rows)  # then begin other work
            encoded = [begun.rest() for begun in end()]
        """
        return lambda: [self._on_cpu(row.cpu().numpy()) for row in rows]

    def _on_cpu(self, features: np.ndarray) -> Begun:
        """A row that a device leaves to the CPU, where threads share a batch's rows: each is encoded by itself."""
        return Begun(partial(bad_taps, features), partial(self.encode, features))

    @abstractmethod
    def decode_into(self, planes: Mapping[str, torch.Tensor], taps: Sequence[int], out: Sequence[torch.Tensor]) -> None:
        """Utterances laid end to end, `(sum of lengths, *frame_shape)` a plane, each to a tensor of `out`.

        Args:
            taps: positions among the stored taps.
            out: for each utterance float32 `(length, len(taps), channels)`, of any content, on the planes' device.
        """

    def decode(self, planes: Mapping[str, torch.Tensor], lengths: Sequence[int], taps: Sequence[int]) -> torch.Tensor:
        """Utterances as they lie, end to end: float32 `(frames, len(taps), channels)`; see `decode_into`."""
        out = self._empty(planes, (sum(lengths), len(taps), self.channels))
        self.decode_into(planes, taps, out.split(list(lengths)))
        return out

    def decode_batch(
        self, planes: Mapping[str, torch.Tensor], lengths: Sequence[int], taps: Sequence[int]
    ) -> torch.Tensor:
        """float32 `(utterances, longest, len(taps), channels)`, zero beyond each one's end; see `decode_into`."""
        out = self._empty(planes, (len(lengths), max(lengths, default=0), len(taps), self.channels))
        for padded, length in zip(out, lengths, strict=True):
            padded[length:] = 0
        self.decode_into(planes, taps, [row[:length] for row, length in zip(out, lengths, strict=True)])
        return out

    def _empty(self, planes: Mapping[str, torch.Tensor], shape: tuple[int, ...]) -> torch.Tensor:
        device = planes[self.planes[0].name].device
        # NumPy asks for huge pages: fetching small ones one by one takes as long as half of the decoding.
        if device.type == "cpu":
            return torch.from_numpy(np.empty(shape, np.float32))
        return torch.empty(shape, device=device)

    def decode_row(self, planes: Arrays, frames: int) -> np.ndarray:
        """All taps of one row of `frames` frames, on the CPU: float32 `(frames, taps, channels)`."""
        selected, taps = self.select(self.complete(planes), range(self.taps))
        tensors = {name: torch.from_numpy(plane) for name, plane in selected.items()}
        return self.decode(tensors, [frames], taps).numpy()

    def select(self, planes: Arrays, taps: Sequence[int]) -> tuple[Arrays, Sequence[int]]:
        """Drop what `decode` does not need for these taps; returns the planes and the taps' new positions."""
        return planes, taps

    def needed(self, plane: str, found: Arrays, frames: int) -> range:
        """The frames of an utterance of so many that `decode` needs in this plane, given the planes before it.

        `decode` gets no others of this utterance in it.
        """
        return range(frames)


class Fits:
    """Calibrations of several profiles on the same float32 rows `(frames, taps, channels)`."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self.rows = rows
        self._fitters: dict[type[Codec], Fitting] = {}

    def __call__(self, kind: type[Codec], parameters: Mapping[str, Any], rough: bool = False) -> Arrays:
        """What `kind.fit` gives for the rows; where `rough`, something near it that may take less time."""
        if kind not in self._fitters:
            self._fitters[kind] = kind.fitter(self.rows)
        return self._fitters[kind](parameters, rough)
