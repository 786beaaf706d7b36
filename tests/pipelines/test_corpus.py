"""What a corpus would take: as much as a real cache holds, and as many requests as real work makes."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import featcache
from featcache import layout, s3_storage
from featcache.blocks import Blocks
from featcache.errors import UsageError
from featcache.job import Job, Request
from featcache.push import push
from featcache.rates import RATES
from featcache.spec import Layout
from featcache.storage import LocalStorage
from featcache.store import Cache
from featcache.upstreams import UpstreamConfig
from pipelines.cli import app
from pipelines.corpus import trial
from pipelines.corpus.estimate import Question, block_requests, check, estimate, put_requests
from tests.helpers import make_speech
from tests.s3 import Bucket

COUNT = 80
SMALL = Layout(chunk_frames=16, shard_frames=1024)


def extract(folder: Path, profile: str = "int8") -> Path:
    """A real cache of several shards: log-mel of noise, with labels."""
    place = folder / "cache"
    made = Job(
        make_speech(folder, COUNT), place, Request(UpstreamConfig(id="mel:80"), profile=profile, layout=SMALL)
    ).extract()
    assert made is not None and made.shards > 5
    return place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return extract(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def cache(place: Path) -> Cache:
    return featcache.open(place)


def test_a_real_cache_holds_what_is_predicted_of_it(cache: Cache, tmp_path: Path) -> None:
    for one in (cache, featcache.open(extract(tmp_path, "fp16"))):
        rows = check(one)
        assert {row.kind for row in rows} == {*trial.KINDS, "in all"} - {trial.LEASES}
        assert [row.objects for row in rows] == [row.objects_held for row in rows]
        for row in rows:
            assert row.bytes == pytest.approx(row.bytes_held, rel=0.05), row
        assert rows[-1].bytes == pytest.approx(rows[-1].bytes_held, rel=0.02)


def test_a_corpus_of_the_caches_own_hours_is_the_cache(cache: Cache) -> None:
    hours = float(cache.seconds.sum()) / 3600
    found = estimate(cache, Question(hours=hours, utterance_seconds=0, realtime=100))
    own = found.profiles[0]
    held = [key for key in cache.storage.list_keys() if not key.startswith("log/")]
    assert (found.utterances, found.segments, own.profile) == (COUNT, 1, "int8")
    assert sum(own.objects.values()) == len(held)
    assert own.bytes == pytest.approx(sum(cache.storage.size(key) or 0 for key in held), rel=0.02)
    assert found.frames == cache.lengths.sum()
    assert found.gpu_hours == pytest.approx(hours / 100)
    assert {row.profile for row in found.profiles} == {"int8", *cache.spec.forecasts}
    residual = next(row for row in found.profiles if row.profile.startswith("residual"))
    assert residual.objects["shards"] == 2 * residual.shards  # two planes


def test_real_work_writes_and_reads_as_often_as_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()
    for name, verb in (("write", "PUT"), ("create", "PUT"), ("delete", "DELETE")):
        real = getattr(LocalStorage, name)

        def counted(self: LocalStorage, key: str, *data: bytes, real: object = real, verb: str = verb) -> object:
            if not key.startswith("log/"):
                asked[verb] += 1
            return real(self, key, *data)  # type: ignore[operator]

        monkeypatch.setattr(LocalStorage, name, counted)
    cache = featcache.open(extract(tmp_path))
    samples = np.round(cache.seconds * 16_000).astype(np.int64)
    found = trial.write(cache, cache.spec, cache.codec, samples, cache.codec.bytes_per_frame)
    assert {verb: found.requests[verb] for verb in asked} == dict(asked)


def test_a_long_segment_is_more_of_a_short_one(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.full(3000, 16_000, np.int64)
    arguments = cache, cache.spec, cache.codec, samples, cache.codec.bytes_per_frame
    monkeypatch.setattr(layout, "INDEX_CHUNK", 1000)
    whole = trial.write(*arguments)
    monkeypatch.setattr(trial, "UTTERANCES", 600)
    scaled = trial.write(*arguments)
    assert scaled.objects["index"] > 40
    for kind, count in whole.objects.items():  # later ids are longer: they have a number
        assert scaled.objects[kind] == pytest.approx(count, rel=0.05), kind
    assert (scaled.shards, scaled.rows, scaled.frames) == (whole.shards, whole.rows, whole.frames)
    for verb, count in whole.requests.items():
        assert scaled.requests[verb] == pytest.approx(count, rel=0.02), verb
    for kind, size in whole.bytes.items():
        assert scaled.bytes[kind] == pytest.approx(size, rel=0.2), kind
    twice = whole.times(2)
    assert twice.objects["shards"] == 2 * whole.objects["shards"]
    assert twice.objects["cache"] == whole.objects["cache"]


def test_blocks_of_a_row() -> None:
    frames, chunk, size, block = 50, 16, 100.0, 4096
    counts = []
    for first in range(chunk * block):
        low, high = first // chunk * chunk * size, -(-(first + frames) // chunk) * chunk * size
        counts.append(-(-high // block) - low // block)
    assert block_requests(frames, size, chunk, block) == pytest.approx(np.mean(counts), rel=0.01)


def test_a_pass_over_s3_brings_as_many_blocks_as_predicted(
    place: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore")
    block, brought = 4096, 0
    push(place, bucket.url)
    monkeypatch.setattr(s3_storage, "BLOCK_BYTES", block)
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(tmp_path / "blocks"))
    real = Blocks.put

    def counted(self: Blocks, name: str, data: bytes) -> None:
        nonlocal brought
        brought += "/codes/" in name
        real(self, name, data)

    monkeypatch.setattr(Blocks, "put", counted)
    cache = featcache.open(bucket.url)
    rows = np.random.default_rng(1).permutation(len(cache))[:40].tolist()
    for row in rows:
        cache.read(row)
        shutil.rmtree(tmp_path / "blocks")  # by the next time, others have taken their place
    coded = cache.segments[0].seal.shard_bytes / cache.lengths.sum()
    predicted = sum(block_requests(int(cache.lengths[row]), coded, SMALL.chunk_frames, block) + 1 for row in rows)
    assert brought == pytest.approx(predicted, rel=0.1)


def test_requests_of_a_large_object() -> None:
    assert [put_requests(size, 100) for size in (1, 100, 101, 200, 201)] == [1, 1, 4, 4, 5]


def test_figures_follow_from_the_options(cache: Cache) -> None:
    one = estimate(cache, Question(hours=2, realtime=100, gpus=10))
    assert one.gpu_hours == pytest.approx(0.02) and one.gpu_dollars == pytest.approx(0.04)
    assert one.days == pytest.approx(0.02 / 10 / 24)
    many = estimate(cache, Question(hours=2, realtime=100, taps=13, channels=768, put_dollars=50, get_dollars=4))
    for small, large in zip(one.profiles, many.profiles, strict=True):
        assert large.shard_bytes == pytest.approx(13 * 768 / 80 * small.shard_bytes, rel=0.001)
        assert large.shards >= small.shards
        assert small.pass_dollars == pytest.approx(small.pass_requests * 0.4 / 1e6)
        assert small.storage_dollars == pytest.approx(small.bytes / 1e12 * 23)
        assert large.write_dollars >= 9.9 * small.write_dollars
    slow = estimate(cache, Question(hours=2, realtime=0.1))
    # Shards of 20 s of speech and more: leases are renewed.
    assert slow.profiles[0].requests["PUT"] > one.profiles[0].requests["PUT"]


def test_the_rate_is_the_caches_own_or_has_to_be_given(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = json.loads(cache.storage.read(RATES) or b"")["realtime"]
    found = estimate(cache, Question(hours=1))
    assert logged == {found.device: found.realtime}
    monkeypatch.setattr(LocalStorage, "read", lambda self, key: None)
    with pytest.raises(UsageError, match="--gpu-realtime"):
        estimate(cache, Question(hours=1))


def test_the_command_prints_what_it_assumes(place: Path) -> None:
    arguments = ["corpus", "--cache", str(place), "--hours", "2", "--gpu-realtime", "123"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    for text in ("720 utterances", "123 x real time (as given)", "storage 23 $", "int8", "residual:1.0"):
        assert text in shown.output
    found = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert found["utterances"] == 720 and found["question"]["gpu_dollars"] == 2.0
    checked = CliRunner().invoke(app, ["corpus", "--cache", str(place), "--check", "--json"])
    assert json.loads(checked.stdout)[-1]["kind"] == "in all"
    assert "difference" in CliRunner().invoke(app, ["corpus", "--cache", str(place), "--check"]).output


def test_an_amount_without_end_is_refused(place: Path) -> None:
    done = CliRunner().invoke(app, ["corpus", "--cache", str(place), "--hours", "inf", "--gpu-realtime", "1"])
    assert isinstance(done.exception, UsageError) and "--hours inf is not an amount" in str(done.exception)
