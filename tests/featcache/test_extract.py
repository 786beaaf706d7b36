"""Stage one on a real model and real speech: the same bytes, whatever happens on the way."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import featcache
from featcache import audio, forecast, manifest
from featcache.codec.base import EncodedRow
from featcache.codec.direct import Int8
from featcache.errors import FeatcacheError, JobError, MismatchError, UsageError
from featcache.extract import run_shards
from featcache.inspect import info, status
from featcache.job import Job, Request
from featcache.outlook import outlook
from featcache.repair import repair
from featcache.spec import Layout
from featcache.storage import LocalStorage
from featcache.upstreams import UpstreamConfig
from featcache.upstreams.padding import Padded
from featcache.verify import verify
from tests.helpers import contents
from tests.real import TINY, request

pytestmark = pytest.mark.real


def start(speech: Path, place: Path, *options: str) -> subprocess.Popen[str]:
    code = (
        "import sys; from featcache.job import Job; from tests.real import request; "
        "Job(sys.argv[1], sys.argv[2], request()).extract()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(speech), str(place), *options],
        stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip


def test_a_cache_holds_what_the_model_gives(speech: Path, reference: Path, tmp_path: Path) -> None:
    cache = featcache.open(reference)
    assert cache.complete and verify(reference).whole and cache.labels("text")[0] == "nothing"
    job = Job(speech, tmp_path / "cache", request("fp16"))
    job.extract()
    cache, upstream = job.cache, job.upstream
    for row in manifest.read(speech)[1:6]:
        pcm = audio.load(manifest.resolve(row, speech))
        live = upstream.forward([pcm])[0]
        stored = cache.read(row.id)
        assert stored.shape == live.shape
        error = ((stored - live) ** 2).mean() / live.var()
        assert error < 1e-6, f"{row.id}: NMSE {error}"


def test_quarantine_keeps_the_row_and_its_reason(reference: Path) -> None:
    cache = featcache.open(reference)
    assert cache.read("empty").shape[0] == 0 and len(cache) == 24
    [left_out] = status(reference)["quarantined"]
    assert left_out["id"] == "empty" and left_out["reason"]


def test_the_same_plan_gives_the_same_bytes(speech: Path, reference: Path, tmp_path: Path) -> None:
    Job(speech, tmp_path / "again", request()).extract()
    assert contents(tmp_path / "again") == contents(reference)


@pytest.mark.timeout(900)
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(speech: Path, reference: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    finished = 0
    for kill in range(4):
        process = start(speech, place)
        # After one more record than the last time, or right in the middle of the calibration.
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(place.glob("segments/*/ledger/*.json"))) > finished or (kill == 0 and place.exists()):
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        finished = len(list(place.glob("segments/*/ledger/*.json")))
    assert finished > 0
    assert not (place / "segments/000000/seal.json").exists()
    before = {p: p.stat().st_mtime_ns for p in place.glob("segments/*/ledger/*.json")}
    Job(speech, place, request()).extract()
    assert contents(place) == contents(reference)
    # Finished shards were not computed again.
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in before.items())


def test_two_at_the_same_time_share_the_shards(speech: Path, reference: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    Job(speech, place, request()).init()
    first, second = start(speech, place), start(speech, place)
    for process in (first, second):
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors
    assert contents(place) == contents(reference)


def test_a_record_follows_its_durable_bytes(
    speech: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut drops what was not synced: at each record, its shard's file and name must be safe."""
    job = Job(speech, tmp_path / "cache", request())
    job.init()
    synced_files: set[tuple[int, int]] = set()
    synced_folders: dict[str, set[str]] = {}
    real_sync, real_create = os.fsync, LocalStorage.create
    checked = 0

    def sync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        real_sync(descriptor)
        if os.path.isdir(path):
            synced_folders[path] = set(os.listdir(path))
        else:
            found = os.fstat(descriptor)
            synced_files.add((found.st_ino, found.st_size))

    def create(self: LocalStorage, key: str, data: bytes) -> bool:
        nonlocal checked
        if "/ledger/" in key:
            segment = key.split("/ledger/")[0]
            for name, proof in json.loads(data)["content"]["files"].items():
                file = self.path(f"{segment}/{name}")
                found = file.stat()
                assert (found.st_ino, found.st_size) in synced_files and found.st_size == proof["bytes"]
                for parent in list(file.parents)[: len(file.relative_to(self.root).parts)]:
                    assert file.name in synced_folders[str(parent)], f"{file.name} is not safe in {parent}"
                    file = parent
                checked += 1
        return real_create(self, key, data)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(LocalStorage, "create", create)
    job.extract()
    assert checked > 4
    assert contents(tmp_path / "cache") == contents(reference)


