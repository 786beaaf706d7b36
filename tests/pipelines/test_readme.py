"""The example of the README runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.helpers import make_cache

ROOT = Path(__file__).parents[2]


def block(heading: str) -> str:
    """The first block of Python under a heading."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, found, rest = text.partition(f"\n### {heading}\n")
    assert found, f"README.md has no section {heading!r}"
    match = re.search(r"```python\n(.*?)```", rest.split("\n#")[0], re.DOTALL)
    assert match, f"section {heading!r} has no block of Python"
    return match[1]


def test_a_head_in_plain_pytorch(tmp_path: Path) -> None:
    code = block("A head in plain PyTorch")
    assert len(code.splitlines()) <= 30
    rng = np.random.default_rng(0)
    voices = {name: rng.standard_normal((3, 16)) for name in ("en", "it", "ru")}
    features, labels = {}, {}
    for i in range(48):
        name = list(voices)[i % 3]
        values = voices[name] + rng.standard_normal((int(rng.integers(5, 30)), 3, 16))
        features[f"u{i}"] = values.astype(np.float32)
        labels[f"u{i}"] = {"lang": name, "split": "test" if i >= 30 else "train", "text": "x"}
    make_cache(tmp_path / "caches" / "demo", features, labels, quarantine={"u3": "too short"})
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=250, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = re.fullmatch(r"(\d+) of (\d+) test utterances in the right language\n", done.stdout)
    assert said and said[2] == "18" and int(said[1]) >= 15, done.stdout
