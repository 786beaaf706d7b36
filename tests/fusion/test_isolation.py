"""Stage two runs where no model can be loaded and no audio be read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.fusion.speech import toy_cache, toy_recipe

BLOCKED = ("transformers", "peft", "soundfile", "av", "featcache.upstreams", "featcache.audio")

SCRIPT = """
import sys

BLOCKED = {blocked!r}


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in BLOCKED):
            raise ImportError(f"{{name}} is blocked here")
        return None


sys.meta_path.insert(0, Blocker())
for name in BLOCKED:
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{{name}} was not blocked")

import fusion

assert "torch" not in sys.modules, "the front page is not lazy"
for name in fusion.__all__:
    getattr(fusion, name)

from fusion.cli import app

code = app({arguments!r}, standalone_mode=False)
loaded = sorted(name for name in sys.modules if name.split(".")[0] in BLOCKED or name in BLOCKED)
sys.exit(code or ("loaded " + ", ".join(loaded) if loaded else 0))
"""


def test_a_whole_training_without_the_upstreams_packages(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(toy_recipe(toy_cache(tmp_path / "cache"), 10))
    for arguments in (
        ["train", str(tmp_path / "toy.toml"), "--runs", str(tmp_path / "runs")],
        ["eval", str(tmp_path / "runs" / "toy"), "--json"],
    ):
        script = SCRIPT.format(blocked=BLOCKED, arguments=arguments)
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, timeout=200, cwd=Path.cwd()
        )
        assert done.returncode == 0, done.stderr
        assert "wer" in done.stdout.lower()


def test_the_conformer_decoder_needs_none_of_them_either(tmp_path: Path) -> None:
    recipe = toy_recipe(toy_cache(tmp_path / "cache"), 2, decoder="conformer")
    (tmp_path / "toy.toml").write_text(recipe)
    arguments = ["train", str(tmp_path / "toy.toml"), "--runs", str(tmp_path / "runs")]
    script = SCRIPT.format(blocked=BLOCKED, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
