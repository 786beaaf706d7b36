"""Recordings in, 16 kHz mono float32 out. One set of rules, named in `AUDIO_RULES`.

libsndfile decodes what it knows (WAV, FLAC, Ogg Vorbis and Opus, MP3, AIFF, ...); FFmpeg, through PyAV,
decodes the rest (headerless G.722, MP4, WebM, ...). The content decides which, not the file's name,
except for `.g722`, which has no header to recognise.

Everything that makes a recording unusable is an `AudioError` whose `reason` is short, plain and free of
paths, so that it can stand in a ledger. Trouble of the machine (no file handles left, an I/O error of the
disk) is a `JobError` instead: it says nothing about the recording and must not quarantine it.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from featcache._av import ContainerReader, count_mp3, kept_position
from featcache._sndfile import (
    MALFORMED,
    UNKNOWN,
    LinkedReader,
    SoundFileReader,
    UncountedReader,
    announced,
    ogg_links,
    reaches,
    sphere_samples,
)
from featcache.errors import AudioError, JobError
from featcache.geometry import SAMPLE_RATE
from featcache.memory import ran_out

Pcm = npt.NDArray[np.float32]

FIT_TOLERANCE = 16
"""Samples (1 ms) by which a recording may differ from its manifest, rounded as that often is."""

OTHER_LENGTH = "the manifest says"
"""How the reason against a recording begins that is not as long as its manifest says. A ledger keeps the text alone."""

SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .m4a .mp4 .aac .webm .mkv .mka .g722 .aiff .aif .au .caf .amr .wma .w64".split()
)
"""What is taken for a recording in a folder; a file that is named is always tried."""

LOWEST_RATE, HIGHEST_RATE = 1000, 768000  # Hz; outside, the header is taken to be nonsense

AUDIO_RULES: dict[str, Any] = {
    "version": 1,
    "sample_rate": SAMPLE_RATE,
    "decode": "libsndfile to float32, full scale 1.0; what it does not know: FFmpeg, divided by full scale",
    "seek": "2 s decoded and dropped before a block of 2^22 samples of MP3 or Ogg, 1 s before a slice of MP4",
    "downmix": "mean of all channels in float64, rounded to float32",
    "slice": "round(duration * rate) native samples from round(offset * rate), cut before resampling",
    "resample": "soxr HQ over the slice alone, silence beyond its ends; length floor(n * 16000 / rate + 1/2)",
    "non_finite": "refused",
}
"""What decides the samples of an utterance; part of the values id. A change of any rule changes `version`."""


@dataclass(frozen=True)
class AudioInfo:
    """A recording's length and form. `samples` counts one channel at `sample_rate` (Hz)."""

    samples: int
    sample_rate: int
    channels: int

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples / self.sample_rate


class Reader(Protocol):
    """An open recording, decoded in blocks so that memory never holds all channels of a long one."""

    rate: int
    channels: int
    promised: int | None  # samples that the header promises, None where it promises nothing
    slack: int  # samples by which that promise may be off

    def blocks(self, start: int, count: int | None) -> Iterator[Pcm]:
        """Blocks `(samples, channels)` of the native samples from `start`, at most `count` of them."""
        ...


def probe(path: str | Path) -> AudioInfo:
    """The length of a recording, from its header.

    What FFmpeg decodes is counted sample by sample instead: G.722 has no header, and the duration of MP4 or
    WebM is not exact. Of an MP3 that does not say how long it is, the frames are counted. A truncated file is
    reported as long as its header promises; `load` refuses it.
    Raises AudioError (unreadable, empty file) or JobError (trouble of the machine).
    """
    with _opened(path) as reader:
        if reader.promised is not None and not reader.slack:
            return AudioInfo(reader.promised, reader.rate, reader.channels)
        samples = sum(len(block) for block in reader.blocks(0, None))
        return AudioInfo(samples, reader.rate, reader.channels)


