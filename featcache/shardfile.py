"""Frames of a plane straight from the file of its shard; shards taken apart and put together.

A shard is Zarr v3's `sharding_indexed`: inner chunks end to end, then where each begins and how long it is, then a
CRC-32C of that. zarr-python reads this index anew for every row and takes each chunk through an event loop, which
costs several times what unpacking does (docs/decisions/0013-speed-and-scale.md). Here the index is kept, and a
chunk is read, checked and unpacked in one go. Whatever is not exactly what `featcache.layout` writes, or does not
lie in a local file, is left to zarr-python.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numcodecs import Blosc, Zstd

# Indexes that are kept: 10 kB each.
_KEPT = 1024
_CRC_BYTES = 4
_ABSENT = 2**64 - 1
_COMPRESSORS = {"zstd": Zstd, "blosc": Blosc}
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


class ShardFiles:
    """The shards of one plane. Safe to use from threads; holds no file open."""

    def __init__(
        self,
        chunk_frames: int,
        shard_frames: int,
        frame_shape: tuple[int, ...],
        dtype: np.dtype,
        order: tuple[int, ...],
        compressor: str,
    ) -> None:
        """`order` is that of a chunk's axes as they are stored, `compressor` one of `_COMPRESSORS`."""
        self.chunk_frames = chunk_frames
        self.shard_frames = shard_frames
        self.frame_shape = frame_shape
        self.dtype = dtype
        shape = (chunk_frames, *frame_shape)
        self._stored = tuple(shape[axis] for axis in order)
        self._axes = tuple(np.argsort(order).tolist())
        # They read of what they are given how it was made.
        self._decode = _COMPRESSORS[compressor]().decode

    @classmethod
    def of(cls, metadata: bytes) -> ShardFiles | None:
        """The reader for an array with this `zarr.json`; None where only zarr-python knows how to read it."""
        try:
            found = json.loads(metadata)
            [sharding] = found["codecs"]
            inner = sharding["configuration"]
            codecs = list(inner["codecs"])
            axes = range(len(inner["chunk_shape"]))
            moved = codecs.pop(0)["configuration"]["order"] if codecs[0]["name"] == "transpose" else axes
            names = [codec["name"] for codec in codecs]
            endian = codecs[0].get("configuration", {}).get("endian", "little")
            frames, *frame_shape = inner["chunk_shape"]
            shard_frames, *shard_shape = found["chunk_grid"]["configuration"]["chunk_shape"]
            known = (
                sharding["name"] == "sharding_indexed"
                and names in [["bytes", compressor, "crc32c"] for compressor in _COMPRESSORS]
                and endian == "little"
                and sorted(moved) == list(axes)
                and _plain(inner["index_codecs"]) == _INDEX_CODECS
                and inner.get("index_location", "end") == "end"
                and frame_shape == shard_shape == found["shape"][1:]
                and not shard_frames % frames
            )
            dtype = np.dtype(found["data_type"]).newbyteorder("<")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return None
        return cls(frames, shard_frames, tuple(frame_shape), dtype, tuple(moved), names[1]) if known else None

    def read(self, path: Path, first: int, end: int) -> np.ndarray:
        """Frames `first .. end` of a shard, counted from its start: `(end - first, *frame_shape)`.

        Raises:
            OSError: the file cannot be read.
            ValueError, RuntimeError: its bytes are not as they were written.
        """
        out = np.empty((end - first, *self.frame_shape), self.dtype)
        chunks = range(first // self.chunk_frames, -(-end // self.chunk_frames))
        descriptor = os.open(path, os.O_RDONLY)
        try:
            stat = os.fstat(descriptor)
            # A shard that was repaired meanwhile is another file, with another index.
            index = _read_index(str(path), stat.st_ino, stat.st_mtime_ns, stat.st_size, self._chunks)
            for chunk in chunks:
                offset, size = (int(n) for n in index[chunk])
                if offset == _ABSENT or offset + size > stat.st_size:
                    raise ValueError(f"chunk {chunk} of the shard is not there")
                block = self._unpack(os.pread(descriptor, size, offset), chunk)
                start = chunk * self.chunk_frames
                low, high = max(first, start), min(end, start + self.chunk_frames)
                out[low - first : high - first] = block[low - start : high - start]
        finally:
            os.close(descriptor)
        return out

    @property
    def _chunks(self) -> int:
        return self.shard_frames // self.chunk_frames

    def _unpack(self, data: bytes, chunk: int) -> np.ndarray:
        """A chunk `(chunk_frames, *frame_shape)`."""
        block = np.empty(self._stored, self.dtype)
        self._decode(_content(data, f"chunk {chunk}"), out=block.view(np.uint8))
        return block.transpose(self._axes)


@dataclass(frozen=True)
class Packed:
    """Some inner chunks end to end: their bytes, uint8 `(bytes,)`, and how long each is."""

    data: np.ndarray
    sizes: list[int]


def split(shard: bytes | memoryview, chunks: int) -> list[Packed]:
    """The inner chunks of a shard, each by itself.

    Raises:
        ValueError: its index is not as it was written.
    """
    data = np.frombuffer(shard, np.uint8)
    index = _parse_index(data[-_index_bytes(chunks) :].tobytes(), chunks)
    return [Packed(data[offset : offset + size], [size]) for offset, size in index.tolist()]


def pack(contents: Sequence[np.ndarray]) -> Packed:
    """Inner chunks of these contents, uint8 each: a CRC-32C comes behind every one."""
    sizes = [len(content) + _CRC_BYTES for content in contents]
    data = np.empty(sum(sizes), np.uint8)
    at = 0
    for content, size in zip(contents, sizes, strict=True):
        end = at + size
        data[at : end - _CRC_BYTES] = content
        data[end - _CRC_BYTES : end] = np.frombuffer(_crc(content), np.uint8)
        at = end
    return Packed(data, sizes)


def join(parts: Sequence[Packed]) -> memoryview:
    """The shard of these inner chunks, as zarr-python writes it.

    NumPy copies them without the interpreter's lock, which joining bytes keeps.
    """
    index = _index([size for part in parts for size in part.sizes])
    out = np.empty(sum(len(part.data) for part in parts) + len(index), np.uint8)
    at = 0
    for data in [*(part.data for part in parts), np.frombuffer(index, np.uint8)]:
        out[at : at + len(data)] = data
        at += len(data)
    return out.data


def _index(lengths: Sequence[int]) -> bytes:
    sizes = np.array(lengths, "<u8")
    content = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1).astype("<u8").tobytes()
    return content + _crc(content)


