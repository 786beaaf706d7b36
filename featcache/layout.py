"""The layout of a cache on Zarr v3: the one place that names groups, arrays and their codecs.

    CACHE/zarr.json                               group; attributes: the CacheSpec
    CACHE/calibration/NAME                        arrays (taps, channels, ...)
    CACHE/segments/000000/zarr.json               group
                         /PLANE/c/3/0/0           one shard: the codes of whole rows
                         /index/NAME              numeric arrays and UTF-8 bytes with offsets
                         /labels/NAME/            a column: bytes and offsets; replaceable
                         /plan.json               digests of what the segment was planned from
                         /ledger/000003.json      one record per finished shard
                         /seal.json               proves all of the above
    CACHE/log/                                    rates and times; part of no digest

Arrays are rendered in memory into the bytes of their keys; `featcache.storage` makes them durable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.storage import MemoryStore

from featcache import shardfile
from featcache.errors import UsageError
from featcache.spec import CacheSpec, Layout

if TYPE_CHECKING:
    from featcache.codec import Arrays, Codec, Plane
    from featcache.storage import Storage

ROOT = "zarr.json"
CALIBRATION = "calibration"
SEGMENTS = "segments"
LOG = "log"
# Segments that are written anew without some utterances, and the mark that they are to replace the old ones.
FORGET = "forget"
PENDING = f"{FORGET}/pending.json"
# The file in a segment's `labels/` that proves the others there.
LABELS_PROOF = "proof.json"
SPEC_ATTRIBUTE = "featcache"
# Rows of one chunk of an index array: ten million utterances are ten chunks.
INDEX_CHUNK = 1 << 20

Files = dict[str, bytes]
# Of shards.
LargeFiles = dict[str, bytes | memoryview]


def segment_name(number: int) -> str:
    return f"{SEGMENTS}/{number:06d}"


def segments(storage: Storage) -> list[str]:
    """Names of the segments that are there, sealed or not, in order.

    Other folders beside them are none: those of a NAS's or a notebook's own (`@eaDir`, `.ipynb_checkpoints`).
    """
    names = (name for name in storage.folders(SEGMENTS) if name.isascii() and name.isdecimal())
    return [f"{SEGMENTS}/{name}" for name in names]


def calibration_names(storage: Storage) -> list[str]:
    """Names of the calibration's arrays, in order; folders without an array are none of them."""
    parts = (key.split("/") for key in storage.list_keys(CALIBRATION))
    return sorted(part[1] for part in parts if len(part) == 3 and part[2] == "zarr.json")


def next_segment(names: Sequence[str]) -> str:
    """The name of a new segment, given those of the ones that are there; one may have been taken out."""
    numbers = (name.removeprefix(f"{SEGMENTS}/") for name in names)
    return segment_name(1 + max((int(number) for number in numbers if number.isdecimal()), default=-1))


def shard_key(segment: str, plane: Plane, shard: int) -> str:
    """The key of one shard's file."""
    return "/".join([segment, plane.name, "c", str(shard), *("0" for _ in plane.frame_shape)])


def render_root(spec: CacheSpec, calibration: Arrays) -> Files:
    """The root group with its description, and the calibration."""
    files = _group("", {SPEC_ATTRIBUTE: spec.model_dump(mode="json")})
    files |= _group(CALIBRATION, {})
    for name in sorted(calibration):
        files |= _array(f"{CALIBRATION}/{name}", calibration[name])
    return files


def render_segment(segment: str, codec: Codec, layout: Layout, shards: int, shard_frames: int) -> Files:
    """The group of a segment, and the metadata of its empty planes."""
    files = _group(segment, {})
    for plane in codec.planes:
        store: dict[str, Any] = {}
        _create_plane(store, plane, layout, shards, shard_frames)
        files[f"{segment}/{plane.name}/zarr.json"] = store["zarr.json"].to_bytes()
    return files


# As `map`, in whose place the `map` of a pool of threads may stand.
Each = Callable[[Callable[[int], shardfile.Packed], Iterable[int]], Iterable[shardfile.Packed]]
# Chunks of a shard that a thread compresses in one go: a sixtieth of a shard of the default size.
CHUNKS_TOGETHER = 16


def render_shard(plane: Plane, layout: Layout, block: np.ndarray, each: Each = map) -> bytes | memoryview:
    """The bytes of one shard, from its frames `(shard_frames, *frame_shape)`.

    Args:
        each: compresses some chunks at a time, where we do that ourselves.
    """
    return _render_literal(plane, layout, block, each) if plane.coder == "literal" else _render(plane, layout, block)


