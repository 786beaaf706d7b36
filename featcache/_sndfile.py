"""The recordings that libsndfile decodes, as a reader for `featcache.audio`."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soundfile

# A frame of these depends on those before it (MP3's bit reservoir: half a second at the
# lowest bit rate), which libsndfile does not decode again after a seek: it gives silence or noise at first.
LOSSY = ("MP3", "OGG")
PREROLL = 2.0  # seconds decoded and dropped after a seek in them; measured: MP3 settles in 0.5 s, Opus in 2

BLOCK = 1 << 22  # samples a block: 16 MB a channel
UNKNOWN = (1 << 63) - 1  # libsndfile's SF_COUNT_MAX: the header does not say how long
MALFORMED = 3  # libsndfile's SF_ERR_MALFORMED_FILE

# libsndfile silently shortens a truncated file to what is there and notes it in its log only:
# "data : 352800 (should be 176378)", for AIFF "SSND", for AU "Data Size", for W64 and RF64 the outer size.
SHORTENED = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
STREAMED = 0x7FFF0000  # from here on: what sox and ffmpeg write into a pipe, where they cannot go back


class SoundFileReader:
    """One open recording whose header tells its length; `promised` is exact."""

    MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b"caff", b".snd", b"riff")

    def __init__(self, sound: soundfile.SoundFile) -> None:
        self._sound = sound
        self.rate: int = sound.samplerate
        self.channels: int = sound.channels
        self.slack = 0
        self._there: int = sound.frames
        self.promised: int | None = self._promise()

    def _promise(self) -> int:
        for said, actual in SHORTENED.findall(self._sound.extra_info):
            if int(actual) < int(said) < STREAMED and int(actual) > 0:
                return max(self._there, self._there * int(said) // int(actual))
        return self._there

    def blocks(self, start: int, count: int | None) -> Iterator[npt.NDArray[np.float32]]:
        """Blocks `(samples, channels)` from sample `start`, at most `count` samples in all."""
        if start >= self._there:
            return
        stop = self._there if count is None else min(start + count, self._there)
        for position in range(start, stop, BLOCK):
            block = self._read(position, min(stop - position, BLOCK))
            if len(block):
                yield block
            if len(block) < min(stop - position, BLOCK):
                return

    def _read(self, start: int, samples: int) -> npt.NDArray[np.float32]:
        # One call of `read` a block: soundfile seeks after each, so that no block continues the one before.
        preroll = min(start, round(PREROLL * self.rate)) if self._sound.format in LOSSY else 0
        self._sound.seek(start - preroll)
        block: npt.NDArray[np.float32]
        block = self._sound.read(preroll + samples, dtype="float32", always_2d=True)
        return block[preroll:]