def test_more_utterances_are_a_new_segment(speech: Path, reference: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    Job(speech, place, request(), limit=10).extract()
    first = {key: data for key, data in contents(place).items() if key.startswith("segments/000000")}
    assert Job(speech, place, request(), limit=10).extract() is None
    Job(speech, place, request()).extract()
    cache, whole = featcache.open(place), featcache.open(reference)
    assert list(cache.ids) == list(whole.ids) and len(cache.segments) == 2 and verify(place).whole
    assert first.items() <= contents(place).items()
    for utterance_id in cache.ids:
        assert np.array_equal(cache.read(utterance_id), whole.read(utterance_id))


def test_other_values_never_mix_in(speech: Path, reference: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    Job(speech, place, request(), limit=10).extract()
    padded = UpstreamConfig(id="package:whisper-tiny.en", window="pad")
    with pytest.raises(MismatchError, match="window 'pad' is asked for"):
        Job(speech, place, request(upstream=padded)).extract()
    with pytest.raises(MismatchError, match="profile 'fp16' is asked for"):
        Job(speech, place, request(profile="fp16")).extract()
    with pytest.raises(MismatchError, match="profile 'residual:1.5' is asked for"):
        Job(speech, place, Request(upstream=TINY, profile="residual", parameters={"bits": 1.5})).extract()
    # Even where the request agrees, what the model itself says is compared.
    job = Job(speech, place, request())
    job.upstream.identity = {**job.upstream.identity, "autocast": "bfloat16"}
    before = contents(place)
    with pytest.raises(MismatchError, match="autocast: 'float32' -> 'bfloat16'"):
        job.extract()
    assert {k: v for k, v in contents(place).items() if k in before} == before


def test_the_values_id_ignores_what_decides_no_value(speech: Path, reference: Path, tmp_path: Path) -> None:
    batches = Layout(chunk_frames=16, shard_frames=512, batch_seconds=30)
    spec = Job(speech, tmp_path / "b", request("fp16", layout=batches)).init()
    assert spec.values_id == featcache.open(reference).values_id
    padded = UpstreamConfig(id="package:whisper-tiny.en", window="pad")
    assert Job(speech, tmp_path / "p", request(upstream=padded)).init().values_id != spec.values_id
    fewer = UpstreamConfig(id="package:whisper-tiny.en", taps=("0", "final"))
    assert Job(speech, tmp_path / "t", request(upstream=fewer)).init().values_id != spec.values_id


def test_the_plan_predicts_the_bytes(speech: Path, reference: Path, tmp_path: Path) -> None:
    job = Job(speech, tmp_path / "c", Request(upstream=TINY, profile="int8", calibration_seconds=20))
    job.init()
    found = outlook(job)
    assert found.planned == 24 and found.seconds is not None and found.unusable[0][0] == "empty"
    job.extract()
    shards = sum(segment.seal.shard_bytes for segment in featcache.open(tmp_path / "c").segments)
    assert abs(found.bytes - shards) < 0.1 * shards
    assert {size.profile for size in found.profiles} == set(forecast.PROFILES)
    # As many in the manifest as are planned here, so the two lines are of the same thing.
    assert found.profiles[0].bytes == found.bytes
    sizes = [size.bytes for size in found.profiles[1:]]
    assert sizes == sorted(sizes, reverse=True)
    assert info(featcache.open(tmp_path / "c"))["bytes"] == sum(map(len, contents(tmp_path / "c").values()))


def test_strict_stops_at_the_first_bad_row(speech: Path, tmp_path: Path) -> None:
    with pytest.raises(JobError, match="'empty' cannot be used"):
        Job(speech, tmp_path / "c", request()).extract(strict=True)


def test_strict_takes_no_cache_for_complete_that_lacks_a_row_of_the_manifest(speech: Path, tmp_path: Path) -> None:
    Job(speech, tmp_path / "c", request()).extract()
    with pytest.raises(JobError, match="'empty' cannot be used: empty file .*complete without it.*featcache forget"):
        Job(speech, tmp_path / "c", request()).extract(strict=True)
    rows = [row for row in manifest.read(speech) if row.id != "empty"]
    manifest.write(speech.parent / "rest.jsonl", rows)
    assert Job(speech.parent / "rest.jsonl", tmp_path / "c", request()).extract(strict=True) is None


@pytest.mark.parametrize("what", ["missing", "too long", "not finite"])
def test_a_bad_recording_is_left_out_and_the_rest_goes_on(speech: Path, tmp_path: Path, what: str) -> None:
    rows = manifest.read(speech)[1:8]
    rows = [row.model_copy(update={"audio_filepath": str(manifest.resolve(row, speech))}) for row in rows]
    if what == "missing":
        rows[2] = rows[2].model_copy(update={"audio_filepath": "gone.wav"})
    elif what == "too long":
        rows[2] = rows[2].model_copy(update={"duration": rows[2].duration + 0.5})
    manifest.write(tmp_path / "m.jsonl", rows)
    job = Job(tmp_path / "m.jsonl", tmp_path / "c", request())
    if what == "not finite":
        job.init()
        real = job.upstream._features
        length = audio.samples_of(rows[2].duration)

        def features(inputs: Padded) -> torch.Tensor:
            output = real(inputs)
            for row, samples in enumerate(inputs.lengths):
                if samples == length:
                    output[row, 0, 2, 5] = torch.nan
            return output

        job.upstream._features = features  # type: ignore[method-assign]
    done = job.extract()
    assert done is not None and [q.id for q in done.quarantined] == [rows[2].id]
    assert what != "not finite" or "tap 2" in done.quarantined[0].reason
    cache = featcache.open(tmp_path / "c")
    assert [i for i in cache.ids if cache.lengths[cache.row(i)] == 0] == [rows[2].id]


def test_repair_computes_exactly_what_is_broken(speech: Path, reference: Path, tmp_path: Path) -> None:
    place = tmp_path / "cache"
    shutil.copytree(reference, place)
    shard = place / "segments/000000/codes/c/1/0/0"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (place / "segments/000000/codes/c/3/0/0").unlink()
    (place / "segments/000000/index/frames/c/0").write_bytes(b"x")
    (place / "segments/000000/ledger/000002.json").write_bytes(b"{}")
    untouched = (place / "segments/000000/codes/c/0/0/0").stat().st_mtime_ns
    repaired = repair(speech, place)
    assert len(repaired) == 4
    assert contents(place) == contents(reference)
    assert (place / "segments/000000/codes/c/0/0/0").stat().st_mtime_ns == untouched
    assert repair(speech, place) == []


def test_a_full_disk_stops_the_job_and_it_goes_on_later(
    speech: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(speech, tmp_path / "c", request())
    job.init()
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "free_bytes", lambda self: 1000)
        with pytest.raises(JobError, match="needs about .* free some space"):
            job.extract()
    real = LocalStorage.write
    count = 0

    def write(self: LocalStorage, key: str, data: bytes) -> None:
        nonlocal count
        count += "/c/" in key
        if count == 3:
            raise JobError(f"no space left to write {key}")
        real(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "write", write)
        with pytest.raises(JobError, match="no space left"):
            Job(speech, tmp_path / "c", request()).extract()
    assert 0 < len(list((tmp_path / "c").glob("segments/*/ledger/*.json"))) < 5
    Job(speech, tmp_path / "c", request()).extract()
    assert contents(tmp_path / "c") == contents(reference)


def test_an_unfinished_segment_is_not_finished_with_another_manifest(speech: Path, tmp_path: Path) -> None:
    job = Job(speech, tmp_path / "c", request())
    job.init()
    job.writer.begin()
    with pytest.raises(MismatchError, match="was begun for 24 utterances.*featcache gc"):
        Job(speech, tmp_path / "c", request(), limit=5).extract()


def test_wrong_places_and_missing_models_are_one_line(speech: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--upstream"):
        Job(speech, tmp_path / "c", Request()).init()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="thesis.tex"):
        Job(speech, tmp_path / "full", request()).init()
    with pytest.raises(FeatcacheError, match="nothing/m.jsonl"):
        Job(tmp_path / "nothing/m.jsonl", tmp_path / "c", request()).init()


def test_a_failure_in_any_stage_ends_the_run(speech: Path, tmp_path: Path) -> None:
    job = Job(speech, tmp_path / "c", request())
    job.init()
    job.writer.begin()

    def broken(waves: object) -> object:
        raise RuntimeError("the model broke")

    job.upstream._features = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the model broke"):
        run_shards(job.writer, job.new_rows, speech, job.upstream, range(job.plan.shards))
    assert not list((tmp_path / "c").glob("segments/*/ledger/*.json"))
    assert not list((tmp_path / "c").glob("segments/*/leases/*"))


def test_the_codec_leaves_the_cores_to_the_model(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoding beside forward passes uses one thread, and what is set for it is set for no other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    seen: list[int] = []
    encode = Int8.encode

    def watched(codec: Int8, features: np.ndarray) -> EncodedRow:
        seen.append(torch.get_num_threads())
        return encode(codec, features)

    try:
        job = Job(speech, tmp_path / "c", request())
        job.init()
        monkeypatch.setattr(Int8, "encode", watched)
        job.extract()
        assert seen and set(seen) == {1}
        assert torch.get_num_threads() == max(2, threads)
    finally:
        torch.set_num_threads(threads)
