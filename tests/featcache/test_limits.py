"""What the machine refuses: memory, a folder to write to, space. One clear line, nothing lost, and it goes on."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from featcache import audio
from featcache.errors import JobError
from featcache.job import Job, Request
from featcache.memory import ran_out
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig
from featcache.upstreams.padding import Padded
from tests.helpers import contents, make_speech
from tests.real import request

ROOT = Path(__file__).parents[2]
MEL = Request(UpstreamConfig(id="mel:8"), "int8", layout=Layout(chunk_frames=16, shard_frames=128))
PR_CAPBSET_DROP = 24
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2


def begun(reference: Path, place: Path) -> Path:
    """A cache that is initialised and holds nothing."""
    return Path(shutil.copytree(reference, place, ignore=shutil.ignore_patterns("segments")))


@pytest.mark.real
def test_an_exhausted_memory_limit_loses_no_shard(speech: Path, reference: Path, tmp_path: Path) -> None:
    """A real job gets no more memory than it has when its first shard is recorded."""
    place = begun(reference, tmp_path / "c")
    process = subprocess.Popen(
        [sys.executable, "-m", "featcache", "extract", str(speech), str(place)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    while process.poll() is None and not list(place.glob("segments/*/ledger/*.json")):
        time.sleep(0.005)
    status = Path(f"/proc/{process.pid}/status").read_text()
    size = next(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmSize"))
    resource.prlimit(process.pid, resource.RLIMIT_AS, (size, size))
    _, errors = process.communicate(timeout=200)
    said = [line for line in errors.splitlines() if "real time" not in line]
    records = {path: path.read_bytes() for path in place.glob("segments/*/ledger/*.json")}
    assert process.returncode == 1 and records and not (place / "segments/000000/seal.json").exists()
    assert len(said) == 1 and "out of memory" in said[0] and "finished shards are safe" in said[0], errors
    Job(speech, place, request()).extract()
    assert contents(place) == contents(reference)
    assert all(path.read_bytes() == data for path, data in records.items())


def test_memory_is_told_from_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(16_000), 16_000)
    for refusal in (MemoryError("none"), soundfile.LibsndfileError(17), soundfile.LibsndfileError(156)):

        def refuse(*_: object, error: Exception = refusal, **__: object) -> None:
            raise error

        for what in ("soundfile.SoundFile", "soundfile.SoundFile.read"):
            with monkeypatch.context() as patch, pytest.raises(MemoryError):
                patch.setattr(what, refuse)
                audio.load(tmp_path / "a.flac")
    assert ran_out(OSError(errno.ENOMEM, "Cannot allocate memory")) and not ran_out(OSError(errno.EIO, "I/O"))
    assert not ran_out(KeyError("out of memory")) and not ran_out(JobError("out of memory"))
    error = JobError("stopped")
    error.__cause__ = RuntimeError("DefaultCPUAllocator: can't allocate memory")
    assert ran_out(error)


def test_a_batch_beyond_memory_is_never_cut(tmp_path: Path) -> None:
    job = Job(make_speech(tmp_path, 4), tmp_path / "c", MEL)
    job.init()
    seen: list[float] = []

    def features(inputs: Padded) -> torch.Tensor:
        seen.extend(float(wave.abs().sum()) for wave in inputs.rows)
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    job.upstream._features = features  # type: ignore[method-assign]
    with pytest.raises(JobError, match="out of memory on batches of .*never cut silently.*--batch-seconds"):
        job.extract()
    # Rows that were begun are not tried again in smaller pieces.
    assert seen and len(seen) == len(set(seen))


def as_any_user(code: str, *arguments: object) -> Any:
    """What Python code prints as JSON, run without root's right to read and write everything."""

    def drop() -> None:
        if os.geteuid() == 0:
            for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
                ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)

    ran = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, cwd=ROOT, preexec_fn=drop, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_a_read_only_folder_is_one_clear_line(tmp_path: Path) -> None:
    """Also for root, which loses its rights over files for this."""
    speech = make_speech(tmp_path, 4)
    whole, half = tmp_path / "whole", tmp_path / "half"
    Job(speech, whole, MEL).extract()
    shutil.copytree(whole, half)
    Job(speech, half, MEL).writer  # noqa: B018
    (half / "segments/000000/seal.json").unlink()
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    shard = next((broken / "segments/000000/codes/c").glob("*/0/0"))
    shard.write_bytes(shard.read_bytes()[:-1])
    littered = Path(shutil.copytree(whole, tmp_path / "littered"))
    (littered / "segments/000000/litter").write_text("x")
    (tmp_path / "none").mkdir()
    before = {place: contents(place) for place in (whole, half, broken, littered)}
    (tmp_path / "unreadable.wav").write_bytes((tmp_path / "0.wav").read_bytes())
    (tmp_path / "unreadable.wav").chmod(0)
    places = [path for path in tmp_path.rglob("*") if path.is_dir()]
    for path in places:
        path.chmod(0o555)
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from featcache import audio\n"
        "from tests.helpers import run_cli\n"
        "said = {}\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    ran = run_cli(*command)\n"
        "    said[command[0]] = ran.status, ran.out, ran.err\n"
        "try:\n"
        "    audio.load(sys.argv[2])\n"
        "except audio.AudioError as error:\n"
        "    said['load'] = 0, '', error.reason\n"
        "print(json.dumps(said))\n"
    )
    commands = [
        ["extract", speech, half],
        ["init", speech, tmp_path / "none", "--upstream", "mel:8"],
        ["recode", whole, tmp_path / "none", "--profile", "residual:step=8"],
        ["subset", whole, tmp_path / "none/x", "--where", "id=u1"],
        ["repair", speech, broken],
        ["gc", littered],
        ["forget", whole, "--where", "id=u1"],
    ]
    try:
        said = as_any_user(code, json.dumps(commands, default=str), tmp_path / "unreadable.wav")
    finally:
        for path in places:
            path.chmod(0o755)
    for name, *_ in commands:
        status, out, errors = said[str(name)]
        line = [line for line in errors.splitlines() if "real time" not in line]
        assert status == 1 and not out and len(line) == 1, (name, out, errors)
        assert "Permission denied" in line[0] and str(tmp_path) in line[0] and "run the same command again" in line[0]
    assert "ermission" in said["load"][2]
    assert {place: contents(place) for place in before} == before
    assert not list((tmp_path / "none").iterdir())


