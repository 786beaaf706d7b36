"""The encoded frames of one shard, while it is filled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from featcache import layout
from featcache.codec import Arrays, Plane
from featcache.layout import Each, Files
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

    def put(self, planes: Mapping[str, np.ndarray], at: int) -> None:
        """Encoded frames from frame `at` on. Planes that are left out, or have no frames, are zeros there."""
        for plane in self._planes:
            frames = planes.get(plane.name)
            if frames is None or not len(frames):
                continue
            if plane.sparse:
                self._put_sparse(plane, frames, at)
            else:
                self._dense[plane.name][at : at + len(frames)] = frames

    def _put_sparse(self, plane: Plane, frames: np.ndarray, at: int) -> None:
        chunks, length = self._chunks[plane.name], self._layout.chunk_frames
        # By bytes, as a zero with a sign is a value.
        held = np.ascontiguousarray(frames).reshape(len(frames), -1).view(np.uint8).any(axis=1)
        for frame in np.flatnonzero(held).tolist():
            number, place = divmod(at + frame, length)
            if number not in chunks:
                chunks[number] = np.zeros((length, *plane.frame_shape), plane.dtype)
            chunks[number][place] = frames[frame]

    def render(self, each: Each = map) -> Files:
        """The bytes of the shard's file of each plane, by its name; `each` as for `layout.render_shard`."""
        files: Files = {}
        for plane in self._planes:
            if plane.sparse:
                count = self._frames // self._layout.chunk_frames
                files[plane.name] = layout.render_sparse(plane, self._layout, self._chunks[plane.name], count)
            else:
                files[plane.name] = layout.render_shard(plane, self._layout, self._dense[plane.name], each)
        return files


def render_rows(planes: Sequence[Plane], arrangement: Layout, rows: Sequence[Arrays]) -> Files:
    """One shard of encoded rows, end to end and padded to whole chunks: its bytes by plane."""
    lengths = [len(row[planes[0].name]) for row in rows]
    chunk = arrangement.chunk_frames
    block = ShardBlock(planes, arrangement, -(-sum(lengths) // chunk) * chunk)
    at = 0
    for row, length in zip(rows, lengths, strict=True):
        block.put(row, at)
        at += length
    return block.render()
