"""Ctrl-C: one line and status 130, also while a library is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import run_cli

# A library as numpy and torch are: an exception within it ends in something else than that exception.
LIBRARY = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
    for _ in range(1000000): pass
except BaseException:
    raise RecursionError("a library that no exception may leave") from None
"""

# As at a terminal: what a shell starts in the background ignores interrupts, and hands that on.
TERMINAL = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def ended(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH') or os.getcwd()}"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_during_an_import_the_process_ends_at_once(tmp_path: Path) -> None:
    (tmp_path / "delicate.py").write_text(LIBRARY)
    program = "from featcache.interrupts import leave_when_interrupted\nleave_when_interrupted('featcache')\n"
    left = ended(TERMINAL + program + "import delicate", tmp_path)
    assert (left.returncode, left.stderr) == (130, "featcache: interrupted\n")


def test_elsewhere_it_is_an_exception_as_ever(tmp_path: Path) -> None:
    program = (
        "import os, signal\nfrom featcache.interrupts import leave_when_interrupted\nleave_when_interrupted('x')\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT)\n    signal.pause()\n"
        "except KeyboardInterrupt:\n    print('caught')"
    )
    left = ended(TERMINAL + program, tmp_path)
    assert (left.returncode, left.stdout, left.stderr) == (0, "caught\n", "")


def test_who_ignores_interrupts_goes_on(tmp_path: Path) -> None:
    program = (
        "import os, signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from featcache.interrupts import leave_when_interrupted\nleave_when_interrupted('x')\n"
        "os.kill(os.getpid(), signal.SIGINT)\nprint('on')"
    )
    assert ended(program, tmp_path).stdout == "on\n"


@pytest.fixture
def own_handler() -> object:
    """`main` sets the handler of the process, here that of all tests."""
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


def test_a_command_says_that_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_handler) -> None:
    from featcache import manifest
    from featcache.job import Job

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(manifest, "read", stopped)
    left = run_cli("manifest", "check", tmp_path / "m.jsonl")
    assert (left.status, left.out, left.err) == (130, "", "featcache: interrupted\n")
    monkeypatch.setattr(Job, "extract", stopped)
    left = run_cli("extract", tmp_path / "m.jsonl", tmp_path / "cache", "--upstream", "mel:8")
    assert left.status == 130 and "run the same command again to go on" in left.err and left.err.count("\n") == 1
