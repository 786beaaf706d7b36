"""Which process is it, and does it still run? For leases and half-written files that the dead leave behind."""

from __future__ import annotations

import os
import socket
import uuid
from functools import cache
from pathlib import Path

from featcache.digest import sha256


@cache
def machine() -> str:
    """Tells machines (and containers) apart without naming them."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return sha256(f"{socket.gethostname()} {boot.read_text() if boot.is_file() else ''}".encode())[:16]


def started(pid: int) -> str:
    """When a process of this machine started, in the kernel's words; "none" if there is no such process.

    One that has ended and that its parent has not asked about yet (a zombie, common in containers) is none.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "none" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return "none" if Path("/proc/self").exists() else "unknown"


def may_run(on: str, pid: int, since: str) -> bool:
    """Whether that process may still run: False only for a dead one of this machine."""
    return on != machine() or started(pid) == since


def own_name() -> str:
    """A name for a temporary file of this process; `left_by_the_dead` reads it."""
    pid = os.getpid()
    return f"{machine()}-{pid}-{started(pid)}-{uuid.uuid4().hex[:12]}"


def left_by_the_dead(name: str) -> bool:
    """Whether a name made by `own_name` is that of a process of this machine which is no more."""
    parts = name.split("-")
    return len(parts) == 4 and parts[1].isdigit() and not may_run(parts[0], int(parts[1]), parts[2])
