"""One writer a shard: leases with an expiry, made by an exclusive create, taken over from the dead.

A lease says which process holds it (a digest of the machine, the process's number and start), so that
after a crash the next run on the same machine need not wait for the expiry.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from dataclasses import asdict, dataclass

from featcache.digest import canonical_json, sha256
from featcache.errors import JobError
from featcache.process import machine, may_run, started
from featcache.storage import Storage

TTL_SECONDS = 60.0
# Owners in this process that are done. Where the server is gone, their leases stay.
_DONE: set[str] = set()


@dataclass(frozen=True)
class Lease:
    """The right to write what a key stands for, until `expires` (seconds since 1970, this machine's clock)."""

    key: str
    owner: str
    expires: float
    machine: str = ""
    pid: int = 0
    started: str = ""

    def to_bytes(self) -> bytes:
        content = {name: value for name, value in asdict(self).items() if name != "key"}
        return canonical_json(content)

    @property
    def alive(self) -> bool:
        """Whether its owner may still be working: not expired, not done, and not a dead process of this machine."""
        return self.expires > time.time() and not self.ended

    @property
    def ended(self) -> bool:
        """Whether its owner is known to be no more; one that stood still comes back to a lease that expired."""
        return self.owner in _DONE or not may_run(self.machine, self.pid, self.started)


class Leases:
    """The leases that this process holds; a thread renews them until they are released.

    Machines that share a cache need clocks that agree within the time to live.
    """

    def __init__(self, storage: Storage, ttl: float = TTL_SECONDS) -> None:
        self.storage = storage
        self.ttl = ttl
        self.owner = uuid.uuid4().hex
        self._held: dict[str, Lease] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_all, name="leases", daemon=True)
        self._thread.start()

    def acquire(self, key: str) -> bool:
        """Take the lease of a key; False while somebody else holds it."""
        lease = self._take(key, depth=0)
        if lease is None:
            return False
        with self._lock:
            self._held[key] = lease
        return True

    def wait(self, seconds: float) -> None:
        """Sleep, to look again afterwards."""
        self._stop.wait(seconds)

    def check(self, key: str) -> None:
        """Make sure that the lease is still ours, just before the work that it protects is recorded.

        Raises:
            JobError: it expired and another process took it over.
        """
        found = _parse(self.storage.read(key))
        if found is None or found.owner != self.owner:
            raise JobError(
                f"the lease {self.storage}/{key} was lost to another process (this one stood still for over "
                f"{self.ttl:.0f} s): nothing is lost, run the same command again"
            )

    def release(self, key: str) -> None:
        with self._lock:
            held = self._held.pop(key, None)
        if held is not None:
            found = _parse(self.storage.read(key))
            if found is not None and found.owner == self.owner:
                self.storage.delete(key)

    def close(self) -> None:
        """Release everything and stop renewing."""
        self._stop.set()
        self._thread.join()
        for key in list(self._held):
            with contextlib.suppress(Exception):
                self.release(key)
        _DONE.add(self.owner)

    def _take(self, key: str, depth: int) -> Lease | None:
        lease = self._new(key)
        if self.storage.create(key, lease.to_bytes()):
            return lease
        data = self.storage.read(key)
        if data == lease.to_bytes():
            # The answer to our request was lost on the way, and the second request met the first one's lease.
            return lease
        if data is None:
            return lease if self.storage.create(key, lease.to_bytes()) else None
        found = _parse(data)
        if (found is not None and found.alive) or depth > 8:
            return None
        # Of all who see this dead lease, the one who leases its replacement may replace it.
        marker = f"{key}.{sha256(data)[:16]}"
        if self._take(marker, depth + 1) is None:
            return None
        try:
            if self.storage.read(key) != data:
                return None
            self.storage.write(key, lease.to_bytes())
            return lease
        finally:
            self.storage.delete(marker)

    def _new(self, key: str) -> Lease:
        pid = os.getpid()
        return Lease(key, self.owner, time.time() + self.ttl, machine(), pid, started(pid))

    def _renew_all(self) -> None:
        while not self._stop.wait(self.ttl / 3):
            with self._lock:
                held = dict(self._held)
            for key in held:
                # A renewal that fails now is tried again; `check` notices a lease that was lost.
                with contextlib.suppress(Exception):
                    found = _parse(self.storage.read(key))
                    if found is None or found.owner != self.owner:
                        continue
                    renewed = self._new(key)
                    with self._lock:
                        if key in self._held:
                            self.storage.write(key, renewed.to_bytes())
                            self._held[key] = renewed


def clear_dead(storage: Storage, folder: str) -> None:
    """Remove the leases that processes which are no more have left in a folder."""
    for key in storage.list_keys(folder):
        lease = _parse(storage.read(key))
        if lease is None or not lease.alive:
            storage.delete(key)


def clear_ended(storage: Storage, folder: str) -> None:
    """As `clear_dead`, where others may be at work: only those of processes that are known to be no more."""
    for key in storage.list_keys(folder):
        lease = _parse(storage.read(key))
        if lease is not None and lease.ended:
            storage.delete(key)


def living(storage: Storage, folder: str) -> list[str]:
    """The keys in a folder whose lease is held by a process that may still be working."""
    found = ((key, _parse(storage.read(key))) for key in storage.list_keys(folder))
    return [key for key, lease in found if lease is not None and lease.alive]


def is_held(storage: Storage, key: str) -> bool:
    """Whether a process that may still be working holds the lease of this key."""
    lease = _parse(storage.read(key))
    return lease is not None and lease.alive


def _parse(data: bytes | None) -> Lease | None:
    if data is None:
        return None
    try:
        content = json.loads(data)
        return Lease(key="", **content)
    except (ValueError, KeyError, TypeError):
        return None
