"""Several commands on one cache: what each may do while another is at work, and what a reader sees of it."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featcache import forget as forgetting
from featcache.contents import is_shard
from featcache.errors import CacheError, CorruptCacheError, MismatchError, UsageError
from featcache.forget import forget
from featcache.garbage import garbage
from featcache.job import Job, Request
from featcache.layout import ROOT
from featcache.lease import Lease
from featcache.manifest import read, write
from featcache.process import machine, started
from featcache.repair import repair
from featcache.spec import Layout
from featcache.storage import LocalStorage
from featcache.store import Cache
from featcache.turns import ADDITIONS, adding, alone, making
from featcache.upstreams import UpstreamConfig
from featcache.verify import verify
from tests.helpers import contents, make_speech

MEL = UpstreamConfig(id="mel:8")
# Shards of a second of speech.
SMALL = Layout(chunk_frames=16, shard_frames=64)
MakeJob = Callable[..., Job]


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("speech"), 12)


@pytest.fixture
def job(speech: Path, tmp_path: Path) -> MakeJob:
    """A job on `tmp_path/c`, with some of the speech."""

    def make(first: int = 0, end: int = 12) -> Job:
        manifest = speech.parent / f"{first}-{end}.jsonl"
        write(manifest, read(speech)[first:end])
        return Job(manifest, tmp_path / "c", Request(MEL, "fp16", layout=SMALL, calibration_seconds=2))

    return make


def test_many_add_and_one_takes_away(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    with adding(storage), adding(storage), pytest.raises(CacheError, match="added to by another"), alone(storage):
        pass
    with alone(storage):
        with pytest.raises(CacheError, match="another `featcache forget`, `gc` or `push`"), alone(storage):
            pass
        with pytest.raises(CacheError, match="at work on"), adding(storage):
            pass
    assert list(storage.list_keys()) == []


def test_a_killed_command_leaves_nothing_beside_those_that_come_after_it(tmp_path: Path) -> None:
    """Of one on another machine, and of one that stood still until its lease expired, nobody here knows the end."""
    storage, soon = LocalStorage(tmp_path), time.time() + 60
    dead = subprocess.Popen(["true"])
    dead.wait()
    leases = {
        "killed": Lease("", "x", soon, machine(), dead.pid, "1"),
        "elsewhere": Lease("", "y", soon, "another machine", 1, "1"),
        "still": Lease("", "z", time.time() - 1, machine(), os.getpid(), started(os.getpid())),
    }
    for name, lease in leases.items():
        storage.write(f"{ADDITIONS}/{name}", lease.to_bytes())
    with adding(storage):
        pass
    assert [key.rpartition("/")[2] for key in storage.list_keys()] == ["elsewhere", "still"]


def test_one_at_a_time_makes_a_cache(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    other: list[BaseException] = []

    def make_it_too() -> None:
        try:
            with making(storage):
                storage.write(ROOT, b"second")
        except CacheError as error:
            other.append(error)

    second = threading.Thread(target=make_it_too)
    with making(storage):
        second.start()
        second.join(0.5)
        assert second.is_alive() and not storage.exists(ROOT)
        storage.write(ROOT, b"first")
    second.join(10)
    assert [str(error).endswith("run the same command again") for error in other] == [True]
    assert storage.read(ROOT) == b"first" and list(storage.list_keys()) == [ROOT]


def test_of_two_plans_the_first_is_the_segments(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = job(0, 6), job(6, 12)
    mine.init()
    assert mine.writer.name == theirs.writer.name
    create = LocalStorage.create

    def overtaken(self: LocalStorage, key: str, data: bytes) -> bool:
        monkeypatch.setattr(LocalStorage, "create", create)
        theirs.writer.begin()
        return create(self, key, data)

    monkeypatch.setattr(LocalStorage, "create", overtaken)
    with pytest.raises(MismatchError, match="was begun for 6 utterances.*wait for the command that is at work"):
        mine.writer.begin()
    theirs.extract()
    with pytest.raises(MismatchError, match="is sealed and holds 6 utterances.*run this one again"):
        mine.extract()
    job(0, 6).extract()
    cache = Cache.open(mine.storage.address)
    assert sorted(cache.ids) == sorted(f"u{i}" for i in range(12)) and verify(cache.path).whole


def test_a_record_of_another_plan_counts_for_nothing(job: MakeJob) -> None:
    made = job(0, 6)
    made.extract()
    writer = made.writer
    record = writer.records()[1]
    assert writer._in_full(record)
    assert not writer._in_full(record.model_copy(update={"audio": record.audio[1:]}))
    assert not writer._in_full(record.model_copy(update={"first": record.first + 1}))


@pytest.mark.parametrize("remove", [garbage, forget])
def test_nothing_is_taken_away_while_an_extraction_is_at_work(
    remove: Callable[..., Any], job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(0, 6).extract()
    more = job()
    refused = []

    def look() -> None:
        # Begun, and no shard of it is leased yet.
        assert more.storage.exists("segments/000001/plan.json")
        with pytest.raises(CacheError, match="being added to by another command") as error:
            remove(more.storage.address, delete=True) if remove is garbage else remove(
                more.storage.address, {"id": {"u0"}}
            )
        refused.append(error)

    monkeypatch.setattr(more, "check_values", look)
    more.extract()
    assert refused and verify(more.storage.address).whole and len(Cache.open(more.storage.address)) == 12
    assert not list(more.storage.list_keys(ADDITIONS))


def test_no_garbage_is_removed_while_something_is_forgotten(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job(0, 6).extract()
    job().extract()
    place = job().storage.address
    write_anew, refused = forgetting._write_anew, []

    def look(*arguments: Any) -> None:
        with pytest.raises(CacheError, match="another `featcache forget`, `gc` or `push`") as error:
            garbage(place, delete=True)
        refused.append(error)
        write_anew(*arguments)

    monkeypatch.setattr(forgetting, "_write_anew", look)
    forget(place, {"id": {"u1", "u7"}})
    assert len(refused) == 2 and not {"u1", "u7"} & set(Cache.open(place).ids) and verify(place).whole


def test_a_removal_whose_new_segment_is_gone_does_not_say_that_it_is_done(
    job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job(0, 6).extract()
    place = job().storage.address
    replace = forgetting._replace

    def lost(storage: LocalStorage) -> None:
        storage.delete_folder("forget/000000")
        replace(storage)

    monkeypatch.setattr(forgetting, "_replace", lost)
    with pytest.raises(CorruptCacheError, match="forget/000000.*is gone"):
        forget(place, {"id": {"u1"}})


def test_what_a_seal_proves_is_there(job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(0, 6)
    made.init()
    run = made._run

    def shorn(*arguments: Any) -> Any:
        done = run(*arguments)
        for key in ("zarr.json", "plan.json", "codes/zarr.json"):
            made.storage.delete(f"segments/000000/{key}")
        return done

    monkeypatch.setattr(made, "_run", shorn)
    made.extract()
    assert verify(made.storage.address).whole and Cache.open(made.storage.address).read("u3").size


def test_what_garbage_is_not(job: MakeJob, tmp_path: Path) -> None:
    """The calibration before there is a seal, and whatever was named by something that is damaged."""
    made = job(0, 6)
    made.init()
    place = made.storage.address
    assert verify(place).unknown == garbage(place, delete=True) == []
    made.writer.begin()
    report = verify(place)
    assert report.unsealed == ["segments/000000"] and not report.unknown
    assert garbage(place, delete=True) == ["segments/000000"]
    job(0, 6).extract()
    job().extract()
    assert verify(place).whole and garbage(place, delete=True) == []
    for key in ("ledger/000001.json", "labels/proof.json", "seal.json"):
        copy = tmp_path / "copy"
        shutil.copytree(str(place), copy)
        file = copy / "segments/000001" / key
        file.write_bytes(file.read_bytes().replace(b"sha256", b"sha257", 1))
        before = contents(copy)
        with pytest.raises(CacheError, match=f"{key} is damaged.*nothing is removed: first run `featcache repair"):
            garbage(copy, delete=True)
        assert contents(copy) == before
        shutil.rmtree(copy)


def test_what_others_put_into_a_cache_is_never_sealed(job: MakeJob) -> None:
    made = job(0, 6)
    made.init()
    folders = [
        "calibration",
        "calibration/scale",
        "segments/000000",
        "segments/000000/@eaDir",
        "segments/000000/values",
    ]
    strays = [f"{folder}/.DS_Store" for folder in folders]
    for stray in strays:
        made.storage.write(stray, b"left by a file manager")
    made.extract()
    report = verify(made.storage.address)
    assert report.whole and sorted(report.unknown) == sorted(strays)
    assert sorted(garbage(made.storage.address, delete=True)) == sorted(strays)
    assert verify(made.storage.address).whole and not verify(made.storage.address).unknown


def test_a_segment_on_another_disk_is_forgotten_there(job: MakeJob, tmp_path: Path) -> None:
    job(0, 6).extract()
    segment, elsewhere = tmp_path / "c/segments/000000", tmp_path / "elsewhere"
    segment.rename(elsewhere)
    segment.symlink_to(elsewhere)
    forget(job().storage.address, {"id": {"u1"}})
    cache = Cache.open(job().storage.address)
    assert len(cache) == 5 and verify(cache.path).whole and not [p for p in elsewhere.rglob("*") if p.is_file()]
    # Or a folder inside it.
    (segment / "values").rename(elsewhere / "values")
    (segment / "values").symlink_to(elsewhere / "values")
    forget(job().storage.address, {"id": {"u2"}})
    assert len(Cache.open(cache.path)) == 4 and verify(cache.path).whole
    assert not [p for p in elsewhere.rglob("*") if p.is_file()]


def test_a_cache_that_lost_its_description_is_not_written_over(job: MakeJob) -> None:
    job(0, 6).extract()
    storage = job().storage
    storage.delete("zarr.json")
    before = {key: storage.read(key) for key in storage.list_keys()}
    with pytest.raises(UsageError, match="has lost its zarr.json and still holds segments/000000"):
        job().init()
    assert {key: storage.read(key) for key in storage.list_keys()} == before


def test_labels_that_are_gone_altogether_are_missed_and_mended(job: MakeJob) -> None:
    made = job(0, 6)
    made.extract()
    before = contents(made.storage.root)
    made.storage.delete_folder("segments/000000/labels")
    report = verify(made.storage.address)
    assert [problem.key for problem in report.problems] == ["segments/000000/labels/proof.json"]
    repair(made.manifest, str(made.storage))
    assert contents(made.storage.root) == before


def test_an_open_cache_never_gives_another_recordings_features(job: MakeJob) -> None:
    job().extract()
    place = job().storage.address
    known = Cache.open(place)
    before = {name: known.read(name) for name in known.ids}
    # The one has read everything, the other its index, the third nothing.
    indexed, fresh = Cache.open(place), Cache.open(place)
    assert indexed.row("u5") == 5 and len(indexed.lengths) == 12
    pickled = pickle.dumps(fresh)
    forget(place, {"id": {"u3"}})
    for cache in (known, indexed, fresh):
        for name in before:
            with pytest.raises(CacheError, match="something was taken out.*open it again"):
                cache.read(list(before).index(name))
    with pytest.raises(CacheError, match="something was taken out.*open it again"):
        pickle.loads(pickled)
    again = Cache.open(place)
    assert all(np.array_equal(again.read(name), before[name]) for name in before if name != "u3")


def test_an_open_cache_goes_on_after_a_repair_and_while_it_grows(job: MakeJob) -> None:
    job(0, 6).extract()
    cache = Cache.open(job().storage.address)
    before = [cache.read(row) for row in range(6)]
    pickled = pickle.dumps(cache)
    job().extract()
    for key in list(cache.storage.list_keys("segments/000000")):
        if is_shard(key):
            # The same bytes in another file, as a repair leaves them.
            cache.storage.write(key, cache.storage.read(key) or b"")
    assert all(np.array_equal(cache.read(row), before[row]) for row in range(6))
    worker = pickle.loads(pickled)
    assert len(worker) == 12 and all(np.array_equal(worker.read(row), before[row]) for row in range(6))
