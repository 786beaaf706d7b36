"""The recordings that FFmpeg decodes, through PyAV, as a reader for `featcache.audio`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from itertools import chain
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.container import InputContainer

from featcache.errors import AudioError
from featcache.memory import ran_out

# Playlists (hls, concat, dash) are left out: they would open other files, or the network.
DEMUXERS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,flac,flv,gsm,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,"
    "mp3,mpeg,mpegts,nistsphere,ogg,tta,w64,wav,wv"
)
PREROLL = 1.0  # seconds decoded and dropped after a seek, far more than a decoder needs to settle
PROMISE_SLACK = 0.1  # seconds: the duration in an MP4 or WebM header counts encoder padding or rounds to 1 ms


class ContainerReader:
    """One open recording. `promised` is what MP4 or Matroska declares, good to `slack` samples, or None."""

    def __init__(self, container: InputContainer) -> None:
        if not container.streams.audio:
            raise AudioError("no audio stream")
        self._container = container
        self._stream = container.streams.audio[0]
        if self._stream.codec_context is None:  # PyAV's types do not say so
            raise AudioError("FFmpeg has no decoder for this audio")
        self.rate: int = self._stream.codec_context.sample_rate
        self.channels: int = self._stream.codec_context.channels
        self.slack = round(PROMISE_SLACK * self.rate)
        self.promised = self._promise()

    @classmethod
    @contextmanager
    def open(cls, file: FileIO, demuxer: str | None) -> Iterator[ContainerReader]:
        """Open a file object; `demuxer` names the format of a stream without a header."""
        options = {} if demuxer else {"format_whitelist": DEMUXERS}
        try:
            container = av.open(file, mode="r", format=demuxer, options=options)
        except (av.FFmpegError, ValueError) as error:
            if ran_out(error):
                raise
            raise AudioError("not audio that libsndfile or FFmpeg can read") from None
        with container:
            yield cls(container)

    @classmethod
    def mp3_blocks(cls, file: FileIO, start: int, count: int | None) -> Iterator[npt.NDArray[np.float32]]:
        """As `blocks`, of a file object that holds MP3."""
        with kept_position(file), cls.open(file, "mp3") as reader:
            yield from reader.blocks(start, count)

    def _promise(self) -> int | None:
        name = self._container.format.name
        if "mp4" in name and self._stream.duration and self._stream.time_base:
            return round(self._stream.duration * self._stream.time_base * self.rate)
        if "matroska" in name and self._container.duration:
            seconds = self._ends(self._container.duration / av.time_base)
            return None if seconds is None else round(seconds * self.rate)
        return None

    def _ends(self, longest: float) -> float | None:
        """Seconds that Matroska declares for the audio; its header says only how long the `longest` stream is.

        The time at which a stream ends is in its tags, where the program that wrote it put it. One that begins
        late is shorter by that.
        """
        base, late = self._stream.time_base, max(self._stream.start_time or 0, 0)
        ends = [seconds for name, text in self._stream.metadata.items() if (seconds := _seconds(name, text))]
        others = [other for other in self._container.streams if other.type in ("audio", "video", "subtitle")]
        if not ends and len(others) > 1:
            return None
        return min([longest, *ends]) - (float(late * base) if base else 0.0)

    def blocks(self, start: int, count: int | None) -> Iterator[npt.NDArray[np.float32]]:
        """Blocks `(samples, channels)` from sample `start`, at most `count` samples in all."""
        position, frames = self._frames_from(start)
        stop = None if count is None else start + count
        for frame in frames:
            if stop is not None and position >= stop:
                return
            block = _to_float(frame, self.rate, self.channels)
            part = block[max(start - position, 0) : None if stop is None else stop - position]
            position += len(block)
            if len(part):
                yield part

    def _frames_from(self, start: int) -> tuple[int, Iterator[av.AudioFrame]]:
        """Frames from some way before `start`, and the sample at which the first of them begins."""
        base, first = self._stream.time_base, self._stream.start_time or 0
        target = start - round(PREROLL * self.rate)
        # Seeking needs a clock that tells samples apart, and an index: of the kinds here, MP4 has both.
        if base is None or target <= 0 or base * self.rate > 1 or "mp4" not in self._container.format.name:
            return 0, self._container.decode(self._stream)
        self._container.seek(first + int(target / self.rate / base), stream=self._stream)
        frames = self._container.decode(self._stream)
        frame = next(frames, None)
        if frame is not None and frame.pts is not None and frame.time_base is not None:
            position = round((frame.pts - first * base / frame.time_base) * frame.time_base * self.rate)
            if position <= start:
                return position, chain([frame], frames)
        self._container.seek(first, stream=self._stream)  # no usable index: count from the start
        return 0, self._container.decode(self._stream)


def _seconds(name: str, text: str) -> float | None:
    """What a tag `DURATION`, or `DURATION-eng`, of Matroska says (00:01:02.345000000); None of any other."""
    found = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d*)?)\0*", text)
    if found is None or name.partition("-")[0] != "DURATION":
        return None
    return int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])


def count_mp3(file: FileIO) -> tuple[int, int] | None:
    """Samples of one channel in the frames of a file object that holds MP3, without decoding them.

    The first number is without the last frame where that is cut off, the second with it. None where it is unclear.
    """
    sizes: dict[bytes, int] = {}
    whole = begun = 0
    try:
        with kept_position(file), av.open(file, mode="r", format="mp3") as container:
            stream = container.streams.audio[0]
            base, rate = stream.time_base, stream.codec_context.sample_rate
            for packet in container.demux(stream):
                data = bytes(packet)
                if data[:1] != b"\xff":  # tags and padding at the end come as packets too
                    continue
                # Frames whose headers agree in their first bytes, bit rate and padding included, are of one size.
                size = sizes.setdefault(data[:3], len(data))
                whole, begun = (
                    begun + (packet.duration or 0 if len(data) >= size else 0),
                    begun + (packet.duration or 0),
                )
    except (av.FFmpegError, ValueError, IndexError) as error:
        if ran_out(error):
            raise
        return None
    return None if base is None else (round(whole * base * rate), round(begun * base * rate))


@contextmanager
def kept_position(file: FileIO) -> Iterator[None]:
    """Read a file object from its start; libsndfile, which reads the same descriptor, finds it where it was."""
    position = file.tell()
    file.seek(0)
    try:
        yield
    finally:
        file.seek(position)


def _to_float(frame: av.AudioFrame, rate: int, channels: int) -> npt.NDArray[np.float32]:
    """`(samples, channels)` float32, full scale 1.0, of one frame in any of FFmpeg's sample formats."""
    if frame.sample_rate != rate or len(frame.layout.channels) != channels:
        raise AudioError("the sample rate or the number of channels changes within the recording")
    values: npt.NDArray[Any] = frame.to_ndarray()
    values = values.T if frame.format.is_planar else values.reshape(-1, channels)
    if values.dtype == np.uint8:
        return ((values.astype(np.float32) - 128) / 128).astype(np.float32)
    if np.issubdtype(values.dtype, np.integer):
        return (values / -float(np.iinfo(values.dtype).min)).astype(np.float32)
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
