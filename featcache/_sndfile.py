"""The recordings that libsndfile decodes, as a reader for `featcache.audio`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO, FileIO

import numpy as np
import numpy.typing as npt
import soundfile

from featcache.errors import AudioError
from featcache.memory import ran_out

# A frame of these depends on those before it (MP3's bit reservoir: half a second at the
# lowest bit rate), which libsndfile does not decode again after a seek: it gives silence or noise at first.
LOSSY = ("MP3", "OGG")
PREROLL = 2.0  # seconds decoded and dropped after a seek in them; measured: MP3 settles in 0.5 s, Opus in 2

BLOCK = 1 << 22  # samples a block: 16 MB a channel
UNKNOWN = (1 << 63) - 1  # libsndfile's SF_COUNT_MAX: the header does not say how long
MALFORMED = 3  # libsndfile's SF_ERR_MALFORMED_FILE

# The first frame of an MP3 may say how many there are: at a fixed place after the frame's header, and its checksum.
ANNOUNCED = re.compile(rb"\xff[\xe0-\xff]..(?:.{9}|.{11}|.{17}|.{19}|.{32}|.{34})(?:Xing|Info|VBRI)", re.DOTALL)
FIRST_FRAME = 1 << 17  # bytes after the ID3 tags within which that frame begins, whatever junk is before it

# libsndfile silently shortens a truncated file to what is there and notes it in its log only:
# "data : 352800 (should be 176378)", for AIFF "SSND", for AU "Data Size", for W64 and RF64 the outer size.
SHORTENED = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
# The header of an Ogg page: flags (is it the first of its stream?), the number of segments, the size of each.
OGG_HEADER, OGG_FLAGS, OGG_FIRST, OGG_SEGMENTS = 282, 5, 2, 26

SPHERE_SAMPLES = re.compile(rb"NIST_1A\n.*?\nsample_count\s+-i\s+(\d{1,18})\b.*?\nend_head", re.DOTALL)
SPHERE_HEADER = 1 << 14  # bytes within which a header of NIST SPHERE ends; most have 1024
STREAMED = 0x7FFF0000  # from here on: what sox and ffmpeg write into a pipe, where they cannot go back


Blocks = Callable[[int, int | None], Iterator[npt.NDArray[np.float32]]]


class SoundFileReader:
    """One open recording whose header tells its length; `promised` is exact."""

    MAGIC = (b"RIFF", b"RIFX", b"RF64", b"fLaC", b"OggS", b"FORM", b"caff", b".snd", b"riff")

    def __init__(self, sound: soundfile.SoundFile, said: int = 0) -> None:
        """`said`: samples of one channel that the header promises, where libsndfile does not pass it on."""
        self._sound = sound
        self.rate: int = sound.samplerate
        self.channels: int = sound.channels
        self.slack = 0
        self._there: int = sound.frames
        self.promised: int | None = max(self._promise(), said)

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
        if not self._sound.seekable():
            yield from self._unseekable(start, stop)
            return
        for position in range(start, stop, BLOCK):
            block = self._read(position, min(stop - position, BLOCK))
            if len(block):
                yield block
            if len(block) < min(stop - position, BLOCK):
                return

    def _unseekable(self, start: int, stop: int) -> Iterator[npt.NDArray[np.float32]]:
        """Blocks of a codec that libsndfile decodes in order only, from the first sample on."""
        for position in range(0, stop, BLOCK):
            wanted = min(stop - position, BLOCK)
            block: npt.NDArray[np.float32] = self._sound.read(wanted, dtype="float32", always_2d=True)
            if len(part := block[max(start - position, 0) :]):
                yield part
            if len(block) < wanted:
                return

    def _read(self, start: int, samples: int) -> npt.NDArray[np.float32]:
        # One call of `read` a block: soundfile seeks after each, so that no block continues the one before.
        preroll = min(start, round(PREROLL * self.rate)) if self._sound.format in LOSSY else 0
        self._sound.seek(start - preroll)
        block: npt.NDArray[np.float32]
        block = self._sound.read(preroll + samples, dtype="float32", always_2d=True)
        return block[preroll:]


class LinkedReader:
    """An Ogg file of several recordings one behind the other, its links: libsndfile reads the first alone.

    Each is decoded by itself, from memory, as if it were the file.
    """

    def __init__(self, file: FileIO, begins: Sequence[int]) -> None:
        """Of `file`, whose links begin at these bytes. Moves the file's position.

        Raises:
            AudioError: libsndfile cannot read one of them, or they differ in form.
        """
        self._file = file
        self._spans = list(zip(begins, [*begins[1:], os.fstat(file.fileno()).st_size], strict=True))
        self._lengths: list[int] = []
        forms = set()
        for span in self._spans:
            with self._link(span) as sound:
                self._lengths.append(sound.frames)
                forms.add((sound.samplerate, sound.channels))
        if len(forms) > 1:
            raise AudioError("the sample rate or the number of channels changes within the recording")
        self.rate, self.channels = forms.pop()
        self.promised: int | None = sum(self._lengths)
        self.slack = 0

    def blocks(self, start: int, count: int | None) -> Iterator[npt.NDArray[np.float32]]:
        """Blocks `(samples, channels)` from sample `start`, at most `count` samples in all."""
        stop = sum(self._lengths) if count is None else start + count
        begin = 0
        for span, length in zip(self._spans, self._lengths, strict=True):
            first, end = max(start - begin, 0), min(stop - begin, length)
            if first < end:
                with self._link(span) as sound:
                    yield from SoundFileReader(sound).blocks(first, end - first)
            begin += length

    @contextmanager
    def _link(self, span: tuple[int, int]) -> Iterator[soundfile.SoundFile]:
        self._file.seek(span[0])
        content = BytesIO(self._file.read(span[1] - span[0]))
        try:
            sound = soundfile.SoundFile(content)
        except soundfile.LibsndfileError as error:
            if ran_out(error):
                raise
            raise AudioError("several recordings in one Ogg file, of which one cannot be decoded") from None
        with sound:
            yield sound


class UncountedReader(SoundFileReader):
    """An MP3 that does not say how long it is: libsndfile guesses, from the file's size and the first frame.

    Where the guess is too long, what is decoded ends where the frames do. Where it is too short (a variable
    bit rate), libsndfile stops there, and what reaches beyond is for FFmpeg. Both give the same samples, to rounding.
    """

    def __init__(self, sound: soundfile.SoundFile, whole: int, begun: int, beyond: Blocks) -> None:
        """The file has `whole` samples in whole frames, `begun` with one that is cut off; `beyond`: FFmpeg's blocks."""
        super().__init__(sound)
        self._known, self._beyond = self._there, beyond
        self._there, self.promised = whole, begun

    def blocks(self, start: int, count: int | None) -> Iterator[npt.NDArray[np.float32]]:
        """Blocks `(samples, channels)` from sample `start`, at most `count` samples in all."""
        stop = self._there if count is None else min(start + count, self._there)
        if stop <= self._known:
            yield from super().blocks(start, count)
            return
        for block in self._beyond(start, stop - start):
            yield block
            start += len(block)
            if start >= stop:  # behind the last frame may be tags, which cannot be decoded
                return