def render_sparse(plane: Plane, layout: Layout, filled: Mapping[int, np.ndarray], chunks: int) -> memoryview:
    """The bytes of one shard of so many chunks, of which those that are `filled` are not zeros.

    Args:
        filled: `(chunk_frames, *frame_shape)` each.
    """
    # Zeros are alike: one chunk of them is rendered for all.
    zeros = np.zeros((layout.chunk_frames, *plane.frame_shape), plane.dtype)
    some = np.concatenate([zeros, *filled.values()])
    zero, *others = shardfile.split(_render(plane, layout, some), 1 + len(filled))
    rendered = dict(zip(filled, others, strict=True))
    return shardfile.join([rendered.get(number, zero) for number in range(chunks)])


def _render_literal(plane: Plane, layout: Layout, block: np.ndarray, each: Each) -> memoryview:
    """The chunks as zarr would write them, with a zstd of our own setting that any other reads."""
    from featcache.codec import literal

    axes = (0, *(1 + axis for axis in plane.order))
    chunks = block.reshape(-1, layout.chunk_frames, *plane.frame_shape).transpose(axes)

    def rendered(at: int) -> shardfile.Packed:
        return shardfile.pack(literal.compress_each(np.ascontiguousarray(chunks[at : at + CHUNKS_TOGETHER])))

    return shardfile.join(list(each(rendered, range(0, len(chunks), CHUNKS_TOGETHER))))


def _render(plane: Plane, layout: Layout, block: np.ndarray) -> bytes:
    store: dict[str, Any] = {}
    array = _create_plane(store, plane, layout, 1, len(block))
    array[:] = block
    data = store["/".join(["c", "0", *("0" for _ in plane.frame_shape)])]
    return bytes(data.to_bytes())


def render_columns(folder: str, columns: Mapping[str, np.ndarray]) -> Files:
    """One-dimensional (or narrow) arrays below a group."""
    files = _group(folder, {})
    for name in sorted(columns):
        files |= _array(f"{folder}/{name}", columns[name])
    return files


def read_attributes(root: bytes) -> dict[str, Any]:
    """The attributes of a group's `zarr.json`."""
    document = json.loads(root)
    attributes = document.get("attributes", {})
    return attributes if isinstance(attributes, dict) else {}


def _create_plane(store: dict[str, Any], plane: Plane, layout: Layout, shards: int, shard_frames: int) -> Any:
    return zarr.create_array(
        MemoryStore(store),
        shape=(shards * shard_frames, *plane.frame_shape),
        dtype=plane.dtype,
        chunks=(layout.chunk_frames, *plane.frame_shape),
        shards=(shard_frames, *plane.frame_shape),
        filters=(TransposeCodec(order=plane.order),) if plane.order else (),
        serializer=_pcodec() if plane.coder == "pcodec" else "auto",
        compressors=_plane_compressors(plane, layout),
        fill_value=0,
        dimension_names=_dimension_names(plane),
        # Otherwise a shard of zeros is not written, and a valid cache looks torn.
        config={"write_empty_chunks": True},
    )


def _plane_compressors(plane: Plane, layout: Layout) -> tuple[Any, ...]:
    if plane.coder == "pcodec":
        return (Crc32cCodec(),)
    if plane.coder == "blosc":
        return (BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"), Crc32cCodec())
    return _compressors(layout.zstd_level if plane.level is None else plane.level)


def _dimension_names(plane: Plane) -> tuple[str, ...]:
    return ("frame", *plane.axes[: len(plane.frame_shape)])


def _pcodec() -> Any:
    try:
        from zarr.codecs.numcodecs import PCodec
    except ImportError as error:
        raise UsageError(f"profile pcodec cannot be used ({error}): run `pip install pcodec`") from error
    return PCodec(level=8, equal_pages_up_to=1 << 15)


def _compressors(level: int) -> tuple[Any, ...]:
    return (ZstdCodec(level=level, checksum=True), Crc32cCodec())


def _group(path: str, attributes: dict[str, Any]) -> Files:
    store: dict[str, Any] = {}
    zarr.create_group(MemoryStore(store), attributes=attributes)
    return {f"{path}/zarr.json".lstrip("/"): store["zarr.json"].to_bytes()}


def _array(path: str, data: np.ndarray) -> Files:
    store: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(store),
        shape=data.shape,
        dtype=data.dtype,
        chunks=(min(INDEX_CHUNK, max(1, len(data))), *data.shape[1:]),
        compressors=_compressors(3),
        fill_value=0,
        config={"write_empty_chunks": True},
    )
    if data.size:
        array[...] = data
    return {f"{path}/{key}": value.to_bytes() for key, value in sorted(store.items())}


__all__ = [
    "CALIBRATION",
    "LOG",
    "ROOT",
    "FORGET",
    "LABELS_PROOF",
    "PENDING",
    "SEGMENTS",
    "SPEC_ATTRIBUTE",
    "Each",
    "Files",
    "LargeFiles",
    "calibration_names",
    "next_segment",
    "read_attributes",
    "render_columns",
    "render_root",
    "render_segment",
    "render_shard",
    "render_sparse",
    "segment_name",
    "segments",
    "shard_key",
]
