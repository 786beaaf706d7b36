"""What a file in a cache's folder is, by its key: the one place that says what belongs to a cache.

Keys are relative to the cache where nothing else is said, as in `segments/000000/codes/c/3/0/0`; `featcache.layout`
says what lies where.
"""

from __future__ import annotations

from collections.abc import Collection

from featcache import layout

_OWN_FOLDERS = (layout.CALIBRATION, layout.SEGMENTS, layout.LOG, layout.FORGET)


def is_foreign(key: str) -> bool:
    """Whether a file, or a folder, lies where no cache has anything."""
    first, *rest = key.split("/")
    return first not in _OWN_FOLDERS and (first != layout.ROOT or bool(rest))


def is_beside(key: str) -> bool:
    """Whether a file lies in a cache's folder and is no part of it: logs and leases."""
    return key.startswith(f"{layout.LOG}/") or "/leases/" in key


def is_calibration(key: str) -> bool:
    """Whether a file is of the calibration."""
    folder, *rest = key.split("/")
    return folder == layout.CALIBRATION and (rest == ["zarr.json"] or _is_of_array(rest[1:]))


def is_metadata(key: str, planes: Collection[str]) -> bool:
    """Whether a file of a segment is none of its shards, ledger, labels and seal.

    Its key is relative to the segment, which may lie where one is written anew (`layout.FORGET`).
    """
    folder, *rest = key.split("/")
    if folder == "index":
        return rest == ["zarr.json"] or _is_of_array(rest[1:])
    if not rest:
        return folder in ("zarr.json", "plan.json")
    return folder in planes and rest == ["zarr.json"]


def is_shard(key: str) -> bool:
    """Whether a file is a shard."""
    parts = _in_segment(key)
    return len(parts) > 2 and parts[0] not in ("index", "labels") and parts[1] == "c"


def shard_of(key: str) -> int | None:
    """The shard that a file holds, or is the record of."""
    parts = _in_segment(key)
    number = parts[2] if is_shard(key) else parts[1].removesuffix(".json") if _is_record(parts) else ""
    return int(number) if number.isascii() and number.isdecimal() else None


def is_seal(key: str) -> bool:
    """Whether a file is the seal of a segment."""
    return _in_segment(key) == ["seal.json"]


def is_record(key: str) -> bool:
    """Whether a file says what others of its segment are: of the ledger, or the labels' proof."""
    parts = _in_segment(key)
    return _is_record(parts) or parts == ["labels", layout.LABELS_PROOF]


def proves(key: str) -> bool:
    """Whether a file, or a folder of them, says what others are part of a cache."""
    return key in ("", layout.ROOT) or is_seal(key) or is_record(key) or _in_segment(key) == ["ledger"]


def is_mendable(key: str) -> bool:
    """Whether `repair` can make a file again, and prove that it is as it was.

    A ledger whose records are each whole, but not those that were sealed, is named without a record.
    """
    return bool(_in_segment(key)) and not is_seal(key) and _in_segment(key) != ["ledger"]


def _in_segment(key: str) -> list[str]:
    """The parts of a key below the segment that it lies in; none where it lies in no segment."""
    parts = key.split("/")
    return parts[2:] if parts[0] == layout.SEGMENTS else []


def _is_record(parts: list[str]) -> bool:
    return len(parts) > 1 and parts[0] == "ledger"


def _is_of_array(parts: list[str]) -> bool:
    """Whether a path below an array's folder is its metadata or a chunk."""
    return parts == ["zarr.json"] or (parts[:1] == ["c"] and all(part.isdecimal() for part in parts[1:]))
