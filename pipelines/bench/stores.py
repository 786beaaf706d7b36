"""Ways to keep features on disk and to read an utterance of them: ours, and those that people use."""

from __future__ import annotations

import io
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from featcache.store import Cache

Rows = Sequence[np.ndarray]
ZARRS = {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1}


class Reader(ABC):
    """`read(i)` gives utterance i as float32 `(frames, taps, channels)`. `files` are what it reads from."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def read(self, number: int) -> np.ndarray: ...

    @property
    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


class Featcache(Reader):
    """The cache as users read it; with a `pipeline`, through zarr-python and that pipeline of its codecs."""

    def __init__(self, name: str, folder: Path, pipeline: dict[str, Any] | None = None, url: str = "") -> None:
        super().__init__(folder)
        self.name = name
        self.cache = Cache.open(url or folder)
        if pipeline is not None:
            for segment in self.cache.segments:
                segment.__dict__["_files"] = {}  # as if none of its files could be read directly
        # The pipeline is chosen when an array is opened.
        with zarr.config.set(pipeline or {}):
            self.cache.read_encoded([0])

    def read(self, number: int) -> np.ndarray:
        return self.cache.read(number)


class _Codes(Reader):
    """Codes from elsewhere, decoded by the cache's codec."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.cache = Cache.open(folder)
        self.codec = self.cache.codec
        [segment] = self.cache.segments
        self.ranges = [segment.ranges(i)[0] for i in range(len(segment))]
        self.segment = segment

    def read(self, number: int) -> np.ndarray:
        first, end = self.ranges[number]
        found: dict[str, np.ndarray] = {}
        for plane in self.codec.planes:
            needed = self.codec.needed(plane.name, found, end - first)
            if needed:
                found[plane.name] = self.fetch(plane.name, first + needed.start, first + needed.stop)
        return self.codec.decode_row(found, end - first)

    @abstractmethod
    def fetch(self, plane: str, first: int, end: int) -> np.ndarray:
        """Frames of a plane of the segment."""


class TensorStore(_Codes):
    name = "featcache's store, TensorStore"

    def __init__(self, folder: Path) -> None:
        import tensorstore

        super().__init__(folder)
        self._arrays = {}
        for plane in self.codec.planes:
            path = str(folder / self.segment.name / plane.name)
            spec = {
                "driver": "zarr3",
                "kvstore": {"driver": "file", "path": path},
                "context": {"data_copy_concurrency": {"limit": 1}},
            }
            self._arrays[plane.name] = tensorstore.open(spec, open=True, read=True).result()

    def fetch(self, plane: str, first: int, end: int) -> np.ndarray:
        return np.asarray(self._arrays[plane][first:end].read().result())


class MemoryMap(_Codes):
    """The codes as they are, uncompressed and without checksums: what a store can hope for."""

    name = "raw memory map of the codes"

    def __init__(self, folder: Path, source: Path) -> None:
        super().__init__(source)
        self.folder = folder
        dense, *sparse = self.codec.planes
        shape = (self.ranges[-1][1], *dense.frame_shape)
        codes = np.memmap(folder / "codes", dense.dtype, "w+", shape=shape)
        for number, (first, end) in enumerate(self.ranges):
            row = self.segment.read(number)
            codes[first:end] = row[dense.name]
            # Planes that are almost empty would be mostly holes: what there is of them is kept by itself.
            for plane in sparse:
                needed = self.codec.needed(plane.name, row, end - first)
                if needed:
                    np.save(self._sparse(plane.name, first + needed.start), row[plane.name])
        codes.flush()
        self._dense = dense.name
        self._codes = np.memmap(folder / "codes", dense.dtype, "r", shape=shape)

    def _sparse(self, plane: str, first: int) -> Path:
        return self.folder / f"{plane}-{first}.npy"

    def fetch(self, plane: str, first: int, end: int) -> np.ndarray:
        return np.array(self._codes[first:end]) if plane == self._dense else np.load(self._sparse(plane, first))