def load(path: str | Path, *, offset: float = 0.0, duration: float | None = None) -> Pcm:
    """Decode a recording, or `duration` seconds of it from `offset`, to float32 `(samples,)`, mono, 16 kHz.

    The slice is cut at the native rate and then resampled alone, so where the recording is not at 16 kHz
    its first and last few milliseconds differ from those of the resampled whole (`AUDIO_RULES["slice"]`).
    The same call always gives the same samples. A slice is reached by seeking; only G.722, G.721, G.723 and
    GSM (each sample depends on all before it) and containers whose clock is coarser than a sample (WebM)
    are decoded from the start. Less than `duration` is returned where the recording ends early: see `fit_length`.

    Raises AudioError: missing, unreadable or empty file, no samples, `offset` beyond the end, NaN or
    infinite samples, or truncated, that is, less there in the slice than the header promises. (Ogg
    promises nothing, nor does an MP3 that does not say how long it is, unless it is cut within a frame:
    such a cut file is only shorter than its manifest says.) JobError as `probe`.
    """
    blocks = list(stream(path, offset=offset, duration=duration))
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def stream(path: str | Path, *, offset: float = 0.0, duration: float | None = None) -> Iterator[Pcm]:
    """The samples of `load` in blocks, so that memory does not grow with the recording.

    What is wrong at the end of a recording (truncation, say) is raised there, after the blocks before it.
    """
    if not (math.isfinite(offset) and offset >= 0):
        raise AudioError(f"the offset {offset} is not a time in seconds from 0")
    if duration is not None and not (math.isfinite(duration) and duration >= 0):
        raise AudioError(f"the duration {duration} is not a number of seconds from 0")
    with _opened(path) as reader:
        rate, promised, slack = reader.rate, reader.promised, reader.slack
        start = round(offset * rate)
        count = None if duration is None else round(duration * rate)
        # Where the promise is not exact (a tag may be stale), decoding shows where the end is.
        if promised is not None and not slack and 0 < promised <= start:
            raise AudioError(f"the offset {offset:g} s is beyond the end ({promised / rate:g} s)")
        resampler, there = _Resampler(rate), start
        blocks = reader.blocks(start, count)
        while True:
            try:
                block = next(blocks, None)
            except (soundfile.SoundFileError, av.FFmpegError) as error:
                if ran_out(error):
                    raise
                raise AudioError("damaged or truncated: decoding stopped before the end") from None
            if block is None:
                break
            there += len(block)
            yield from resampler.feed(_downmix(block))
        if promised is not None:
            wanted = promised if count is None else min(promised, start + count)
            if wanted - there > slack:
                raise AudioError(f"truncated: the header promises {promised} samples, decoding ended at {there}")
        if there == start:
            raise AudioError("no samples" if start == 0 else f"the offset {offset:g} s is beyond the end")
        yield from resampler.finish()


def samples_of(duration: float) -> int:
    """Samples at 16 kHz in `duration` seconds, to the nearest."""
    return round(duration * SAMPLE_RATE)


def content_hash(pcm: Pcm) -> bytes:
    """The identity of audio: SHA-256 (32 bytes) of the rate and the samples as little-endian float32."""
    digest = hashlib.sha256(f"pcm float32le {SAMPLE_RATE} Hz mono\n".encode())
    digest.update(np.ascontiguousarray(pcm, dtype="<f4").data)
    return digest.digest()


def fit_length(pcm: Pcm, planned_samples: int, *, before: int = 0, promised: int | None = None, more: int = 0) -> Pcm:
    """`pcm` `(samples,)` trimmed or zero-padded at its end to `planned_samples`.

    Args:
        before: samples of the recording before `pcm`, where it is a window of it.
        promised: samples of the whole by its manifest, for the message; `before` and the planned if not given.
        more: by how many samples over the planned `pcm` was read at most: with as many, the recording may go on.

    Raises AudioError if the two differ by more than `FIT_TOLERANCE`: the plan was made for another length.
    """
    difference = planned_samples - len(pcm)
    if abs(difference) > FIT_TOLERANCE:
        promised = before + planned_samples if promised is None else promised
        least = "at least " if more and -difference >= more else ""
        there = before + len(pcm)
        raise AudioError(
            f"{OTHER_LENGTH} {promised} samples ({promised / SAMPLE_RATE:.3f} s), "
            f"the recording has {least}{there} ({there / SAMPLE_RATE:.3f} s)"
        )
    return np.pad(pcm, (0, difference)) if difference > 0 else pcm[:planned_samples]


def resample(pcm: Pcm, rate: int) -> Pcm:
    """`pcm` `(samples,)` at `rate` (Hz) as 16 kHz, by the rules of `AUDIO_RULES`.

    Raises AudioError: not one sample is left.
    """
    resampler = _Resampler(rate)
    return np.concatenate([*resampler.feed(pcm), *resampler.finish()])


def _downmix(block: Pcm) -> Pcm:
    if block.shape[1] == 1:
        return np.ascontiguousarray(block[:, 0])
    with np.errstate(over="ignore", invalid="ignore"):  # non-finite samples are refused by name later
        return block.mean(axis=1, dtype=np.float64).astype(np.float32)


