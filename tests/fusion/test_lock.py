"""Two processes never train one run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featcache.errors import UsageError
from fusion import recipe
from fusion import train as training
from fusion.lock import locked
from fusion.run import Files
from tests.fusion.speech import toy_cache, toy_recipe


def test_a_run_that_is_trained_elsewhere_is_left_alone(tmp_path: Path) -> None:
    made = recipe.parse(toy_recipe(toy_cache(tmp_path / "cache"), 2))
    run = training.fit(made, runs=tmp_path)
    assert not run.files.lock.exists()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    (run.path / ".tmp-of-one-that-was-killed").write_text("")
    hold = f"""
from fusion.lock import locked
from fusion.run import Files
from pathlib import Path
with locked([Files(Path({str(run.path)!r}))]):
    print(flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(UsageError, match=r"is being trained by another process; wait for that or stop it, or use"):
            training.fit(made, runs=tmp_path, mode="restart")
    finally:
        other.kill()
        other.communicate()
    assert run.files.lock.exists()  # its process is gone, and so it keeps nobody out
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != "lock"}
    assert training.fit(made, runs=tmp_path, mode="restart").metrics()["steps"] == 2
    assert not run.files.lock.exists()


def test_a_lock_on_a_file_that_was_removed_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(tmp_path / "run")
    opened: list[int] = []
    open_ = os.open

    def late(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.append(open_(path, flags, mode))
        if len(opened) == 1:
            files.lock.unlink()  # by the one who had it, between our opening and locking it
        return opened[-1]

    monkeypatch.setattr(os, "open", late)
    with locked([files]):
        assert len(opened) == 2 and files.lock.exists()
        with pytest.raises(UsageError), locked([files]):
            pass
    assert not files.lock.exists()
