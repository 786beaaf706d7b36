"""Reading one sealed segment: its index, its labels and its shards."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import zarr

from featcache import layout
from featcache.errors import CacheError, CorruptCacheError, FeatcacheError, NotPulledError
from featcache.index import MISSING, USABLE, Texts, id_hash
from featcache.ledger import FileProof, Seal, from_bytes, proof, read_proofs, to_bytes
from featcache.memory import ran_out
from featcache.proven import read_array
from featcache.shardfile import ShardFiles
from featcache.storage import LocalStorage, Storage

if TYPE_CHECKING:
    from featcache.codec import Arrays, Codec, Plane

Result = TypeVar("Result")


class Segment:
    """A sealed segment. Nothing but the seal is read before it is needed; safe to use from threads.

    `codec` gives the cache's codec when it is needed.
    """

    def __init__(
        self, storage: Storage, name: str, codec: Callable[[], Codec], seal: Seal, origin: str | None = None
    ) -> None:
        self.storage = storage
        self.name = name
        self._make_codec = codec
        self.seal = seal
        self.origin = origin
        # Of each shard that was found to be there, what its file was then.
        self._checked: dict[str, tuple[int, ...] | None] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.seal.utterances

    @cached_property
    def codec(self) -> Codec:
        return self._make_codec()

    @cached_property
    def _sealed(self) -> bytes:
        return to_bytes(self.seal)

    @property
    def remedy(self) -> str:
        return f"run `featcache verify {self.storage}`, then `featcache repair MANIFEST {self.storage}`"

    @cached_property
    def _group(self) -> zarr.Group:
        return zarr.open_group(self.storage.zarr(), path=self.name, mode="r")

    @cached_property
    def _planes(self) -> dict[str, Any]:
        planes: dict[str, Any] = {}
        for plane in self.codec.planes:
            self._check_metadata(f"{self.name}/{plane.name}")
            array: Any = self._guard(f"{self.name}/{plane.name}/zarr.json", lambda p=plane: self._group[p.name])  # type: ignore[misc]
            if array.shape[1:] != plane.frame_shape or array.dtype != np.dtype(plane.dtype):
                raise CorruptCacheError(
                    f"{self.storage}/{self.name}/{plane.name} has shape {array.shape} and dtype {array.dtype}, "
                    f"which profile {self.codec.profile} does not write: {self.remedy}"
                )
            planes[plane.name] = array
        return planes

    @cached_property
    def _files(self) -> dict[str, ShardFiles]:
        """Readers of the planes that lie in local files; the others are read by zarr-python."""
        if not isinstance(self.storage, LocalStorage):
            return {}
        found = {
            name: ShardFiles.of(self.storage.read(f"{self.name}/{name}/zarr.json") or b"") for name in self._planes
        }
        return {name: files for name, files in found.items() if files is not None}

    def _fetch(self, plane: Plane, key: str, first: int, end: int) -> np.ndarray:
        """Frames of one shard, `key`, counted from the start of the plane."""
        files = self._files.get(plane.name)
        if files is None or not isinstance(self.storage, LocalStorage):
            return np.asarray(self._planes[plane.name][first:end])
        start = first // files.shard_frames * files.shard_frames
        return files.read(self.storage.path(key), first - start, end - start)

    def column(self, name: str) -> np.ndarray:
        """A whole index column, read once."""
        with self._lock:
            known: dict[str, np.ndarray] = self.__dict__.setdefault("_columns", {})
            if name not in known:
                known[name] = self._read_array(f"{self.name}/index/{name}")
            return known[name]

    @property
    def frames(self) -> np.ndarray:
        """`(utterances,)` int64; 0 where quarantined."""
        return self.column("frames")

    @property
    def usable(self) -> np.ndarray:
        return np.asarray(self.column("state") == USABLE)

    @cached_property
    def ids(self) -> Texts:
        return Texts(self.column("id_bytes"), self.column("id_offsets"))

    def find(self, utterance_id: str) -> int | None:
        """The position of an id, by binary search; None where it is not here."""
        keys = self.column("hash")
        key = np.uint64(id_hash(utterance_id))
        at = int(np.searchsorted(keys, key))
        while at < len(keys) and keys[at] == key:
            utterance = int(self.column("hash_utterance")[at])
            if self.ids[utterance] == utterance_id:
                return utterance
            at += 1
        return None

    def holds(self, ids: Sequence[str]) -> np.ndarray:
        """`(len(ids),)` bool: which of these ids are here.

        Reads nothing but the hashes, unless one is found: adding to a cache of millions costs what they take.
        """
        keys = self.column("hash")
        found = np.zeros(len(ids), bool)
        if not len(keys):
            return found
        wanted = np.fromiter((id_hash(i) for i in ids), np.uint64, len(ids))
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        for i in np.flatnonzero(keys[at] == wanted).tolist():
            found[i] = self.find(ids[i]) is not None
        return found

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        # What the proof names, not what lies there: a column that is gone is missed, not overlooked.
        return tuple(sorted({name.split("/")[1] for name in self._label_files if name.count("/") > 1}))

    def labels(self, name: str) -> list[str | None]:
        """A label column; None where an utterance has no such label."""
        if name not in self.label_names:
            return [None] * len(self)
        folder = f"{self.name}/labels/{name}"
        texts = Texts(self._read_array(f"{folder}/bytes"), self._read_array(f"{folder}/offsets"))
        if len(texts) != len(self):
            self.check_current()
        return [None if text == MISSING else text for text in texts]

    def ranges(self, utterance: int) -> list[tuple[int, int]]:
        """The frame ranges `(first, end)` of an utterance's rows in the planes."""
        first, end = self.column("first_row")[utterance : utterance + 2]
        positions = self.column("row_position")[first:end].tolist()
        sizes = self.column("row_frames")[first:end].tolist()
        return [(position, position + size) for position, size in zip(positions, sizes, strict=True)]

    def shards(self, wanted: np.ndarray) -> list[int]:
        """The shards that hold rows of usable utterances among those wanted, a mask `(utterances,)`."""
        rows = np.repeat(wanted & self.usable, np.diff(self.column("first_row")))
        shard_frames = next(iter(self._planes.values())).shards[0]
        found: list[int] = np.unique(self.column("row_position")[rows] // shard_frames).tolist()
        return found

    def read(self, utterance: int) -> Arrays:
        """The codes of one utterance: `(frames, *frame_shape)` a plane. Checks the shards' presence.

        Raises:
            NotPulledError: the cache is a partial copy without a shard of it.
            CorruptCacheError: a shard is missing, truncated or altered.
            CacheError: something was taken out of the segment since it was opened.
        """
        if not self.usable[utterance]:
            return {p.name: np.zeros((0, *p.frame_shape), p.dtype) for p in self.codec.planes}
        return self._read(utterance, self.ranges(utterance))

    def read_row(self, utterance: int, number: int) -> Arrays:
        """As `read`, the codes of one of an utterance's rows; zeros, where that row is quarantined.

        Of a recording that breaks off the rows before that are there, though nobody reads them as an utterance.
        """
        return self._read(utterance, self.ranges(utterance)[number : number + 1])

    def _read(self, utterance: int, ranges: Sequence[tuple[int, int]]) -> Arrays:
        out: Arrays = {}
        for plane in self.codec.planes:
            needed = self.codec.needed(plane.name, out, sum(end - first for first, end in ranges))
            shard_frames = self._planes[plane.name].shards[0]
            pieces = []
            for first, end in _within(ranges, needed):
                shard = first // shard_frames
                self._check_shard(plane, shard, utterance)
                key = layout.shard_key(self.name, plane, shard)
                pieces.append(self._guard(key, partial(self._fetch, plane, key, first, end)))
                self._check_same(key)
            if not pieces:
                pieces = [np.zeros((0, *plane.frame_shape), plane.dtype)]
            out[plane.name] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return out

    def _check_shard(self, plane: Plane, shard: int, utterance: int) -> None:
        """A shard must be there and have its recorded size: zarr would read a missing one as zeros."""
        key = layout.shard_key(self.name, plane, shard)
        if key in self._checked:
            return
        names = sorted(p.name for p in self.codec.planes)
        expected = int(self.column("shard_bytes")[shard, names.index(plane.name)])
        identity = self.storage.identity(key)
        size = self.storage.size(key)
        if size is None and self.origin is not None:
            raise NotPulledError(
                f"{self.storage} is a partial copy without utterance {self.ids[utterance]!r} (shard {key}): "
                f"`featcache pull {self.origin} {self.storage}` fetches what is missing, with --where a part of it"
            )
        # Also where the size is right: another segment's shard in its place may well be as long.
        self.check_current()
        if size is None:
            raise CorruptCacheError(f"shard {self.storage}/{key} is missing: {self.remedy}")
        if size != expected:
            raise CorruptCacheError(
                f"shard {self.storage}/{key} has {size} bytes where {expected} were written: {self.remedy}"
            )
        self._checked[key] = identity

    def _check_same(self, key: str) -> None:
        """A shard's file must be the one that was checked, or one that a repair has put there since."""
        identity = self.storage.identity(key)
        if identity != self._checked.get(key):
            self._checked.pop(key, None)
            self.check_current()

    def check_current(self) -> None:
        """A removal puts another segment in this one's place, where the same rows are other recordings'.

        Whoever looks at a file before this, and finds the seal as it was, has seen a file of this segment: the new
        files come after the old seal has gone.

        Raises:
            CacheError: it has.
        """
        data = self.storage.read(f"{self.name}/seal.json")
        if data is None and not self.storage.exists(layout.ROOT):
            raise CacheError(f"{self.storage} is no longer there (moved, unmounted, removed): open it where it is now")
        if data != self._sealed:
            raise CacheError(
                f"{self.storage}/{self.name} is not the one that this process has opened, as something was taken out "
                "of the cache since (`featcache forget`): open it again"
            )

    def _read_array(self, path: str) -> np.ndarray:
        """An array of the index or of the labels."""

        def read() -> np.ndarray:
            proofs = self._proofs(path.removeprefix(f"{self.name}/"))
            return read_array(self.storage, path, {f"{self.name}/{key}": proofs[key] for key in proofs}, self.remedy)

        return self._guard(path, read)

    def _check_metadata(self, path: str) -> None:
        """An array's metadata must be as it was sealed: chunks have checksums, their shape and type have not."""
        key = f"{path.removeprefix(f'{self.name}/')}/zarr.json"
        expected = self._proofs(key).get(key)
        if expected is None or proof(self.storage.read(f"{self.name}/{key}") or b"") != expected:
            self.check_current()
            raise CorruptCacheError(f"{self.storage}/{self.name}/{key} is not as it was sealed: {self.remedy}")

    def _proofs(self, key: str) -> dict[str, FileProof]:
        """What proves a file beside the shards, by keys relative to the segment."""
        return self._label_files if key.startswith("labels/") else self.seal.files

    @cached_property
    def _label_files(self) -> dict[str, FileProof]:
        key = f"{self.name}/labels/{layout.LABELS_PROOF}"
        found = read_proofs(self.storage.read(key) or b"", f"{self.storage}/{key}", self.remedy)
        return {f"labels/{name}": expected for name, expected in found.items()}

    def _guard(self, key: str, read: Callable[[], Result]) -> Result:
        """Whatever zarr or a codec says about bytes that are not as written becomes one clear error."""
        try:
            return read()
        except Exception as raised:
            error = _first(raised)
            if ran_out(error):
                raise error from error.__cause__
            self.check_current()
            if isinstance(error, FeatcacheError):
                raise error from error.__cause__
            if isinstance(error, OSError):
                raise CorruptCacheError(f"{self.storage}/{key} cannot be read ({error}): {self.remedy}") from raised
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise CorruptCacheError(f"{self.storage}/{key} is damaged ({cause}): {self.remedy}") from raised


def _first(error: BaseException) -> BaseException:
    """Of errors in a group, as zarr may raise them, the first; or the error itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _within(ranges: Sequence[tuple[int, int]], needed: range) -> Iterator[tuple[int, int]]:
    """The parts of an utterance's frame ranges that hold its frames `needed`."""
    offset = 0
    for first, end in ranges:
        low = first + max(needed.start - offset, 0)
        high = min(end, first + needed.stop - offset)
        if low < high:
            yield low, high
        offset += end - first


def open_segment(
    storage: Storage, name: str, codec: Callable[[], Codec], remedy: str, origin: str | None = None
) -> Segment | None:
    """The segment if it is sealed, else None. `origin` is where the rest of a partial copy lies.

    Raises:
        CorruptCacheError: the seal does not prove itself.
    """
    data = storage.read(f"{name}/seal.json")
    if data is None:
        return None
    return Segment(storage, name, codec, from_bytes(Seal, data, f"{storage}/{name}/seal.json", remedy), origin)


def read_calibration(storage: Storage, names: Sequence[str]) -> Arrays:
    """The calibration arrays of a cache."""
    return {
        name: np.asarray(zarr.open_array(storage.zarr(), path=f"{layout.CALIBRATION}/{name}", mode="r")[...])
        for name in names
    }
