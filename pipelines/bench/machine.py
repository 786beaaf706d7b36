"""On what and of what a figure was measured."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import torch

from featcache.cores import usable_cores


def stamp() -> dict[str, str]:
    """`machine` (processor, cores, memory, GPU where there is one) and `commit`, for a benchmark's JSON."""
    return {"machine": machine(), "commit": commit()}


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    parts = [_processor(), f"{usable_cores()} cores", f"{memory:.0f} GB"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> str:
    """Its name; of an x86 family and model too, as virtual machines give one name to several generations."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name") or platform.machine()
    if "cpu family" not in fields:
        return name
    return f"{name} (family {fields['cpu family']}, model {fields.get('model', '?')})"


def commit() -> str:
    """The commit of the code that runs, `+` where files differ from it; "unknown" outside a repository."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
