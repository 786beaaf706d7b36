"""The encoded frames of one shard, while it is filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from featcache import layout
from featcache.codec import Arrays, Plane
from featcache.layout import Each, LargeFiles
from featcache.spec import Layout


class ShardBlock:
    """All frames of one shard, by plane; what nothing was put into is zeros.

    Of a sparse plane only chunks that hold something take memory: whole, it is the largest of all.

    Args:
        frames: of the shard, a multiple of those of a chunk.
    """

    def __init__(self, planes: Sequence[Plane], arrangement: Layout, frames: int) -> None:
        self._planes, self._layout, self._frames = planes, arrangement, frames
        self._dense = {p.name: np.zeros((frames, *p.frame_shape), p.dtype) for p in planes if not p.sparse}
        self._chunks: dict[str, dict[int, np.ndarray]] = {p.name: {} for p in planes if p.sparse}

    def put(self, planes: Mapping[str, np.ndarray], at: int, held: Mapping[str, np.ndarray] | None = None) -> None:
        """Encoded frames from frame `at` on. Planes that are left out, or have no frames, are zeros there.

        Args:
            held: of sparse planes, which frames are not all zeros; of those that it lacks it is found out.
        """
        for plane in self._planes:
            frames = planes.get(plane.name)
            if frames is None or not len(frames):
                continue
            if plane.sparse:
                found = None if held is None else held.get(plane.name)
                self._put_sparse(plane, frames, at, _held(frames) if found is None else found)
            else:
                self._dense[plane.name][at : at + len(frames)] = frames

    def _put_sparse(self, plane: Plane, frames: np.ndarray, at: int, held: np.ndarray) -> None:
        chunks, length = self._chunks[plane.name], self._layout.chunk_frames
        for frame in held.tolist():
            number, place = divmod(at + frame, length)
            if number not in chunks:
                chunks[number] = np.zeros((length, *plane.frame_shape), plane.dtype)
            chunks[number][place] = frames[frame]

    def clear(self) -> None:
        """Zeros again, in the same memory: to get new memory takes as long as all else that becomes of a shard."""
        for array in self._dense.values():
            array[:] = 0
        for chunks in self._chunks.values():
            chunks.clear()

    def render(self, each: Each = map) -> LargeFiles:
        """The bytes of the shard's file of each plane, by its name; `each` as for `layout.render_shard`."""
        files: LargeFiles = {}
        for plane in self._planes:
            if plane.sparse:
                count = self._frames // self._layout.chunk_frames
                files[plane.name] = layout.render_sparse(plane, self._layout, self._chunks[plane.name], count)
            else:
                files[plane.name] = layout.render_shard(plane, self._layout, self._dense[plane.name], each)
        return files


def _held(frames: np.ndarray) -> np.ndarray:
    """Which frames are not all zeros, by their bytes, as a zero with a sign is a value."""
    return np.flatnonzero(np.ascontiguousarray(frames).reshape(len(frames), -1).view(np.uint8).any(axis=1))


def render_rows(planes: Sequence[Plane], arrangement: Layout, rows: Sequence[Arrays]) -> LargeFiles:
    """One shard of encoded rows, end to end and padded to whole chunks: its bytes by plane."""
    lengths = [len(row[planes[0].name]) for row in rows]
    chunk = arrangement.chunk_frames
    block = ShardBlock(planes, arrangement, -(-sum(lengths) // chunk) * chunk)
    at = 0
    for row, length in zip(rows, lengths, strict=True):
        block.put(row, at)
        at += length
    return block.render()
