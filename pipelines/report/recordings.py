"""Recordings for a page: found through the manifest, compressed, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from featcache import audio, manifest
from featcache.errors import FeatcacheError
from featcache.geometry import SAMPLE_RATE

BITS_PER_SECOND = 32_000
"""MP3, which every browser plays; at 16 kHz in one channel this keeps speech as it was to the ear."""


@dataclass(frozen=True)
class Recording:
    """`uri` is empty where the recording cannot be read, and `missing` then says why."""

    uri: str
    seconds: float
    missing: str = ""


class Recordings:
    """The recordings of a manifest's utterances.

    Raises:
        ManifestError: the manifest cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = {row.id: row for row in manifest.read(path)}

    def labels(self, id_: str) -> dict[str, str]:
        """The text labels of an utterance."""
        row = self.rows.get(id_)
        return {} if row is None else {key: value for key, value in row.labels.items() if isinstance(value, str)}

    def get(self, id_: str) -> Recording:
        row = self.rows.get(id_)
        if row is None:
            return Recording("", 0.0, f"{self.path} has no utterance of this id")
        part = {"offset": row.offset, "duration": row.duration} if row.is_part else {}
        try:
            pcm = audio.load(manifest.resolve(row, self.path), **part)
        except FeatcacheError as error:
            return Recording("", row.duration, str(error))
        uri = f"data:audio/mpeg;base64,{base64.b64encode(to_mp3(pcm)).decode()}"
        return Recording(uri, len(pcm) / SAMPLE_RATE)


def to_mp3(pcm: np.ndarray) -> bytes:
    """An MP3 file of float32 (samples,) at 16 kHz."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3") as container:
        stream = container.add_stream("libmp3lame", rate=SAMPLE_RATE, layout="mono", bit_rate=BITS_PER_SECOND)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(pcm, np.float32).reshape(1, -1), "fltp", "mono")
        frame.sample_rate = SAMPLE_RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return file.getvalue()
