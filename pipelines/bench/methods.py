"""Ways to store activations, behind one interface, for the comparison of codecs."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from featcache import codec as codecs
from featcache.block import render_rows
from featcache.spec import Layout

Rows = Sequence[np.ndarray]
CHUNK = Layout().chunk_frames


class Method(ABC):
    """One way to store rows, float32 `(frames, taps, channels)`."""

    def __init__(self, name: str, needs: str | None = None) -> None:
        self.name = name
        self.needs = needs

    @property
    def missing(self) -> str | None:
        """The package that this needs and that is not installed."""
        return self.needs if self.needs and importlib.util.find_spec(self.needs) is None else None

    def fit(self, rows: Rows) -> None:
        """Calibrate."""
        self.mean = np.concatenate(rows).mean(axis=0)
        self.deviation = np.maximum(np.concatenate(rows).std(axis=0), 1e-12)

    @abstractmethod
    def encode(self, rows: Rows) -> tuple[int, Any]:
        """The bytes that the rows take, and what `decode` needs."""

    @abstractmethod
    def decode(self, encoded: Any) -> list[np.ndarray]:
        """The rows again."""


class Profile(Method):
    """A codec profile, laid out as in a cache."""

    def __init__(self, profile: str, needs: str | None = None) -> None:
        super().__init__(profile if ":" in profile else f"{profile} + zstd", needs)
        self.profile, self.parameters = codecs.parse_profile(profile)

    def fit(self, rows: Rows) -> None:
        kind = codecs.profile_class(self.profile)
        taps, channels = rows[0].shape[1:]
        calibration = kind.fit(rows, self.parameters)
        self.codec = codecs.build(self.profile, kind.version, taps, channels, self.parameters, calibration)

    def encode(self, rows: Rows) -> tuple[int, Any]:
        encoded = [rest().planes for rest in self.codec.encode_rows(rows)]
        self.shards = render_rows(self.codec.planes, Layout(), encoded)
        return sum(map(len, self.shards.values())), [self.codec.complete(row) for row in encoded]

    def decode(self, encoded: Any) -> list[np.ndarray]:
        out = []
        taps = range(self.codec.taps)
        for row in encoded:
            frames = len(row[self.codec.planes[0].name])
            parts = {name: self.codec.needed(name, row, frames) for name in row}
            planes = {name: torch.from_numpy(row[name][part.start : part.stop]) for name, part in parts.items()}
            out.append(self.codec.decode(planes, [frames], taps).numpy())
        return out


class Chunked(Method):
    """A byte codec over chunks of 64 frames, channel by channel, of values that were normalised first."""

    def __init__(
        self,
        name: str,
        encode: Callable[[np.ndarray], bytes],
        decode: Callable[[bytes, tuple[int, ...]], np.ndarray],
        step: float | None = None,
        dtype: str = "<f4",
        needs: str | None = None,
    ) -> None:
        super().__init__(name, needs)
        self.step, self.dtype = step, dtype
        self._encode, self._decode = encode, decode

    def encode(self, rows: Rows) -> tuple[int, Any]:
        values = (_padded(rows) - self.mean) / self.deviation
        if self.step is not None:
            values = np.rint(values / self.step)
        values = np.clip(values, -1e4, 1e4).astype(self.dtype).reshape(len(values), -1)
        chunks = [self._encode(np.ascontiguousarray(values[at : at + CHUNK].T)) for at in range(0, len(values), CHUNK)]
        return sum(map(len, chunks)), (chunks, [len(row) for row in rows])

    def decode(self, encoded: Any) -> list[np.ndarray]:
        chunks, lengths = encoded
        values = [self._decode(chunk, (self.mean.size, CHUNK)).T for chunk in chunks]
        joined = np.concatenate(values).reshape(-1, *self.mean.shape) * np.float32(self.step or 1.0)
        joined = (joined * self.deviation + self.mean).astype(np.float32)
        return np.split(joined[: sum(lengths)], np.cumsum(lengths)[:-1])


class Lilcom(Method):
    """lilcom as lhotse uses it: one array of normalised values `(frames, taps * channels)` a row."""

    def __init__(self, tick_power: int) -> None:
        super().__init__(f"lilcom tick {tick_power}", "lilcom")
        self.tick_power = tick_power

    def encode(self, rows: Rows) -> tuple[int, Any]:
        lilcom = importlib.import_module("lilcom")

        normal = [((row - self.mean) / self.deviation).reshape(len(row), -1).astype(np.float32) for row in rows]
        encoded = [lilcom.compress(row, tick_power=self.tick_power) for row in normal]
        return sum(map(len, encoded)), encoded

    def decode(self, encoded: Any) -> list[np.ndarray]:
        lilcom = importlib.import_module("lilcom")

        rows = [lilcom.decompress(data) for data in encoded]
        return [(row.reshape(-1, *self.mean.shape) * self.deviation + self.mean).astype(np.float32) for row in rows]


def _padded(rows: Rows) -> np.ndarray:
    joined = np.concatenate(rows)
    return np.concatenate([joined, np.zeros((-len(joined) % CHUNK, *joined.shape[1:]), joined.dtype)])


def _zfp(tolerance: float) -> Chunked:
    def encode(block: np.ndarray) -> bytes:
        zfpy = importlib.import_module("zfpy")

        return bytes(zfpy.compress_numpy(block, tolerance=tolerance))

    def decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        zfpy = importlib.import_module("zfpy")

        return np.asarray(zfpy.decompress_numpy(data))

    return Chunked(f"ZFP tolerance {tolerance}", encode, decode, needs="zfpy")


def _blosc2(step: float) -> Chunked:
    def encode(block: np.ndarray) -> bytes:
        blosc2 = importlib.import_module("blosc2")

        return bytes(blosc2.compress2(block, codec=blosc2.Codec.ZSTD, clevel=5, nthreads=1))

    def decode(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
        blosc2 = importlib.import_module("blosc2")

        return np.frombuffer(blosc2.decompress2(data), np.int8).reshape(shape)

    return Chunked(f"Blosc2 zstd int8 step {step}", encode, decode, step, "|i1", "blosc2")


def methods() -> list[Method]:
    """Every row of the comparison."""
    return [
        # Errors are compared over all taps, so that bits are spread evenly over them.
        *(Profile(f"residual:{bits},last=1") for bits in ("3.0", "2.0", "1.5", "1.0", "0.75", "0.5", "0.35")),
        *(Profile(f"residual:{bits}") for bits in ("2.0", "1.0", "0.5")),
        Profile("residual:nmse=0.003"),
        Profile("fp16"),
        Profile("int8"),
        *(Lilcom(tick) for tick in (-3, -2, -1, 0, 1)),
        *(_zfp(tolerance) for tolerance in (0.25, 1.0, 4.0)),
        *(Profile(f"pcodec:step={step}", "pcodec") for step in (0.2, 0.5, 1.0)),
        *(Profile(f"blosc:step={step}") for step in (0.2, 0.5, 1.0)),
        *(_blosc2(step) for step in (0.5,)),
        *(Profile(f"bitround:{keep}") for keep in (1, 3)),
    ]
