"""One writer a shard; the dead give way, the living do not."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from featcache.errors import JobError
from featcache.lease import Lease, Leases, clear_dead
from featcache.process import machine, may_run, started
from featcache.storage import LocalStorage


def test_a_lease_is_held_once_and_free_after_release(tmp_path: Path) -> None:
    a, b = Leases(LocalStorage(tmp_path)), Leases(LocalStorage(tmp_path))
    assert a.acquire("x") and not b.acquire("x")
    a.check("x")
    with pytest.raises(JobError, match="was lost"):
        b.check("x")
    a.release("x")
    assert b.acquire("x")
    a.close()
    b.close()
    assert list(LocalStorage(tmp_path).list_keys()) == []


def test_a_lease_whose_answer_was_lost_is_ours(tmp_path: Path) -> None:
    """S3: the first request arrives, its answer does not, and the client's second one finds the name taken."""

    class Lossy(LocalStorage):
        def create(self, key: str, data: bytes) -> bool:
            super().create(key, data)
            return False

    ours, theirs = Leases(Lossy(tmp_path)), Leases(LocalStorage(tmp_path))
    assert ours.acquire("x") and not theirs.acquire("x")
    ours.check("x")
    ours.close()
    assert theirs.acquire("x")
    theirs.close()


def test_what_could_not_be_released_is_free_for_the_same_process(tmp_path: Path) -> None:
    class Gone(LocalStorage):
        def delete(self, key: str) -> None:
            raise JobError("the server is gone")

    first, second = Leases(Gone(tmp_path)), Leases(LocalStorage(tmp_path))
    assert first.acquire("x") and not second.acquire("x")
    first.close()
    assert second.acquire("x")
    second.close()


def test_a_running_process_renews_its_lease(tmp_path: Path) -> None:
    a, b = Leases(LocalStorage(tmp_path), ttl=0.3), Leases(LocalStorage(tmp_path), ttl=0.3)
    assert a.acquire("x")
    time.sleep(0.8)
    assert not b.acquire("x")
    a.check("x")
    a.close()
    b.close()


def test_exactly_one_takes_over_from_the_dead(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    for round_ in range(20):
        key = f"x{round_}"
        storage.write(key, Lease(key, "dead", time.time() - 1).to_bytes())
        claimants = [Leases(storage) for _ in range(6)]
        barrier = threading.Barrier(len(claimants))
        won: list[bool] = []

        def attempt(
            leases: Leases, key: str = key, barrier: threading.Barrier = barrier, won: list[bool] = won
        ) -> None:
            barrier.wait()
            won.append(leases.acquire(key))

        threads = [threading.Thread(target=attempt, args=(leases,)) for leases in claimants]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(won) == 1
        for leases in claimants:
            leases.close()
    assert list(storage.list_keys()) == []


def test_a_takeover_that_died_half_way_is_taken_over_too(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    dead = Lease("x", "dead", time.time() - 1)
    storage.write("x", dead.to_bytes())
    from featcache.digest import sha256

    marker = f"x.{sha256(dead.to_bytes())[:16]}"
    storage.write(marker, Lease(marker, "also dead", time.time() - 1).to_bytes())
    leases = Leases(storage)
    assert leases.acquire("x")
    leases.close()


def test_a_dead_process_of_this_machine_is_not_waited_for(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    code = (
        "import sys, os; from featcache.lease import Leases; from featcache.storage import LocalStorage; "
        "assert Leases(LocalStorage(sys.argv[1]), ttl=600).acquire('x'); os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    assert storage.exists("x")
    leases = Leases(storage)
    assert leases.acquire("x")
    leases.close()


def test_only_dead_leases_are_cleared(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    leases = Leases(storage)
    assert leases.acquire("leases/mine")
    storage.write("leases/other", Lease("", "x", time.time() + 60, "another machine", 1, "0").to_bytes())
    storage.write("leases/old", Lease("", "x", time.time() - 1, "another machine", 1, "0").to_bytes())
    clear_dead(storage, "leases")
    assert list(storage.list_keys()) == ["leases/mine", "leases/other"]
    leases.close()


def test_a_killed_process_is_dead_before_its_parent_has_asked() -> None:
    sleeping = subprocess.Popen(["sleep", "60"])
    since = started(sleeping.pid)
    assert may_run(machine(), sleeping.pid, since)
    sleeping.kill()
    until = time.monotonic() + 10
    while may_run(machine(), sleeping.pid, since) and time.monotonic() < until:
        time.sleep(0.01)
    assert not may_run(machine(), sleeping.pid, since)
    assert sleeping.wait() == -9