def sphere_samples(file: FileIO, sound: soundfile.SoundFile) -> int:
    """Samples of one channel that the header of NIST SPHERE promises; 0 where it does not. Moves the position."""
    file.seek(0)
    found = SPHERE_SAMPLES.match(file.read(SPHERE_HEADER))
    said = int(found[1]) if found else 0
    # Some programs count the samples of all channels together.
    return 0 if said >= STREAMED or said == sound.frames * sound.channels else said


def reaches(file: FileIO, sample: int) -> bool:
    """Whether libsndfile decodes up to this sample. What an open reader gives would depend on its having been there."""
    try:
        with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            sound.seek(sample)
            return len(sound.read(1)) == 1
    except soundfile.LibsndfileError as error:
        if ran_out(error):
            raise
        return False


def ogg_links(file: FileIO) -> list[int]:
    """The bytes at which the links of an Ogg file begin: the first pages of streams, behind pages of others."""
    begins: list[int] = []
    position, first = 0, False
    while (head := os.pread(file.fileno(), OGG_HEADER, position))[:4] == b"OggS" and len(head) > OGG_SEGMENTS:
        before, first = first, bool(head[OGG_FLAGS] & OGG_FIRST)
        if first and not before:
            begins.append(position)
        sizes = head[OGG_SEGMENTS + 1 :][: head[OGG_SEGMENTS]]
        position += OGG_SEGMENTS + 1 + len(sizes) + sum(sizes)
    return begins


def announced(file: FileIO) -> bool:
    """Whether the first frame of an MP3 says how many there are. Moves the file's position."""
    start = 0
    while True:
        file.seek(start)
        head = file.read(10)
        if head[:3] != b"ID3" or len(head) < 10:
            break
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start += 10 + size + (10 if head[5] & 16 else 0)
    file.seek(start)
    return ANNOUNCED.search(file.read(FIRST_FRAME)) is not None
