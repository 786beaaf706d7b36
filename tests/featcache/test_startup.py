"""What commands do first."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata

import pytest

import featcache

GARBAGE = """
import gc, {module}.cli as cli

gc.set_threshold(700)
try:
    cli.main()
finally:
    import atexit

    assert gc.get_threshold()[0] == 10_000
    atexit._run_exitfuncs()
    assert gc.get_freeze_count() > 1000 and not gc.collect()
"""


@pytest.mark.parametrize("command", ["featcache", "fusion", "pipelines"])
def test_a_command_tells_the_version_and_is_not_held_up_by_garbage(command: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", GARBAGE.format(module=command), "--version"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"speech-featcache {featcache.__version__}\n"


WATCHED = """
import os, sys
from importlib.abc import MetaPathFinder

class Watch(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("numpy", "torch"):
            print(*(os.environ.get(name) for name in {names}))

sys.meta_path.insert(0, Watch())
import {module}, numpy, torch
"""
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS")


@pytest.mark.parametrize("module", ["featcache.cli", "fusion.cli", "pipelines.cli", "pipelines.bench.__main__"])
def test_threads_that_wait_sleep_soon(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That must be said before numpy and torch start their threads."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    script = WATCHED.format(module=module, names=NAMES)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["PASSIVE 1000 1"] * 2, done.stderr


def test_the_version_is_that_of_the_package() -> None:
    assert metadata.version("speech-featcache") == featcache.__version__
