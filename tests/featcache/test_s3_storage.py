"""A cache opened where it lies: the same values through a bounded local cache, and clear errors."""

from __future__ import annotations

import asyncio
import json
import pickle
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from zarr.abc.store import RangeByteRequest
from zarr.core.buffer import default_buffer_prototype

import featcache
from featcache import s3_storage
from featcache.errors import CacheError, CorruptCacheError, JobError, UsageError
from featcache.forget import forget
from featcache.forgotten import FORGOTTEN
from featcache.inspect import info
from featcache.lease import Leases
from featcache.push import push
from featcache.s3 import S3Settings, S3Url, explain, using
from featcache.s3_storage import S3Storage
from featcache.spec import Layout
from featcache.storage import LocalStorage, open_storage
from featcache.verify import verify
from tests.helpers import make_cache, run_cli
from tests.s3 import IMPATIENT, KEYS, Bucket, Wire

RNG = np.random.default_rng(6)
FEATURES = {f"u{i}": RNG.standard_normal((90, 3, 64)).astype(np.float32) for i in range(12)}
LABELS = {name: {"lang": "it" if i % 2 else "en", "text": f"words of {name}"} for i, name in enumerate(FEATURES)}
SHARD = "segments/000000/values/c/0/0/0"


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("s3") / "cache"
    return make_cache(place, FEATURES, LABELS, layout=Layout(chunk_frames=16, shard_frames=192))


@pytest.fixture
def url(sealed: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(tmp_path / "blocks"))
    for path in sealed.rglob("*"):
        if path.is_file():
            bucket.put(f"a/cache/{path.relative_to(sealed).as_posix()}", path.read_bytes())
    return f"{bucket.url}/a/cache"


def test_it_reads_as_it_does_locally(sealed: Path, url: str) -> None:
    local, remote = featcache.open(sealed), featcache.open(url)
    assert remote.path == url and list(remote.ids) == list(local.ids) and remote.labels("text") == local.labels("text")
    assert remote.complete and info(remote) | {"path": ""} == info(local) | {"path": ""}
    for name in FEATURES:
        np.testing.assert_array_equal(remote.read(name), local.read(name))
    again = pickle.loads(pickle.dumps(remote))
    np.testing.assert_array_equal(again.read("u3", ["2"]), local.read("u3", ["2"]))
    report = verify(url)
    assert report.whole and report.files == verify(sealed).files


def test_the_commands_work_on_it(url: str) -> None:
    assert '"utterances": 12' in run_cli("info", "--json", url).out
    assert run_cli("ls", url, "--where", "lang=it", "--json").out.count("\n") == 6
    assert '"shape": [\n    90,' in run_cli("show", url, "u2", "--json").out
    assert "whole" in run_cli("verify", url).out and "complete: yes" in run_cli("status", url).out