def _crc(content: Any) -> bytes:
    return google_crc32c.value(content).to_bytes(_CRC_BYTES, "little")


def _index_bytes(chunks: int) -> int:
    return 16 * chunks + _CRC_BYTES


def _parse_index(data: bytes, chunks: int) -> np.ndarray:
    if len(data) != _index_bytes(chunks):
        raise ValueError("the shard is shorter than its index")
    return np.frombuffer(_content(data, "the index"), "<u8").reshape(chunks, 2)


@lru_cache(_KEPT)
def _read_index(path: str, inode: int, changed: int, size: int, chunks: int) -> np.ndarray:
    """`(chunks, 2)` uint64: where each inner chunk begins, and its bytes."""
    length = _index_bytes(chunks)
    with open(path, "rb") as file:
        file.seek(max(size - length, 0))
        return _parse_index(file.read(length), chunks)


def _content(data: bytes, what: str) -> bytes:
    """The bytes before their CRC-32C, which is theirs."""
    content = data[:-_CRC_BYTES]
    if _crc(content) != data[-_CRC_BYTES:]:
        raise ValueError(f"{what} does not match its checksum")
    return content


def _plain(codecs: Any) -> Any:
    """Codecs without configurations that are empty."""
    return [{key: value for key, value in codec.items() if value} for codec in codecs]
