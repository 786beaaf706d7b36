"""Real speech in a manifest, and the cache that an undisturbed run makes of it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from featcache import audio, manifest
from featcache.job import Job
from tests.real import request


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory, speech_root: Path, whisper_tiny_package: object) -> Path:
    """A manifest of 24 real prompts, one empty recording among them."""
    folder = tmp_path_factory.mktemp("speech")
    (folder / "audio").symlink_to(speech_root / "asterisk" / "sounds" / "en_US_f_Allison")
    (folder / "empty.g722").write_bytes(b"")
    rows = [manifest.Row(id="empty", audio_filepath="empty.g722", duration=0.0, text="nothing")]
    for path in sorted((folder / "audio").glob("*.g722")):
        probed = audio.probe(path)
        seconds = probed.samples / probed.sample_rate
        if seconds > 4:
            continue
        rows.append(
            manifest.Row(
                id=path.stem,
                audio_filepath=f"audio/{path.name}",
                duration=seconds,
                text=path.stem,
                labels={"n": len(rows)},
            )
        )
        if len(rows) == 24:
            break
    manifest.write(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"


@pytest.fixture(scope="session")
def reference(memory_root: Path, speech: Path) -> Path:
    """The cache as one undisturbed run leaves it."""
    path = memory_root / "reference"
    done = Job(speech, path, request()).extract()
    assert done is not None and done.shards > 4 and len(done.quarantined) == 1
    return path


@pytest.fixture(scope="session")
def memory_root() -> Iterator[Path]:
    """A folder in memory, where there is one: on a disk that others use, hundreds of fsyncs take minutes."""
    shared = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture
def memory(memory_root: Path) -> Iterator[Path]:
    """As `tmp_path`, in memory."""
    with tempfile.TemporaryDirectory(dir=memory_root) as folder:
        yield Path(folder)
