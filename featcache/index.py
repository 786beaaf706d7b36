"""Who is where: ids, ranges and labels of a segment, as plain numeric arrays.

Text is UTF-8 bytes with offsets, since Zarr's string arrays are not readable everywhere and a JSON blob
does not open in constant time. An id is found by binary search among sorted 64-bit hashes.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from featcache.ledger import ShardRecord

if TYPE_CHECKING:
    from featcache.plan import Plan
    from featcache.segment import Segment

USABLE, QUARANTINED = 0, 1
# Marks a label that is absent, so that "" stays a label.
MISSING = "\x00"
# The label of a view: the id of the utterance that it is a copy of (`featcache.views`).
VIEW_OF = "view_of"


def id_hash(utterance_id: str) -> int:
    """The 64-bit hash under which an id is filed."""
    # No manifest has an id with half a surrogate pair, but a command line that is not UTF-8 may ask for one.
    return int.from_bytes(hashlib.sha256(utterance_id.encode("utf-8", "surrogatepass")).digest()[:8], "little")


def pack_text(texts: Sequence[str]) -> dict[str, np.ndarray]:
    """`bytes` uint8 and `offsets` int64 `(len + 1,)`."""
    encoded = [text.encode() for text in texts]
    offsets = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(piece) for piece in encoded], out=offsets[1:])
    return {"bytes": np.frombuffer(b"".join(encoded), np.uint8), "offsets": offsets}


class LazyTexts(Sequence[str]):
    """Strings that are decoded one at a time, as they are asked for; a slice is a list."""

    @overload
    def __getitem__(self, item: int) -> str: ...
    @overload
    def __getitem__(self, item: slice) -> list[str]: ...
    def __getitem__(self, item: int | slice) -> str | list[str]:
        if isinstance(item, slice):
            return [self[i] for i in range(*item.indices(len(self)))]
        position = item + len(self) if item < 0 else item
        if not 0 <= position < len(self):
            raise IndexError(item)
        return self._text(position)

    @abstractmethod
    def _text(self, position: int) -> str:
        """The string at a position from 0 to below the length."""


class Texts(LazyTexts):
    """A sequence of strings over packed bytes; nothing is decoded before it is asked for."""

    def __init__(self, data: np.ndarray, offsets: np.ndarray) -> None:
        self._data = data
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def _text(self, position: int) -> str:
        return bytes(self._data[self._offsets[position] : self._offsets[position + 1]]).decode()

    def __iter__(self) -> Iterator[str]:
        data = self._data.tobytes()
        offsets = self._offsets.tolist()
        return (data[a:b].decode() for a, b in zip(offsets, offsets[1:], strict=False))


class Ids(LazyTexts):
    """The ids of all segments, one after the other; decoded as they are asked for."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self._segments = segments

    def __len__(self) -> int:
        return sum(len(segment) for segment in self._segments)

    def _text(self, position: int) -> str:
        for segment in self._segments:
            if position < len(segment):
                return segment.ids[position]
            position -= len(segment)
        raise IndexError(position)

    def __iter__(self) -> Iterator[str]:
        for segment in self._segments:
            yield from segment.ids


def label_text(value: Any) -> str:
    """A label as it is stored: text as it is, other JSON values as their JSON text, None as MISSING."""
    if value is None:
        return MISSING
    return value if isinstance(value, str) else json.dumps(value)


def _audio_of_rows(rows: int, records: Mapping[int, ShardRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are usable, `(rows,)` bool, and the digests of their audio, `(rows, 32)` uint8, else zeros."""
    present = np.zeros(rows, bool)
    digests = np.zeros((rows, 32), np.uint8)
    at = 0
    for shard in sorted(records):
        audio = records[shard].audio
        end = at + len(audio)
        present[at:end] = [bool(digest) for digest in audio]
        found = np.frombuffer(bytes.fromhex("".join(audio)), np.uint8).reshape(-1, 32)
        digests[at:end][present[at:end]] = found
        at = end
    return present, digests


def digest_of_windows(digests: Sequence[bytes]) -> bytes:
    """By what a recording is known: its digest, or where it is cut to windows the digest of their digests."""
    return digests[0] if len(digests) == 1 else hashlib.sha256(b"".join(digests)).digest()


def build_columns(plan: Plan, records: Mapping[int, ShardRecord]) -> dict[str, np.ndarray]:
    """The index of a segment whose shards are all done.

    Columns: `first_row` (utterances + 1), `row_position`, `row_frames` (rows), `frames`, `samples`,
    `state`, `audio_sha256` (utterances, 32), `id_bytes`, `id_offsets`, `hash`, `hash_utterance`,
    `shard_bytes` (shards, planes).
    """
    first_row = plan.first_row
    utterances = len(plan.ids)
    present, of_rows = _audio_of_rows(plan.rows, records)
    left_out = np.add.reduceat(np.append(~present, False), first_row[:-1]) if utterances else np.zeros(0, bool)
    state = np.where(left_out, QUARANTINED, USABLE).astype(np.uint8)
    hashes = of_rows[first_row[:-1]]
    for utterance in np.flatnonzero(np.diff(first_row) > 1):
        windows = of_rows[first_row[utterance] : first_row[utterance + 1]]
        hashes[utterance] = np.frombuffer(digest_of_windows([row.tobytes() for row in windows]), np.uint8)
    hashes[state == QUARANTINED] = 0
    frames = np.add.reduceat(np.append(plan.frames, 0), first_row[:-1]) if utterances else np.zeros(0, np.int64)
    frames = np.where(state == USABLE, frames, 0).astype(np.int64)
    keys = np.fromiter((id_hash(i) for i in plan.ids), np.uint64, utterances)
    order = np.argsort(keys, kind="stable")
    ids = pack_text(plan.ids)
    return {
        "first_row": first_row,
        "row_position": plan.position,
        "row_frames": plan.frames,
        "frames": frames,
        "samples": plan.samples,
        "state": state,
        "audio_sha256": hashes,
        "id_bytes": ids["bytes"],
        "id_offsets": ids["offsets"],
        "hash": keys[order],
        "hash_utterance": order.astype(np.int64),
        "shard_bytes": np.array(
            [[proof.bytes for _, proof in sorted(records[s].files.items())] for s in sorted(records)],
            np.int64,
        ),
    }
