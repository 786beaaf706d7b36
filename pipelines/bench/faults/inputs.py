"""Recordings and manifests as they should not be: used where they can be, left out or refused where not."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from featcache import audio
from featcache.errors import FeatcacheError
from featcache.geometry import SAMPLE_RATE
from featcache.job import Job, Request
from featcache.manifest import Row, resolve, to_json
from featcache.manifest import read as read_manifest
from featcache.reading import row_samples
from featcache.store import Cache
from featcache.upstreams import Upstream
from featcache.verify import verify

SECONDS = 1.0


def try_bad_inputs(
    good: Sequence[Row], manifest: Path, request: Request, model: Upstream, long_seconds: float, folder: Path
) -> dict[str, Any]:
    """One job over every kind of bad recording among good ones, then manifests that must be refused.

    `used` can be used as they are, `quarantined` were left out with a reason, `refused` are manifests that
    no job begins with; `crashed` ended in any other way, and `input_failures` says how.
    """
    place = folder / "inputs"
    place.mkdir()
    usable = [*_usable(place), repeat(good, manifest, place / "very long.flac", long_seconds)]
    unusable = _unusable(place)
    rows = [row.model_copy(update={"audio_filepath": str(resolve(row, manifest))}) for row in good]
    path = place / "manifest.jsonl"
    path.write_text("".join(to_json(row) + "\n" for row in [*rows, *usable, *unusable]))
    failures: list[str] = []
    reasons: dict[str, str] = {}
    job = Job(path, folder / "inputs-cache", request)
    job.use(model)
    try:
        done = job.extract()
        reasons = {q.id: q.reason for q in done.quarantined} if done else {}
        cache = Cache.open(folder / "inputs-cache")
        failures += [f"{row.id}: left out ({reasons[row.id]})" for row in [*rows, *usable] if row.id in reasons]
        failures += [f"{row.id}: used" for row in unusable if row.id not in reasons]
        promised = {row.id: job.spec.geometry.frames(row_samples(row)) for row in [*rows, *usable, *unusable]}
        failures += [
            f"{i}: {cache.lengths[row]} frames"
            for row, i in enumerate(cache.ids)
            if cache.lengths[row] != (0 if i in reasons else promised[i])
        ]
        if not verify(cache.path).whole:
            failures.append("the cache is not whole")
    except Exception as error:
        failures.append(f"the job: {type(error).__name__}: {error}")
    refused = 0
    manifests = _bad_manifests(place)
    for name, bad in manifests.items():
        try:
            read_manifest(bad)
            failures.append(f"{name}: accepted")
        except FeatcacheError:
            refused += 1
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__}: {error}")
    shutil.rmtree(place)
    shutil.rmtree(folder / "inputs-cache", ignore_errors=True)
    return {
        "bad_inputs": len(usable) + len(unusable) + len(manifests),
        "used": sum(row.id not in reasons for row in usable),
        "quarantined": sum(row.id in reasons for row in unusable),
        "refused": refused,
        "crashed": len(failures),
        "input_failures": failures,
    }


def _noise(seconds: float, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """Samples `(seconds * rate, channels)`."""
    return np.random.default_rng(rate).uniform(-0.2, 0.2, (round(seconds * rate), channels))


def repeat(rows: Sequence[Row], manifest: Path, target: Path, seconds: float) -> Row:
    """Speech again and again, as one FLAC file of this length, and the row that stands for it."""
    speech = np.concatenate([audio.load(resolve(row, manifest)) for row in rows])
    left = audio.samples_of(seconds)
    samples = left
    with soundfile.SoundFile(target, "w", SAMPLE_RATE, 1, format="FLAC", compression_level=0.0) as file:
        while left:
            file.write(speech[:left])
            left -= min(left, len(speech))
    return Row(id=target.stem, audio_filepath=str(target), duration=samples / SAMPLE_RATE)


def _usable(place: Path) -> list[Row]:
    kinds: dict[str, tuple[np.ndarray, int, str]] = {
        "8-bit": (_noise(SECONDS), 16_000, "PCM_U8"),
        "24-bit": (_noise(SECONDS), 16_000, "PCM_24"),
        "float": (_noise(SECONDS), 16_000, "FLOAT"),
        "double": (_noise(SECONDS), 16_000, "DOUBLE"),
        "six channels": (_noise(SECONDS, channels=6), 16_000, "PCM_16"),
        "11025 Hz": (_noise(SECONDS, 11_025), 11_025, "PCM_16"),
        "44100 Hz": (_noise(SECONDS, 44_100), 44_100, "PCM_16"),
        "silence": (np.zeros((16_000, 1)), 16_000, "PCM_16"),
    }
    rows = []
    for name, (samples, rate, subtype) in kinds.items():
        soundfile.write(place / f"{name}.wav", samples, rate, subtype)
        rows.append(Row(id=name, audio_filepath=f"{name}.wav", duration=len(samples) / rate))
    soundfile.write(place / "flac.flac", _noise(SECONDS), 16_000)
    (place / "flac.flac").rename(place / "wrong extension.wav")
    return [*rows, Row(id="wrong extension", audio_filepath="wrong extension.wav", duration=SECONDS)]


def _unusable(place: Path) -> list[Row]:
    wav = place / "whole.wav"
    soundfile.write(wav, _noise(SECONDS), 16_000, "PCM_16")
    whole = wav.read_bytes()
    (place / "empty.wav").write_bytes(b"")
    (place / "no samples.wav").write_bytes(_promise(whole[:44], 0))
    (place / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    (place / "text.wav").write_text("this is no recording\n" * 100)
    (place / "header promises more.wav").write_bytes(_promise(whole, 2 * (len(whole) - 44)))
    (place / "directory.wav").mkdir()
    nan = _noise(SECONDS)
    nan[500] = np.nan
    soundfile.write(place / "nan.wav", nan, 16_000, "FLOAT")
    shutil.copy(wav, place.parent / "outside.wav")
    shutil.copy(wav, place / "wrong duration.wav")
    os.mkfifo(place / "pipe.wav")
    names = ("empty", "no samples", "truncated", "text", "header promises more", "directory", "nan", "missing", "pipe")
    rows = [Row(id=name, audio_filepath=f"{name}.wav", duration=SECONDS) for name in names]
    rows.append(Row(id="wrong duration", audio_filepath="wrong duration.wav", duration=2 * SECONDS))
    rows.append(Row(id="outside", audio_filepath="../outside.wav", duration=SECONDS))
    if os.geteuid():  # nothing is unreadable for root
        shutil.copy(wav, place / "unreadable.wav")
        (place / "unreadable.wav").chmod(0)
        rows.append(Row(id="unreadable", audio_filepath="unreadable.wav", duration=SECONDS))
    return rows


def _promise(wav: bytes, size: int) -> bytes:
    """A WAV file whose header says that so many bytes of samples follow."""
    return wav[:4] + struct.pack("<I", 36 + size) + wav[8:40] + struct.pack("<I", size) + wav[44:]


def _bad_manifests(place: Path) -> dict[str, Path]:
    line = b'{"id": "a", "audio_filepath": "whole.wav", "duration": 1.0}\n'
    contents = {
        "duplicate ids": line + line,
        "not UTF-8": b'{"id": "\xe9", "audio_filepath": "whole.wav", "duration": 1.0}\n',
        "not JSON": b"whole.wav 1.0\n",
        "a negative duration": line.replace(b"1.0", b"-1.0"),
        "no rows": b"\n",
    }
    for name, data in contents.items():
        (place / f"{name}.jsonl").write_bytes(data)
    return {name: place / f"{name}.jsonl" for name in contents}