class Lhotse(Reader):
    """lhotse's storage by its own writer and reader; features as `(frames, taps * channels)`."""

    def __init__(self, name: str, folder: Path, rows: Rows, writer: Any, reader: Any) -> None:
        super().__init__(folder)
        self.name = name
        self.shapes = [row.shape for row in rows]
        with writer(folder / "features") as storage:
            self.keys = [storage.write(str(i), row.reshape(len(row), -1)) for i, row in enumerate(rows)]
            place = storage.storage_path
        self._reader = reader(place)

    def read(self, number: int) -> np.ndarray:
        return np.asarray(self._reader.read(self.keys[number]), np.float32).reshape(self.shapes[number])


class Hdf5(Reader):
    name = "HDF5 gzip"

    def __init__(self, folder: Path, rows: Rows) -> None:
        import h5py

        super().__init__(folder)
        with h5py.File(folder / "features.h5", "w") as file:
            for i, row in enumerate(rows):
                file.create_dataset(str(i), data=row, compression="gzip", compression_opts=1)
        self._file = h5py.File(folder / "features.h5", "r")

    def read(self, number: int) -> np.ndarray:
        return np.asarray(self._file[str(number)][...])


class Npy(Reader):
    name = ".npy per utterance"

    def __init__(self, folder: Path, rows: Rows) -> None:
        super().__init__(folder)
        for i, row in enumerate(rows):
            np.save(folder / f"{i}.npy", row)

    def read(self, number: int) -> np.ndarray:
        return np.asarray(np.load(self.folder / f"{number}.npy"))


class WebDataset(Reader):
    """A tar of `.npy`. It has no random access: whatever is asked for, the next one in the file comes."""

    name = "WebDataset, in its own order"

    def __init__(self, folder: Path, rows: Rows) -> None:
        super().__init__(folder)
        with tarfile.open(folder / "features.tar", "w") as tar:
            for i, row in enumerate(rows):
                buffer = io.BytesIO()
                np.save(buffer, row)
                entry = tarfile.TarInfo(f"{i:06d}.npy")
                entry.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(entry, buffer)
        self._stream: Any = iter(())

    def read(self, number: int) -> np.ndarray:
        import webdataset

        sample = next(self._stream, None)
        if sample is None:
            files = webdataset.WebDataset(str(self.folder / "features.tar"), shardshuffle=False, empty_check=False)
            self._stream = iter(files.decode())
            sample = next(self._stream)
        return np.asarray(sample["npy"])


def open_all(cache: Path, rows: Rows, folder: Path, url: str = "") -> list[Reader]:
    """Every store, filled with the same features; those whose package is not installed are left out."""
    from importlib.util import find_spec

    def place(name: str) -> Path:
        made = folder / name
        made.mkdir()
        return made

    readers: list[Reader] = [Featcache("featcache", cache), MemoryMap(place("map"), cache)]
    readers.append(Featcache("featcache's store, zarr-python", cache, {}))
    if find_spec("zarrs"):
        import zarrs  # noqa: F401

        readers.append(Featcache("featcache's store, zarrs", cache, ZARRS))
    if find_spec("tensorstore"):
        readers.append(TensorStore(cache))
    if url:
        readers.append(Featcache("featcache, s3:// on loopback", cache, url=url))
    if find_spec("lhotse"):
        from lhotse.features import io as lhotse_io

        if find_spec("lilcom"):
            kinds = (lhotse_io.LilcomChunkyWriter, lhotse_io.LilcomChunkyReader)
            readers.append(Lhotse("lhotse LilcomChunky", place("lilcom"), rows, *kinds))
        if find_spec("h5py"):
            kinds = (lhotse_io.NumpyHdf5Writer, lhotse_io.NumpyHdf5Reader)
            readers.append(Lhotse("lhotse HDF5", place("lhotse-hdf5"), rows, *kinds))
    if find_spec("h5py"):
        readers.append(Hdf5(place("hdf5"), rows))
    readers.append(Npy(place("npy"), rows))
    if find_spec("webdataset"):
        readers.append(WebDataset(place("webdataset"), rows))
    return readers
