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


def test_the_version_is_that_of_the_package() -> None:
    assert metadata.version("speech-featcache") == featcache.__version__