class _Resampler:
    """Mono samples to 16 kHz, block by block: bit for bit what soxr makes of them at once."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._soxr = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, "float32", "HQ")
        self._fed = self._made = 0

    def feed(self, mono: Pcm) -> Iterator[Pcm]:
        if not np.isfinite(mono).all():
            raise AudioError("NaN or infinite samples")
        self._fed += len(mono)
        yield from self._checked(mono if self._soxr is None else self._soxr.resample_chunk(mono))

    def finish(self) -> Iterator[Pcm]:
        """The rest, to the length that the rules give."""
        if self._soxr is None:
            return
        length = (2 * self._fed * SAMPLE_RATE + self._rate) // (2 * self._rate)
        if not length:
            raise AudioError(f"no samples: {self._fed} at {self._rate} Hz are less than one at {SAMPLE_RATE} Hz")
        rest = self._soxr.resample_chunk(np.zeros(0, np.float32), last=True)[: length - self._made]
        yield from self._checked(np.pad(rest, (0, length - self._made - len(rest))))

    def _checked(self, samples: Pcm) -> Iterator[Pcm]:
        if not np.isfinite(samples).all():
            raise AudioError("infinite samples after resampling")
        if len(samples):
            self._made += len(samples)
            yield samples


MACHINE_TROUBLE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT}


@contextmanager
def _opened(path: str | Path) -> Iterator[Reader]:
    """The reader that understands a file. Every failure here or in the body is an AudioError or JobError."""
    try:
        # A device or a pipe would block or never end; it is refused before it is opened.
        if not Path(path).is_file():
            raise AudioError(_why_not_a_file(Path(path)))
        # Unbuffered: libsndfile reads the same descriptor, and a buffer would hide where it stands.
        with open(path, "rb", buffering=0) as file:
            if not os.fstat(file.fileno()).st_size:
                raise AudioError("empty file (0 bytes)")
            with _reader(file, Path(path).suffix.lower()) as reader:
                if not LOWEST_RATE <= reader.rate <= HIGHEST_RATE:
                    limits = f"{LOWEST_RATE} to {HIGHEST_RATE} Hz"
                    raise AudioError(f"the sample rate {reader.rate} Hz is outside {limits}")
                yield reader
    except OSError as error:
        if error.errno in MACHINE_TROUBLE:
            why = os.strerror(error.errno)
            raise JobError(f"{path} cannot be read: {why}; mend this and run the same command again") from error
        raise AudioError(f"unreadable: {os.strerror(error.errno) if error.errno else 'damaged'}") from error
    except (soundfile.SoundFileError, av.FFmpegError) as error:
        if ran_out(error):
            raise MemoryError("no memory left to decode a recording") from error
        raise AudioError("damaged or truncated: cannot be decoded") from error
    except ValueError as error:  # a NUL in the name; numbers in a header that make no sense
        raise AudioError("unreadable: the name or the header makes no sense") from error


def _why_not_a_file(path: Path) -> str:
    if path.is_dir():
        return "a directory, not a recording"
    return "not a regular file" if path.exists() else "no such file"


@contextmanager
def _reader(file: FileIO, suffix: str) -> Iterator[Reader]:
    magic = file.read(4)
    file.seek(0)
    # libsndfile takes any 0xFFE bits for MPEG, and a G.722 stream may begin with them.
    if suffix != ".g722" or magic in SoundFileReader.MAGIC:
        try:
            sound = soundfile.SoundFile(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            if error.code == MALFORMED:  # FFmpeg would make do with what is left of it
                raise AudioError("damaged or truncated: the header makes no sense") from error
            if ran_out(error):  # FFmpeg may decode it to other values
                raise
        else:
            with sound:
                # A FLAC that was written into a pipe does not know its length, and soundfile needs one.
                if sound.frames < UNKNOWN:
                    yield _known(sound, file)
                    return
        file.seek(0)
    with ContainerReader.open(file, "g722" if suffix == ".g722" else None) as container:
        yield container


def _known(sound: soundfile.SoundFile, file: FileIO) -> Reader:
    """The reader of what libsndfile opened."""
    if sound.format == "MP3":
        with kept_position(file):
            counted = None if announced(file) else count_mp3(file)
        # Where libsndfile finds as many samples as it expects, it is right, whatever FFmpeg takes for a frame.
        if counted and counted[0] < sound.frames:
            with kept_position(file):
                counted = None if reaches(file, sound.frames - 1) else counted
        if counted:
            return UncountedReader(sound, *counted, partial(ContainerReader.mp3_blocks, file))
    if sound.format == "OGG" and len(begins := ogg_links(file)) > 1:
        with kept_position(file):
            return LinkedReader(file, begins)
    if sound.format == "NIST":
        with kept_position(file):
            return SoundFileReader(sound, sphere_samples(file, sound))
    return SoundFileReader(sound)
