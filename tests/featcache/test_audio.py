from __future__ import annotations

import errno
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import audio
from featcache._av import ContainerReader
from featcache._sndfile import SoundFileReader
from featcache.audio import AudioInfo, content_hash, fit_length, load, probe, samples_of
from featcache.errors import AudioError, JobError

Wave = np.ndarray[Any, np.dtype[np.float32]]


def tone(seconds: float, rate: int, hz: float = 440.0) -> Wave:
    """A tone whose pitch rises, so that every place in it is unlike every other."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.4 * np.sin(2 * np.pi * (hz + 40 * t) * t)).astype(np.float32)


def encode(path: Path, form: str, codec: str, rate: int, samples: Wave) -> Path:
    """Write with FFmpeg what libsndfile cannot."""
    with av.open(str(path), "w", format=form) as container:
        stream: Any = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="fltp", layout="mono")
        frame.sample_rate = rate
        converter = av.AudioResampler(format=stream.codec_context.format or "s16", layout="mono", rate=rate)
        for part in [*converter.resample(frame), *converter.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def reason(path: object, **where: float) -> str:
    with pytest.raises(AudioError) as caught:
        load(path, **where)  # type: ignore[arg-type]
    text = caught.value.reason
    assert text and "\n" not in text and len(text) < 120
    assert str(path) not in text  # it stands in a ledger
    return text


CONTAINERS = [("a.g722", "g722", "g722", 16000), ("a.mp4", "mp4", "aac", 44100), ("a.webm", "webm", "libopus", 48000)]
CONTAINER = pytest.mark.parametrize(("name", "form", "codec", "rate"), CONTAINERS)


@pytest.mark.parametrize("rate", [7350, 8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000])
@pytest.mark.parametrize(
    ("form", "subtype"),
    [("WAV", "PCM_U8"), ("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("FLAC", "PCM_24")],
)
def test_rates_and_depths(tmp_path: Path, form: str, subtype: str, rate: int) -> None:
    path = tmp_path / "a"
    soundfile.write(path, tone(0.7, rate), rate, format=form, subtype=subtype)
    info = probe(path)
    assert info == AudioInfo(round(0.7 * rate), rate, 1)
    pcm = load(path)
    assert pcm.dtype == np.float32 and pcm.shape == (samples_of(info.duration),)
    middle = slice(1600, -1600)
    bound = 0.02 if subtype == "PCM_U8" else 1e-3
    assert np.abs(pcm - tone(0.7, 16000)[: len(pcm)])[middle].max() < bound
    assert np.array_equal(pcm, load(path))


@pytest.mark.parametrize(("form", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III")])
def test_lossy_formats_of_libsndfile(tmp_path: Path, form: str, subtype: str) -> None:
    path = tmp_path / "a"
    soundfile.write(path, tone(2, 48000), 48000, format=form, subtype=subtype)
    info, pcm = probe(path), load(path)
    assert len(pcm) == samples_of(info.duration) == 32000
    assert np.abs(pcm - tone(2, 16000))[1600:-1600].max() < 0.05
    assert np.allclose(load(path, offset=0.5, duration=1)[800:-800], pcm[8800:23200], atol=1e-3)


@pytest.mark.parametrize(("form", "subtype"), [("WAV", "GSM610"), ("AU", "G721_32"), ("AU", "G723_24")])
def test_what_libsndfile_decodes_in_order_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, subtype: str
) -> None:
    path = tmp_path / "a"
    soundfile.write(path, 0.5 * tone(4, 16000), 16000, format=form, subtype=subtype)
    with soundfile.SoundFile(path) as sound:
        assert not sound.seekable()
        native = sound.read(sound.frames, dtype="float32")
    assert probe(path).samples == len(native) >= 64000
    for block in (1 << 22, 12345):
        monkeypatch.setattr("featcache._sndfile.BLOCK", block)
        assert np.array_equal(load(path), native)
        for start in (1, 20000, 40000):
            part = load(path, offset=start / 16000, duration=1)
            assert np.array_equal(part, native[start : start + 16000]), start
    assert "truncated" in reason(cut(path))


@pytest.mark.parametrize(
    ("form", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("FLAC", "PCM_16")]
)
@pytest.mark.parametrize("rate", [16000, 24000, 48000])
def test_blocks_and_slices_join_without_a_seam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, subtype: str, rate: int
) -> None:
    path = tmp_path / "a"
    soundfile.write(path, tone(9, rate), rate, format=form, subtype=subtype)
    native, _ = soundfile.read(path, dtype="float32")
    monkeypatch.setattr("featcache._sndfile.BLOCK", 12345)
    with soundfile.SoundFile(path) as sound:
        reader = SoundFileReader(sound)
        joined = np.concatenate(list(reader.blocks(0, None)))[:, 0]
        assert joined.shape == native.shape and np.allclose(joined, native, atol=1e-6)
        for start in (1, 1152, rate // 2, rate - 1, 3 * rate, 8 * rate):
            part = np.concatenate(list(reader.blocks(start, 20000)))[:, 0]
            assert np.allclose(part, native[start : start + 20000], atol=1e-6), start


@CONTAINER
def test_what_ffmpeg_decodes(tmp_path: Path, name: str, form: str, codec: str, rate: int) -> None:
    path = encode(tmp_path / name, form, codec, rate, tone(3, rate))
    info, pcm = probe(path), load(path)
    assert (info.sample_rate, info.channels) == (rate, 1)
    assert len(pcm) == samples_of(info.duration)
    best = max(
        range(-600, 601), key=lambda lag: float(np.dot(pcm[1600:40000], tone(3, 16000)[1600 + lag : 40000 + lag]))
    )
    expected = tone(3, 16000)[1600 + best : 40000 + best]
    assert np.corrcoef(pcm[1600:40000], expected)[0, 1] > 0.99
    assert np.array_equal(pcm, load(path))


def test_mean_of_channels(tmp_path: Path) -> None:
    left, right = tone(0.5, 16000), tone(0.5, 16000, 700)
    path = tmp_path / "a.wav"
    soundfile.write(path, np.stack([left, right, 0 * left], axis=1), 16000, subtype="FLOAT")
    assert probe(path).channels == 3
    mean = ((left.astype(np.float64) + right) / 3).astype(np.float32)
    assert np.array_equal(load(path), mean)


def test_at_16_khz_nothing_is_changed_and_loud_is_not_clipped(tmp_path: Path) -> None:
    samples = 3 * tone(0.5, 16000)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    assert np.array_equal(load(tmp_path / "a.wav"), samples)


@pytest.mark.parametrize("rate", [16000, 44100])
def test_a_slice_is_cut_before_resampling(tmp_path: Path, rate: int) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(5, rate), rate)
    whole, part = load(path), load(path, offset=1.2345, duration=2.0)
    assert len(part) == 32000
    if rate == 16000:
        assert np.array_equal(part, whole[19752:51752])
    else:
        native, _ = soundfile.read(path, dtype="float32")
        start = round(1.2345 * rate)
        alone = tmp_path / "b.wav"
        soundfile.write(alone, native[start : start + 2 * rate], rate, subtype="FLOAT")
        assert np.array_equal(part, load(alone))
    assert len(load(path, offset=4.0)) == 16000
    assert len(load(path, offset=4.0, duration=9.0)) == 16000  # what is there; fit_length judges


@CONTAINER
def test_slices_of_containers_lie_where_they_should(
    tmp_path: Path, name: str, form: str, codec: str, rate: int
) -> None:
    path = encode(tmp_path / name, form, codec, rate, tone(9, rate))
    whole = load(path)
    for offset in (0.0, 0.4, 1.0, 3.3, 7.77):
        part = load(path, offset=offset, duration=1.0)
        start = samples_of(offset)
        assert len(part) == 16000
        assert np.abs(part - whole[start : start + 16000])[400:-400].max() < 2e-3, offset
        assert np.array_equal(part, load(path, offset=offset, duration=1.0))


def test_a_slice_of_mp4_is_right_from_its_first_sample(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", "mp4", "aac", 16000, tone(9, 16000))
    whole = load(path)
    for start in range(17000, 120000, 7777):
        part = load(path, offset=start / 16000, duration=0.5)
        assert np.allclose(part, whole[start : start + 8000], atol=1e-5), start


def test_seeking_decodes_little_of_a_long_recording(tmp_path: Path) -> None:
    mp4 = encode(tmp_path / "a.mp4", "mp4", "aac", 16000, tone(120, 16000))
    decoded = []
    original = ContainerReader.blocks

    def counting(self: ContainerReader, start: int, count: int | None) -> Any:
        position, frames = self._frames_from(start)
        decoded.append(start - position)
        return original(self, start, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContainerReader, "blocks", counting)
        assert len(load(mp4, offset=100, duration=5)) == 80000
    assert 0 <= decoded[0] <= 2 * 16000


def test_three_hours_in_windows(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    block = tone(60, 16000)
    with soundfile.SoundFile(path, "w", 16000, 1, format="FLAC", compression_level=0.0) as file:
        for minute in range(180):
            file.write(block * np.float32((minute + 1) / 200))
    assert probe(path).duration == 3 * 3600
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    for minute in (0, 90, 179):
        pcm = load(path, offset=60 * minute + 10, duration=30)
        assert np.allclose(pcm, block[160000:640000] * (minute + 1) / 200, atol=1e-4)
    assert time.perf_counter() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB; the whole is 0.7 GB


def cut(path: Path, share: float = 0.5) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


@pytest.mark.parametrize("form", ["WAV", "FLAC", "AIFF", "AU", "W64", "RF64", "MP3", "CAF"])
def test_truncated(tmp_path: Path, form: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "a"
    soundfile.write(path, rng.uniform(-0.3, 0.3, 64000), 16000, format=form)
    assert len(load(path)) == 64000
    cut(path)
    assert "truncated" in reason(path)
    if form not in ("CAF", "MP3"):
        assert len(load(path, duration=1)) == 16000  # a slice that is there can be used
        assert "truncated" in reason(path, offset=1, duration=2)
        assert "truncated" in reason(path, offset=3, duration=0.5)
        assert abs(probe(path).samples - 64000) < 64  # as the header says


def bare_mp3(path: Path, rate: int, bit_rate: int, samples: Wave) -> bytes:
    """An MP3 whose first frame does not say how many there are, as bytes: they may be joined to others."""
    with av.open(str(path), "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream: Any = container.add_stream("libmp3lame", rate=rate, options={"reservoir": "0"})
        stream.layout, stream.bit_rate = "mono", bit_rate
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="fltp", layout="mono")
        frame.sample_rate = rate
        fifo = av.AudioResampler(format=stream.format.name, layout="mono", rate=rate, frame_size=576 << (rate > 24000))
        for part in [*fifo.resample(frame), *fifo.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path.read_bytes()


TAGS = {
    "nothing": b"",
    "zeros": bytes(1000),
    "id3v1": b"TAG" + bytes(125),
    "lyrics3": b"LYRICSBEGIN" + b"la " * 200 + b"LYRICS200TAG" + bytes(125),
    "apev2": b"APETAGEX" + (2000).to_bytes(4, "little") + (1032).to_bytes(4, "little") + bytes(1016),
}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("rate", [16000, 44100])
def test_an_mp3_that_does_not_say_how_long_it_is(tmp_path: Path, rate: int, tag: str) -> None:
    path = tmp_path / "a.mp3"
    content = bare_mp3(path, rate, 64000, tone(3, rate))
    with av.open(str(path)) as container:
        frames = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    path.write_bytes(content + TAGS[tag])
    assert probe(path) == AudioInfo(len(frames), rate, 1)
    whole = load(path)
    assert len(whole) == samples_of(len(frames) / rate)
    assert rate != 16000 or np.allclose(whole, frames, atol=1e-5)
    end = load(path, offset=2.5, duration=2)
    assert np.allclose(end[400:-400], whole[-len(end) :][400:-400], atol=2e-3)
    with soundfile.SoundFile(path) as sound:  # a slice that libsndfile decodes is decoded by it, as ever
        sound.seek(0)
        assert np.array_equal(load(path, offset=0, duration=1), audio.resample(sound.read(rate, dtype="float32"), rate))
    path.write_bytes(content[:-70])
    assert "truncated" in reason(path)


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("rates", [(128000, 16000), (16000, 128000)])
def test_an_mp3_of_variable_bit_rate_that_does_not_say_how_long_it_is(
    tmp_path: Path, rates: tuple[int, int], tag: str
) -> None:
    path = tmp_path / "a.mp3"
    parts = [bare_mp3(path, 16000, rate, tone(9, 16000)) for rate in rates]
    lengths = []
    for part in parts:
        path.write_bytes(part)
        lengths.append(len(load(path)))
    path.write_bytes(b"".join(parts) + TAGS[tag])
    assert probe(path).samples == sum(lengths) > 280000
    whole = load(path)
    assert len(whole) == sum(lengths)
    for start in (0, 4, 9, 13):  # guessed 10 s or 81 s, for 18 s
        part_of = load(path, offset=start, duration=2)
        assert np.allclose(part_of, whole[16000 * start : 16000 * (start + 2)], atol=1e-5), start
    assert "beyond the end" in reason(path, offset=19)


def test_an_mp3_that_says_how_long_it_is_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp3"
    soundfile.write(path, tone(3, 16000), 16000, format="MP3")
    content = path.read_bytes()
    monkeypatch.setattr("featcache.audio.count_mp3", None)
    for ahead in (b"", b"ID3\x04\0\0\0\0\x08\0" + bytes(1024)):
        path.write_bytes(ahead + content)
        assert probe(path).samples == len(load(path)) == 48000


def test_truncated_by_one_percent_or_one_sample(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(4, 16000), 16000)
    content = path.read_bytes()
    path.write_bytes(content[:-640])
    assert "truncated" in reason(path)
    path.write_bytes(content + b"LIST\x04\0\0\0abcd" + b"junk")  # more than promised is no harm
    assert len(load(path)) == 64000


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_several_recordings_in_one_ogg_file(tmp_path: Path, subtype: str, rate: int) -> None:
    path = tmp_path / "a.ogg"
    contents, parts = [], []
    for seconds in (3, 1, 2):
        soundfile.write(path, tone(seconds, rate, 300 * seconds), rate, format="OGG", subtype=subtype)
        contents.append(path.read_bytes())
        parts.append(soundfile.read(path, dtype="float32")[0])
    native = np.concatenate(parts)
    path.write_bytes(b"".join(contents))
    assert probe(path) == AudioInfo(6 * rate, rate, 1)
    assert np.array_equal(load(path), audio.resample(native, rate))
    for start, count in (
        (0, rate),
        (rate, 3 * rate),
        (2 * rate, 7 * rate),
        (3 * rate, rate),
        (5 * rate + 7, rate // 2),
    ):
        part = load(path, offset=start / rate, duration=count / rate)
        assert np.allclose(part, audio.resample(native[start : start + count], rate), atol=1e-5), start
    assert "beyond the end" in reason(path, offset=6)
    path.write_bytes(b"".join(contents)[:-10])  # Ogg promises nothing
    assert 4 * 16000 <= len(load(path)) < 6 * 16000
    path.write_bytes(contents[0])
    assert np.array_equal(load(path), audio.resample(parts[0], rate))


def test_recordings_of_two_forms_in_one_ogg_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    soundfile.write(path, tone(1, 16000), 16000, format="OGG")
    first = path.read_bytes()
    soundfile.write(path, tone(1, 24000), 24000, format="OGG")
    path.write_bytes(first + path.read_bytes())
    assert "sample rate" in reason(path)
    path.write_bytes(first + first[:100])
    assert "one Ogg file" in reason(path)


@pytest.mark.parametrize("channels", [1, 2])
def test_truncated_sphere(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "a.sph"
    soundfile.write(path, np.stack([tone(4, 16000)] * channels, axis=1), 16000, format="NIST", subtype="PCM_16")
    content = path.read_bytes()
    assert len(load(path)) == 64000
    assert len(load(cut(path, 0.7), duration=1)) == 16000
    assert probe(path).samples == 64000
    assert "truncated" in reason(path)
    # Samples of all channels together; no count at all.
    total = content.replace(b"sample_count -i 64000\n", b"sample_count -i %d\n" % (64000 * channels))
    for other in (
        total[:1024].rstrip(b"\0").ljust(1024, b"\0") + content[1024:],
        content.replace(b"sample_count", b"sample_c0unt"),
    ):
        path.write_bytes(other)
        assert probe(path).samples == len(load(path)) == 64000


def test_truncated_webm(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.webm", "webm", "libopus", 48000, tone(9, 48000))
    assert len(load(cut(path), duration=1)) == 16000
    assert "truncated" in reason(path)


def film(path: Path, seconds: float, late: float, samples: Wave) -> Path:
    """A Matroska file of so many seconds of picture, with sound at 48 kHz that begins late."""
    with av.open(str(path), "w", format="matroska") as container:
        sound: Any = container.add_stream("flac", rate=48000)
        sound.layout = "mono"
        picture: Any = container.add_stream("mpeg4", rate=10)
        picture.width = picture.height = 64
        picture.pix_fmt = "yuv420p"
        frame = av.AudioFrame.from_ndarray(samples[None, :], format="fltp", layout="mono")
        frame.sample_rate = 48000
        frame.pts = 0
        packets = []
        fifo = av.AudioResampler(format="s16", layout="mono", rate=48000, frame_size=4608)
        for part in [*fifo.resample(frame), *fifo.resample(None)]:
            part.pts = (part.pts or 0) + round(late * 48000)
            packets += sound.encode(part)
        packets += sound.encode(None)
        for number in range(round(seconds * 10)):
            image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number, np.uint8), format="rgb24")
            image.pts = number
            packets += picture.encode(image)
        packets += picture.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


@pytest.mark.parametrize(("seconds", "late"), [(9, 0), (4, 0), (4, 1), (9, 3.5)])
@pytest.mark.parametrize("tagged", [True, False])
def test_a_picture_longer_than_the_sound(tmp_path: Path, seconds: float, late: float, tagged: bool) -> None:
    path = film(tmp_path / "a.mkv", seconds, late, tone(5, 48000))
    content = path.read_bytes()
    if not tagged:
        path.write_bytes(content.replace(b"DURATION", b"SOMETHIN"))
    assert probe(path).samples == 240000
    assert len(load(path)) == 80000
    assert len(load(path, offset=4, duration=2)) == 16000
    if tagged:
        path.write_bytes(content[: len(content) // 2])
        assert "truncated" in reason(path)


def test_a_tag_that_is_stale_cuts_nothing_off(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mkv", 4, 0, tone(5, 48000))
    content = path.read_bytes()
    assert content.count(b"00:00:05.000000000") == 1
    path.write_bytes(content.replace(b"00:00:05.000000000", b"00:00:02.000000000"))
    assert len(load(path)) == 80000
    assert len(load(path, offset=3, duration=1)) == 16000
    assert "beyond the end" in reason(path, offset=6)


def test_wav_from_a_pipe_promises_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(1, 16000), 16000, subtype="PCM_16")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    for size in (0xFFFFFFFF, 0x7FFFF000):
        content[at : at + 4] = size.to_bytes(4, "little")
        path.write_bytes(content)
        assert probe(path).samples == len(load(path)) == 16000


def test_flac_from_a_pipe_does_not_know_its_length(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(2, 16000), 16000)
    known = load(path)
    content = bytearray(path.read_bytes())
    stream = int.from_bytes(content[18:26], "big") >> 36 << 36  # total samples: the low 36 bits
    content[18:26] = stream.to_bytes(8, "big")
    path.write_bytes(content)
    assert probe(path) == AudioInfo(32000, 16000, 1)
    assert np.array_equal(load(path), known)
    assert np.array_equal(load(path, offset=0.5, duration=1), known[8000:24000])


@pytest.mark.parametrize("name", ["a.mp3", "a.raw", "a.g722", "a.txt", "a", "a.WAV"])
def test_the_content_decides_not_the_suffix(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    soundfile.write(path, tone(1, 16000), 16000, format="WAV")
    assert len(load(path)) == 16000


def test_nothing_to_hear(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    assert reason(tmp_path / "empty.wav") == "empty file (0 bytes)"
    (tmp_path / "empty.g722").touch()
    assert reason(tmp_path / "empty.g722") == "empty file (0 bytes)"
    soundfile.write(tmp_path / "zero.wav", np.zeros(0), 16000)
    assert probe(tmp_path / "zero.wav").samples == 0
    assert reason(tmp_path / "zero.wav") == "no samples"
    soundfile.write(tmp_path / "one.wav", np.ones(1), 48000)
    assert "no samples" in reason(tmp_path / "one.wav")
    soundfile.write(tmp_path / "a.wav", tone(1, 16000), 16000)
    assert "beyond the end" in reason(tmp_path / "a.wav", offset=1.0)
    assert "beyond the end" in reason(tmp_path / "a.wav", offset=77.0, duration=1.0)
    assert reason(tmp_path / "a.wav", duration=0.0) == "no samples"


@pytest.mark.parametrize(
    "bad", [{"offset": -1.0}, {"offset": float("nan")}, {"duration": float("inf")}, {"duration": -1}]
)
def test_times_that_make_no_sense(tmp_path: Path, bad: dict[str, float]) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 16000), 16000)
    reason(tmp_path / "a.wav", **bad)


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_non_finite_samples(tmp_path: Path, value: float, rate: int) -> None:
    samples = np.stack([tone(1, rate), tone(1, rate)], axis=1)
    samples[777, 1] = value
    soundfile.write(tmp_path / "a.wav", samples, rate, subtype="FLOAT")
    assert "NaN or infinite" in reason(tmp_path / "a.wav")
    assert len(load(tmp_path / "a.wav", offset=0.5)) == 8000


def test_beyond_float32(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(100, 1e300), 16000, subtype="DOUBLE")
    assert "infinite" in reason(tmp_path / "a.wav")


def test_not_a_recording(tmp_path: Path) -> None:
    text = tmp_path / "a.wav"
    text.write_text("not a recording\n" * 100)
    assert "not audio" in reason(text)
    assert "directory" in reason(tmp_path)
    assert reason(tmp_path / "none.wav") == "no such file"
    assert reason("a\0b.wav")
    assert reason("x" * 5000)
    os.mkfifo(tmp_path / "fifo.wav")
    assert reason(tmp_path / "fifo.wav") == "not a regular file"
    (tmp_path / "dangling.wav").symlink_to(tmp_path / "none.wav")
    assert reason(tmp_path / "dangling.wav") == "no such file"


def test_a_codec_that_nobody_knows(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 16000), 16000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[20:22] = b"\x34\x12"  # the format tag
    (tmp_path / "a.wav").write_bytes(content)
    assert "no decoder" in reason(tmp_path / "a.wav")


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    encode(tmp_path / "a.aac", "adts", "aac", 16000, tone(1, 16000))
    assert len(load(tmp_path / "a.aac")) > 16000
    playlist = tmp_path / "a.m3u8"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:1,\na.aac\n#EXT-X-ENDLIST\n")
    assert "not audio" in reason(playlist)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_without_permission(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 16000), 16000)
    (tmp_path / "a.wav").chmod(0)
    assert "ermission" in reason(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("code", "expected"), [(errno.EACCES, AudioError), (errno.EMFILE, JobError), (errno.EIO, JobError)]
)
def test_trouble_of_the_machine_is_not_the_recording_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, expected: type[Exception]
) -> None:
    soundfile.write(tmp_path / "a.wav", tone(1, 16000), 16000)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(expected):
        load(tmp_path / "a.wav")


def seeds(folder: Path) -> list[bytes]:
    made: list[Callable[[Path], object]] = [
        lambda p: soundfile.write(p, tone(0.2, 16000), 16000, format="WAV"),
        lambda p: soundfile.write(p, tone(0.2, 16000), 16000, format="FLAC"),
        lambda p: soundfile.write(p, tone(0.2, 16000), 16000, format="OGG"),
        lambda p: encode(p, "mp4", "aac", 16000, tone(0.2, 16000)),
        lambda p: encode(p, "webm", "libopus", 48000, tone(0.2, 48000)),
    ]
    path, found = folder / "seed", []
    for make in made:
        make(path)
        found.append(path.read_bytes())
    return found


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_give_audio_errors_only(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        folder.mkdir()
        for number, content in enumerate(seeds(folder)):
            (folder / f"{number}.seed").write_bytes(content)
    chosen = sorted(folder.glob("*.seed"))[data.draw(st.integers(0, 4))]
    damaged = bytearray(chosen.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        # Most of the harm is in the header.
        at = data.draw(st.integers(0, 200) | st.integers(0, len(damaged) - 1)) % len(damaged)
        damaged[at] = data.draw(st.integers(0, 255))
    path = folder / f"x{data.draw(st.sampled_from(['.wav', '.g722', '.mp4']))}"
    path.write_bytes(damaged[: data.draw(st.integers(1, len(damaged)) | st.just(len(damaged)))])
    for use in (probe, load, lambda p: load(p, offset=0.1, duration=0.05)):
        try:
            result = use(path)
        except AudioError:
            continue
        assert isinstance(result, AudioInfo) or np.isfinite(result).all()


def test_samples_of() -> None:
    assert samples_of(0) == 0
    assert samples_of(1.00003) == 16000
    assert samples_of(3.21) == 51360


@settings(deadline=None)
@given(st.integers(1, 3_000), st.sampled_from([8000, 11025, 22050, 44100, 48000]))
def test_a_header_s_duration_is_what_load_gives(
    tmp_path_factory: pytest.TempPathFactory, samples: int, rate: int
) -> None:
    path = tmp_path_factory.mktemp("length") / "a.wav"
    soundfile.write(path, np.zeros(samples), rate)
    planned = samples_of(probe(path).duration)
    if planned > 1:
        assert abs(len(load(path)) - planned) <= 1


def test_fit_length() -> None:
    pcm = tone(1, 16000)
    assert np.array_equal(fit_length(pcm, 16000), pcm)
    assert np.array_equal(fit_length(pcm, 15984), pcm[:15984])
    longer = fit_length(pcm, 16016)
    assert longer.dtype == np.float32
    assert np.array_equal(longer, np.concatenate([pcm, np.zeros(16, np.float32)]))
    for planned in (15983, 16017):
        with pytest.raises(AudioError) as caught:
            fit_length(pcm, planned)
        assert str(planned) in caught.value.reason and "16000" in caught.value.reason


def test_content_hash_is_of_the_samples() -> None:
    pcm = tone(1, 16000)
    digest = content_hash(pcm)
    assert len(digest) == 32
    assert content_hash(pcm.copy()) == digest
    assert content_hash(np.repeat(pcm, 2)[::2]) == digest
    changed = pcm.copy()
    changed[500] = np.nextafter(changed[500], 2, dtype=np.float32)
    assert content_hash(changed) != digest
    assert content_hash(pcm[:-1]) != digest
    # Fixed once: another value would orphan every cache that holds the old ones.
    known = "ccda09c079624a5a"
    assert content_hash(np.arange(4, dtype=np.float32)).hex().startswith(known)


def test_rules_are_json() -> None:
    assert json.loads(json.dumps(audio.AUDIO_RULES)) == audio.AUDIO_RULES
    assert audio.AUDIO_RULES["version"] == 1 and audio.AUDIO_RULES["sample_rate"] == 16000


@pytest.mark.real
def test_real_g722_prompts(speech_root: Path) -> None:
    prompts = sorted((speech_root / "asterisk" / "sounds").rglob("*.g722"))
    loudness = []
    for path in prompts[:: max(1, len(prompts) // 40)]:
        info, pcm = probe(path), load(path)
        # Two samples a byte: G.722 at 64 kbit/s.
        assert info == AudioInfo(2 * path.stat().st_size, 16000, 1)
        assert len(pcm) == info.samples == samples_of(info.duration)
        loudness.append(float(np.sqrt(np.mean(pcm**2))))
        assert np.array_equal(load(path, offset=0.1, duration=0.2), pcm[1600:4800])
    assert 0.02 < np.median(loudness) < 0.3  # some prompts are silence
    for path in speech_root.rglob("ru_RU_f_IvrvoiceRU/is.g722"):
        assert reason(path) == "empty file (0 bytes)"
