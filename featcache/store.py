"""A cache, open for reading: the one thing that stage two needs of stage one.

Opening imports neither torch nor a codec: they take seconds and hundreds of megabytes, and come with the first
value that is read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np

from featcache import layout
from featcache.description import read_spec
from featcache.digest import sha256
from featcache.errors import CacheError, CorruptCacheError, FeatcacheError, MismatchError, UsageError, UtteranceNotFound
from featcache.forgotten import refuse_half_forgotten
from featcache.geometry import SAMPLE_RATE
from featcache.index import Ids
from featcache.ledger import proof, to_bytes
from featcache.memory import ran_out
from featcache.partial import read_origin
from featcache.segment import Segment, open_segment, read_calibration
from featcache.spec import CacheSpec, encoding_id
from featcache.storage import Address, Storage, open_storage

if TYPE_CHECKING:
    import torch

    from featcache.codec import Arrays, Codec


@dataclass(frozen=True)
class Encoded:
    """The codes of some utterances, laid end to end, as they came from the store.

    Attributes:
        planes: `(sum of lengths, *frame_shape)` a plane, NumPy or (after `pin`) pinned torch.
        lengths: `(batch,)` int64, frames of each utterance.
        taps: positions of the wanted taps, as the codec's `decode` takes them.
    """

    planes: dict[str, Any]
    lengths: np.ndarray
    taps: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return sum(int(plane.nbytes) for plane in self.planes.values())

    def pin(self) -> Encoded:
        """In page-locked memory, from where copies to a GPU overlap with its work."""
        from torch import from_numpy

        return replace(self, planes={name: from_numpy(p).pin_memory() for name, p in self.planes.items()})


class Cache:
    """One upstream's activations for a set of utterances. Open with `Cache.open`.

    Safe to use from several threads. Not to be used in a forked child of the process that opened it;
    pickling (as `spawn` and `forkserver` workers do) opens it again by its path.
    """

    def __init__(
        self,
        storage: Storage,
        spec: CacheSpec,
        calibration: Arrays,
        origin: str | None = None,
    ) -> None:
        self.storage = storage
        self.origin = origin
        self.spec = spec
        self.segments: list[Segment] = []
        self.unsealed: list[str] = []
        self.calibration = calibration
        self._pid = os.getpid()

    def __repr__(self) -> str:
        size = f"{len(self):,} utterances, {len(self.taps)} taps x {self.channels} channels"
        return f"<Cache {self.path}: {size} of {self.upstream}>"

    @classmethod
    def open(cls, path: str | Path | Address) -> Cache:
        """Open a cache. Takes constant time, whatever the number of utterances.

        Raises:
            CacheError: there is no cache, or one of another format.
            CorruptCacheError: its metadata is not as it was sealed.
        """
        storage = open_storage(path)
        spec, files = read_spec(storage)
        refuse_half_forgotten(path, storage.exists(layout.PENDING))
        remedy = f"run `featcache verify {path}`"
        try:
            calibration = read_calibration(storage, layout.calibration_names(storage))
        except FeatcacheError:
            raise
        except Exception as error:
            if ran_out(error):
                raise
            raise CorruptCacheError(f"{storage}/{layout.CALIBRATION} is damaged ({error}): {remedy}") from error
        if encoding_id(spec.profile, spec.profile_version, spec.parameters, calibration) != spec.encoding_id:
            raise CorruptCacheError(f"the calibration of {storage} does not match its encoding id: {remedy}")
        cache = cls(storage, spec, calibration, read_origin(storage))
        for name in layout.segments(storage):
            segment = open_segment(storage, name, lambda: cache.codec, remedy, cache.origin)
            if segment is None:
                cache.unsealed.append(name)
                continue
            _check_seal(storage, segment, spec, files, remedy)
            cache.segments.append(segment)
        return cache

    def __reduce__(self) -> tuple[Any, ...]:
        return (_open_same, (self.storage.address, self._seals))

    @property
    def _seals(self) -> list[tuple[str, str]]:
        """What the rows' positions hang on."""
        return [(segment.name, sha256(to_bytes(segment.seal))) for segment in self.segments]

    # What it is

    @cached_property
    def codec(self) -> Codec:
        """What makes values of the codes.

        Raises:
            CacheError: this installation does not know the profile, or its version.
        """
        from featcache.codec import build

        spec = self.spec
        taps = len(spec.taps)
        return build(spec.profile, spec.profile_version, taps, spec.channels, spec.parameters, self.calibration)

    @property
    def path(self) -> str:
        return str(self.storage)

    @property
    def upstream(self) -> str:
        return self.spec.upstream_id

    @property
    def values_id(self) -> str:
        return self.spec.values_id

    @property
    def encoding_id(self) -> str:
        return self.spec.encoding_id

    @property
    def profile(self) -> str:
        return self.spec.profile

    @property
    def taps(self) -> tuple[str, ...]:
        return self.spec.taps

    @property
    def channels(self) -> int:
        return self.spec.channels

    @property
    def frame_rate(self) -> float:
        return self.spec.geometry.frame_rate

    @property
    def complete(self) -> bool:
        """Whether every segment that was begun is sealed, there is one, and none is a partial copy."""
        return bool(self.segments) and not self.unsealed and self.origin is None

    # What is in it

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)

    @cached_property
    def ids(self) -> Ids:
        return Ids(self.segments)

    @cached_property
    def lengths(self) -> np.ndarray:
        """`(utterances,)` int64: frames of each utterance; 0 where it is quarantined."""
        return self._join("frames", np.int64)

    @cached_property
    def seconds(self) -> np.ndarray:
        """`(utterances,)` float64: seconds of audio of each utterance."""
        return self._join("samples", np.int64) / SAMPLE_RATE

    def _join(self, column: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(segment.column(column) for segment in self.segments)]).astype(
            dtype
        )

    def row(self, utterance_id: str) -> int:
        """The position of an id.

        Raises:
            UtteranceNotFound: no segment holds it.
        """
        self._check_process()
        offset = 0
        for segment in self.segments:
            position = segment.find(utterance_id)
            if position is not None:
                return offset + position
            offset += len(segment)
        raise UtteranceNotFound(
            f"{self.path} holds no utterance {utterance_id!r}: `featcache ls {self.path}` lists them"
        )

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(sorted({name for segment in self.segments for name in segment.label_names}))

    def labels(self, name: str) -> list[str | None]:
        """A label column over all utterances; None where one has no such label.

        Raises:
            UsageError: no utterance has it.
        """
        if name not in self.label_names:
            known = ", ".join(self.label_names) or "none"
            raise UsageError(f"{self.path} has no label {name!r}; it has: {known}")
        return [label for segment in self.segments for label in segment.labels(name)]

    # Its values

    def read(self, utterance: SupportsIndex | str, taps: Sequence[str] | None = None) -> np.ndarray:
        """The activations of one utterance, float32 `(frames, taps, channels)`.

        Args:
            utterance: its id or its position.
            taps: names of the taps wanted, in the order wanted; all by default.

        Raises:
            UtteranceNotFound, CorruptCacheError, NotPulledError: a partial copy does not hold it.
            UsageError: no such tap.
        """
        row = self.row(utterance) if isinstance(utterance, str) else index(utterance)
        features, _ = self.decode(self.read_encoded([row], taps))
        return features[0].numpy()

    def read_encoded(self, rows: Sequence[int], taps: Sequence[str] | None = None) -> Encoded:
        """The codes of some utterances, without decoding: what should cross to a GPU.

        Raises:
            CorruptCacheError: a shard is missing, truncated or altered; names it.
        """
        self._check_process()
        positions = self.tap_positions(taps)
        pieces: list[Arrays] = []
        lengths = np.zeros(len(rows), np.int64)
        selected: Sequence[int] = positions
        for i, row in enumerate(rows):
            segment, utterance = self._locate(row)
            planes, selected = self.codec.select(segment.read(utterance), positions)
            lengths[i] = segment.frames[utterance]
            pieces.append(planes)
        if not pieces:
            nothing = {p.name: np.zeros((0, *p.frame_shape), p.dtype) for p in self.codec.planes}
            planes, selected = self.codec.select(nothing, positions)
            pieces.append(planes)
        joined = (
            pieces[0]
            if len(pieces) == 1
            else {p.name: np.concatenate([piece[p.name] for piece in pieces]) for p in self.codec.planes}
        )
        return Encoded(joined, lengths, tuple(selected))

    def decode(
        self, encoded: Encoded, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode on a device, to float32 unless another `dtype` is given.

        Returns:
            Features `(batch, frames, taps, channels)`, zero beyond each utterance's end, and the lengths
            `(batch,)` int64, both on the device.
        """
        import torch

        from featcache.codec.host import to_device

        planes = {
            name: (plane if isinstance(plane, torch.Tensor) else torch.from_numpy(plane)).to(device, non_blocking=True)
            for name, plane in encoded.planes.items()
        }
        lengths = encoded.lengths.tolist()
        features = self.codec.decode_batch(planes, lengths, encoded.taps)
        return features.to(dtype or torch.float32), to_device(lengths, torch.device(device))

    def tap_positions(self, taps: Sequence[str] | None) -> list[int]:
        """Positions of taps among those stored; all of them for None."""
        if taps is None:
            return list(range(len(self.taps)))
        missing = [tap for tap in taps if tap not in self.taps]
        if missing:
            raise UsageError(f"{self.path} holds no tap {missing[0]!r}; it holds: {', '.join(self.taps)}")
        return [self.taps.index(tap) for tap in taps]

    def _locate(self, row: int) -> tuple[Segment, int]:
        # NumPy's small integers do not hold every position.
        position = index(row)
        position += len(self) if position < 0 else 0
        for segment in self.segments:
            if 0 <= position < len(segment):
                return segment, position
            position -= len(segment)
        raise UtteranceNotFound(f"{self.path} holds {len(self)} utterances, so there is no number {row}")

    def _check_process(self) -> None:
        # zarr's threads, and those of faster readers, do not survive a fork; some hang, some abort.
        if os.getpid() != self._pid:
            raise CacheError(
                f"{self.path} was opened before this process was forked: use threads, or workers started by "
                "spawn or forkserver, or open the cache inside the worker"
            )


def _open_same(address: Address, seals: list[tuple[str, str]]) -> Cache:
    """A cache as another process has opened it, so that each row is the same recording; it may have grown."""
    cache = Cache.open(address)
    if cache._seals[: len(seals)] != seals:
        raise CacheError(
            f"{cache.path} is not what was opened, as something was taken out of it since (`featcache forget`): "
            "open it again"
        )
    return cache


def _check_seal(storage: Storage, segment: Segment, spec: CacheSpec, root: bytes, remedy: str) -> None:
    if segment.seal.values_id != spec.values_id or segment.seal.encoding_id != spec.encoding_id:
        raise MismatchError(f"{storage}/{segment.name} was made by another model or codec than {storage}: {remedy}")
    if segment.seal.root.get(layout.ROOT) != proof(root):
        raise CorruptCacheError(f"{storage}/{layout.ROOT} is not as it was sealed: restore it from a copy of the cache")