def test_the_options_go_before_the_environment(
    url: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["[lab]", *(f"{name.lower()} = {value}" for name, value in KEYS.items())]
    (tmp_path / "credentials").write_text("\n".join(lines))
    for name in [*KEYS, "AWS_REGION"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    options = ("--endpoint-url", bucket.server.endpoint, "--region", "us-east-1", "--profile", "lab")
    commands = (
        ("info", url), ("ls", url), ("show", url, "u2"), ("stats", url), ("status", url), ("verify", url),
        ("gc", url, "--dry-run"), ("pull", url, tmp_path / "copy"), ("diff", url, tmp_path / "copy"),
        ("subset", url, f"{url}-it", "--where", "lang=it"), ("merge", url, f"{url}-it", f"{url}-both", "--dry-run"),
        ("forget", f"{url}-it", "--where", "id=u1"),
    )  # fmt: skip
    for command in commands:
        done = run_cli(*command, *options)
        assert done.status == 0, (command, done.err)
    # What is sent to another process reaches the same server, by the profile's name.
    with using(S3Settings(bucket.server.endpoint, "lab", "us-east-1")):
        sent = pickle.dumps(featcache.open(url))
    assert pickle.loads(sent).read("u3").shape == (90, 3, 64)
    assert not any(value.encode() in sent for value in KEYS.values())
    # And after the command the environment counts again.
    monkeypatch.setattr(s3_storage, "RETRIES", IMPATIENT)
    assert S3Settings.find() == S3Settings("http://127.0.0.1:9", None, None)
    done = run_cli("info", url, "--profile", "lab")
    assert done.status == 1 and "the server cannot be reached" in done.err


def test_blocks_are_kept_within_the_limit_and_mended(
    sealed: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "blocks"
    monkeypatch.setenv("FEATCACHE_BLOCKS_GB", "0.0002")
    local, remote = featcache.open(sealed), featcache.open(url)
    for _ in range(2):
        for row in range(12):
            np.testing.assert_array_equal(remote.read(row), local.read(row))
            kept = [path for path in folder.rglob("*") if path.is_file()]
            assert 0 < sum(path.stat().st_size for path in kept) <= 200_000
    # Four zeros are the checksum of nothing.
    for size in (None, 4):
        for path in kept:
            path.write_bytes(bytes(path.stat().st_size if size is None else size))
        np.testing.assert_array_equal(featcache.open(url).read(11), local.read(11))
        kept = [path for path in folder.rglob("*") if path.is_file()]
    monkeypatch.setenv("FEATCACHE_BLOCKS_GB", "0")
    np.testing.assert_array_equal(featcache.open(url).read(11), local.read(11))


def test_what_was_read_once_is_not_fetched_again(url: str, bucket: Bucket) -> None:
    wire = Wire(bucket.server.port)
    storage = S3Storage(S3Url.parse(url), S3Settings.find(endpoint=wire.endpoint))
    cache = featcache.Cache.open(url)
    for segment in cache.segments:
        segment.storage = storage
    first = [cache.read(row) for row in range(12)]
    wire.cut()
    for row in range(12):
        np.testing.assert_array_equal(cache.read(row), first[row])


def test_whatever_way_zarr_reads_goes_through_the_blocks(url: str, bucket: Bucket) -> None:
    """Some versions read several parts of a file at a time, by methods of their own."""
    wire = Wire(bucket.server.port)
    storage = S3Storage(S3Url.parse(url), S3Settings.find(endpoint=wire.endpoint))
    store, prototype = storage.zarr(), default_buffer_prototype()
    parts = [RangeByteRequest(0, 100), RangeByteRequest(300, 400), None]

    async def read() -> list[bytes]:
        found = await store.get_partial_values(prototype, [(SHARD, part) for part in parts])
        if hasattr(store, "get_ranges"):
            by_number = {}
            async for group in store.get_ranges(SHARD, parts, prototype=prototype):
                by_number.update(group)
            assert [by_number[i].to_bytes() for i in range(3)] == [buffer.to_bytes() for buffer in found]
        return [buffer.to_bytes() for buffer in found]

    expected = asyncio.run(read())
    assert expected == [bucket.files()[f"a/cache/{SHARD}"][part] for part in (slice(100), slice(300, 400), slice(None))]
    wire.cut()
    assert asyncio.run(read()) == expected


def test_damage_is_an_error_that_names_the_shard(url: str, bucket: Bucket) -> None:
    key = f"a/cache/{SHARD}"
    good = bucket.files()[key]
    damaged = bytearray(good)
    damaged[100] ^= 1
    bucket.put(key, bytes(damaged))
    with pytest.raises(CorruptCacheError, match="values/c/0/0/0 is damaged"):
        featcache.open(url).read("u0")
    assert [problem.key for problem in verify(url).problems] == [SHARD]
    bucket.delete(key)
    with pytest.raises(CorruptCacheError, match="values/c/0/0/0 is missing"):
        featcache.open(url).read("u0")
    # mended while the cache is open: blocks of the damaged file are not taken for the new one's
    cache = featcache.open(url)
    bucket.put(key, good)
    assert cache.read("u0").shape == (90, 3, 64)


def test_a_file_that_is_replaced_while_it_is_read_is_an_error(url: str, bucket: Bucket) -> None:
    cache = featcache.open(url)
    assert cache.storage.size(SHARD)
    bucket.put(f"a/cache/{SHARD}", b"other bytes" * 1000)
    cache.segments[0]._checked[SHARD] = None
    with pytest.raises(CorruptCacheError, match="was replaced or removed while it was read"):
        cache.read("u0")


def test_a_server_that_goes_away_is_a_clear_error(url: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_storage, "RETRIES", IMPATIENT)
    wire = Wire(bucket.server.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
    cache = featcache.open(url)
    cache.read("u0")
    wire.cut()
    with pytest.raises(CacheError, match="the server cannot be reached: check the endpoint") as caught:
        cache.read("u11")
    assert not isinstance(caught.value, CorruptCacheError) and "\n" not in str(caught.value)


def test_mistakes_are_one_line(url: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(place: str, status: int, words: str) -> None:
        for command in ("info", "verify", "status"):
            done = run_cli(command, place)
            assert done.status == status and words in done.err and len(done.err.splitlines()) == 1, done.err
            assert not any(value in done.err for value in KEYS.values())

    fails(f"{bucket.url}/elsewhere", 1, "there is no cache at s3://")
    fails("s3://no-such-bucket-here/x", 1, "there is no such bucket")
    with bucket.server.only_known_keys():
        fails(url, 1, "the keys are refused as wrong or expired")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    for name in KEYS:
        monkeypatch.delenv(name)
    fails(url, 2, "profile nobody holds no keys")


def test_one_of_many_creates_and_leases_work(bucket: Bucket) -> None:
    storage = open_storage(f"{bucket.url}/x")
    barrier, won = threading.Barrier(6), []

    def attempt(number: int) -> None:
        barrier.wait()
        won.append(storage.create("lease", str(number).encode()))

    threads = [threading.Thread(target=attempt, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 1 and storage.read("lease") is not None
    mine, theirs = Leases(storage), Leases(storage)
    assert mine.acquire("leases/1") and not theirs.acquire("leases/1")
    mine.check("leases/1")
    mine.close()
    assert theirs.acquire("leases/1")
    theirs.close()


def test_keys_are_listed_as_they_are_locally(bucket: Bucket, tmp_path: Path) -> None:
    remote, local = open_storage(bucket.url), LocalStorage(tmp_path / "local")
    for storage in (remote, local):
        for key in ("a", "b/2", "b/1", "b/c d/3", "bb/4"):
            storage.write(key, key.encode())
        storage.delete("a")
        storage.delete("never there")
        assert list(storage.list_keys()) == ["b/1", "b/2", "b/c d/3", "bb/4"]
        assert list(storage.list_keys("b")) == ["b/1", "b/2", "b/c d/3"]
        assert storage.folders("") == ["b", "bb"] and storage.folders("b") == ["c d"] and storage.folders("x") == []
        assert storage.size("b/1") == 3 and storage.size("x") is None and storage.read("x") is None
        assert storage.read("b/c d/3") == b"b/c d/3" and storage.exists("bb/4") and not storage.exists("b")
        storage.delete_folder("b")
        assert list(storage.list_keys()) == ["bb/4"]


def test_push_and_pull_are_between_a_folder_and_s3(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is on S3"):
        push(url, url)
    with pytest.raises(JobError, match="no such bucket"):
        open_storage("s3://no-such-bucket-here/x").write("a", b"1")


def test_extraction_writes_straight_to_s3_and_goes_on_after_losing_the_server(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = []
    for i in range(8):
        soundfile.write(tmp_path / f"{i}.wav", RNG.standard_normal(48_000) * 0.1, 16_000)
        lines.append(json.dumps({"audio_filepath": f"{i}.wav", "duration": 3.0, "lang": "en"}) + "\n")
    manifest, local, url = tmp_path / "m.jsonl", tmp_path / "local", f"{bucket.url}/made"
    manifest.write_text("".join(lines))
    options = ("--upstream", "mel:80", "--profile", "fp16")
    assert run_cli("extract", manifest, local, *options).status == 0
    wire = Wire(bucket.server.port, cut_after=60_000)
    with monkeypatch.context() as patch:
        patch.setattr(s3_storage, "RETRIES", IMPATIENT)
        patch.setenv("AWS_ENDPOINT_URL", wire.endpoint)
        done = run_cli("extract", manifest, url, *options)
    assert wire.is_cut and done.status == 1 and "the server cannot be reached" in done.err.splitlines()[-1], done.err
    assert not any("seal.json" in key for key in bucket.files("made"))
    done = run_cli("extract", manifest, url, *options)
    assert done.status == 0 and done.out.splitlines()[-1] == url, done.err
    made = {key: data for key, data in bucket.files("made").items() if not key.startswith("log/")}
    files = (path for path in local.rglob("*") if path.is_file() and "log" not in path.relative_to(local).parts)
    assert made == {path.relative_to(local).as_posix(): path.read_bytes() for path in files}


def test_a_person_is_forgotten_on_s3_as_on_disk(sealed: Path, url: str, tmp_path: Path) -> None:
    local = tmp_path / "cache"
    shutil.copytree(sealed, local)
    for place in (str(local), url):
        assert run_cli("forget", place, "--where", "lang=it").status == 0
        assert verify(place).whole and set(featcache.open(place).labels("lang")) == {"en"}
    here, there = LocalStorage(local), open_storage(url)
    keys = {key for key in here.list_keys() if not key.startswith("log/")}
    assert keys == {key for key in there.list_keys() if not key.startswith("log/")}
    assert all(here.read(key) == there.read(key) for key in keys)


@pytest.mark.parametrize("gigabytes", ["0", "1"])
def test_a_process_that_has_it_open_reads_no_other_recordings_once_something_was_forgotten(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gigabytes: str
) -> None:
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(tmp_path / "blocks"))
    monkeypatch.setenv("FEATCACHE_BLOCKS_GB", gigabytes)
    # Shards of two recordings, all of the same size in bytes, whichever two they hold.
    features = {f"u{i}": np.full((96, 3, 64), 1 + i / 8, np.float32) for i in range(8)}
    push(make_cache(tmp_path / "cache", features, layout=Layout(chunk_frames=16, shard_frames=192)), bucket.url)
    before, opened = featcache.open(bucket.url), featcache.open(bucket.url)
    values = {name: before.read(name) for name in features}
    opened.read("u0")
    sizes = opened.segments[0].column("shard_bytes").tolist()
    forget(bucket.url, {"id": {"u0"}})
    assert featcache.open(bucket.url).segments[0].column("shard_bytes").tolist() == sizes
    for cache, name in ((cache, name) for cache in (opened, before) for name in features):
        try:
            assert np.array_equal(cache.read(name), values[name]), name
        except CacheError as error:
            assert "is not the one that this process has opened" in str(error)
        else:
            # Blocks that were kept are of what was opened.
            assert gigabytes != "0" and (cache is before or name in ("u0", "u1"))


def test_a_removal_killed_while_it_moved_a_segment_does_not_take_the_new_one_for_forgotten(
    sealed: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    delete = S3Storage.delete

    def killed(self: S3Storage, key: str) -> None:
        if key == "forget/000000/seal.json":
            raise Killed
        delete(self, key)

    local = tmp_path / "cache"
    shutil.copytree(sealed, local)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(S3Storage, "delete", killed)
        forget(url, {"id": {"u3"}})
    forget(url, {"id": {"u3"}})
    forget(local, {"id": {"u3"}})
    assert open_storage(url).read(FORGOTTEN) == LocalStorage(local).read(FORGOTTEN)
    assert push(local, url).files == 0


def test_what_a_server_says_is_told_from_what_its_client_says_and_from_names() -> None:
    own = (
        "Generic S3 error: Error performing HEAD http://geoffrey:403/503/x in 5ms - Server returned {}\n\nDebug source:"
    )
    own += '\nRetryErrorImpl {{ method: HEAD, retry_timeout: 30s, inner: Status {{ status: 400, body: Some("{}") }} }}'
    for status, body, words in (
        ("non-2xx status code: 400 Bad Request: ", "", "s3://b: Generic S3 error: Error performing HEAD"),
        (
            "non-2xx status code: 400 Bad Request: ExpiredToken",
            "ExpiredToken",
            "the keys are refused as wrong or expired",
        ),
        ("non-2xx status code: 403 Forbidden", "", "the keys may not do this"),
        ("error status: 503 Slow Down", "", "the server is overloaded"),
    ):
        assert words in str(explain(own.format(status, body), "s3://b"))


def test_expired_keys_are_named_also_where_only_a_size_is_asked_for(
    url: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(url)
    head = storage._obstore.head  # type: ignore[attr-defined]

    def refused(*given: object) -> None:
        raise storage._obstore.exceptions.GenericError("400 Bad Request, without a body")  # type: ignore[attr-defined]

    monkeypatch.setattr(storage._obstore, "head", refused)  # type: ignore[attr-defined]
    with bucket.server.only_known_keys(), pytest.raises(CacheError, match="the keys are refused as wrong or expired"):
        storage.size(SHARD)
    monkeypatch.setattr(storage._obstore, "head", head)  # type: ignore[attr-defined]
    assert storage.size(SHARD)


def kept(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def test_blocks_of_what_was_forgotten_do_not_stay(
    sealed: Path, url: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "blocks", tmp_path / "elsewhere"
    old = bucket.files()[f"a/cache/{SHARD}"]
    other = f"{bucket.url}/other"
    push(sealed, other)
    for folder in (elsewhere, here):
        monkeypatch.setenv("FEATCACHE_BLOCKS", str(folder))
        for place in (url, other):
            featcache.open(place).read("u0")
        assert kept(folder).count(old) == 2
    forget(url, {"id": {"u0"}})
    # At once where it was forgotten, elsewhere when the cache is opened again; those of another cache stay.
    assert kept(here).count(old) == 1 and kept(elsewhere).count(old) == 2
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(elsewhere))
    featcache.open(url)
    assert kept(elsewhere).count(old) == 1
    assert featcache.open(url).read("u1").shape == featcache.open(other).read("u1").shape
    assert "u0" not in featcache.open(url).ids