def test_a_disk_that_is_really_full_stops_the_job_at_once(tmp_path: Path) -> None:
    """A file system of its own, which another file has filled; space is freed, and the same command finishes."""
    alone = ["unshare", "--map-root-user", "--mount"]
    try:
        permitted = subprocess.run([*alone, "mount", "-t", "tmpfs", "none", tmp_path], check=False).returncode == 0
    except FileNotFoundError:
        permitted = False
    if not permitted:
        pytest.skip("this machine lets nobody mount a file system of their own")
    speech = make_speech(tmp_path, 40)
    Job(speech, tmp_path / "reference", MEL).extract()
    disk = tmp_path / "disk"
    disk.mkdir()
    code = (
        "import json, os, sys\n"
        "from pathlib import Path\n"
        "from featcache.errors import JobError\n"
        "from featcache.job import Job\n"
        "from tests.featcache.test_limits import MEL\n"
        "from tests.helpers import contents\n"
        "speech, disk, reference = map(Path, sys.argv[1:])\n"
        "job = Job(speech, disk / 'c', MEL)\n"
        "job.init()\n"
        "job.writer.begin()\n"
        "with open(disk / 'other', 'wb') as file:\n"
        "    free = os.statvfs(disk)\n"
        "    file.write(b'x' * (free.f_bavail - 24) * free.f_bsize)\n"
        "batches = []\n"
        "forward = job.upstream.forward\n"
        "job.upstream.forward = lambda waves: batches.append(len(waves)) or forward(waves)\n"
        "said = ''\n"
        "try:\n"
        "    job.extract(check_disk=False)\n"
        "except JobError as error:\n"
        "    said = str(error)\n"
        "records = len(list(disk.glob('c/segments/*/ledger/*.json')))\n"
        "(disk / 'other').unlink()\n"
        "Job(speech, disk / 'c', MEL).extract()\n"
        "same = contents(disk / 'c') == contents(reference)\n"
        "print(json.dumps([said, records, len(batches), job.plan.shards, same]))\n"
    )
    ran = subprocess.run(
        [*alone, "sh", "-c", 'mount -t tmpfs -o size=2M none "$3" && exec "$0" -c "$1" "$2" "$3" "$4"',
         sys.executable, code, speech, disk, tmp_path / "reference"],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    said, records, batches, shards, same = json.loads(ran.stdout)
    assert "no space left" in said and "run the same command again" in said and len(said.splitlines()) == 1
    assert 0 < records < shards // 2 and batches <= records + 8 and same
