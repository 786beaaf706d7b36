"""An exported head in a process that has torch and nothing of ours."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import safetensors
import torch
from typer.testing import CliRunner

from featcache.errors import JobError
from fusion import Run, recipe
from fusion import train as training
from pipelines import export
from pipelines.cli import app
from tests.fusion.speech import toy_cache, toy_recipe

# Only torch and safetensors: what another program would have.
ELSEWHERE = """
import json, sys
import torch
from safetensors.torch import load_file, save_file

features = load_file("features.safetensors")
extra = {"head.json": ""}
program = torch.export.load("out/head.pt2", extra_files=extra).module()
assert json.loads(extra["head.json"])["taps"] == ["0", "1", "2"]
with torch.no_grad():
    save_file({name: program(value).contiguous() for name, value in features.items()}, "found.safetensors")
assert not {"featcache", "fusion", "pipelines"} & {name.split(".")[0] for name in sys.modules}
"""


@pytest.fixture(scope="module", params=[1, 2], ids=["all frames", "pairs"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """HFF and a BLSTM, both of which need care when they are traced."""
    root = tmp_path_factory.mktemp("export")
    overrides = ["train.workers=0", f"fuser.pool={request.param}"]
    return training.fit(recipe.parse(toy_recipe(toy_cache(root / "cache"), 3), overrides), runs=root / "runs")


def test_both_forms_give_what_the_head_gives(run: Run, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(run.path), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["shortest"] == run.spec.stride + 1 and facts["difference"] <= 1e-5
    features = {f"n{n}": torch.randn(n, 3, 8) for n in (facts["shortest"], 6, 16, 61, 900)}
    safetensors.torch.save_file(features, tmp_path / "features.safetensors")
    subprocess.run([sys.executable, "-c", ELSEWHERE], cwd=tmp_path, check=True, timeout=250, env={"PATH": "/usr/bin"})
    found = safetensors.torch.load_file(tmp_path / "found.safetensors")
    module, spec = export.load_weights(tmp_path / "out" / "head.safetensors")
    assert spec == run.spec
    for name, value in features.items():
        wanted = run.log_probs(value.numpy())
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            logits, _ = module(value.unsqueeze(0), torch.tensor([len(value)]))
        torch.testing.assert_close(logits[0].log_softmax(-1), wanted)
    with zipfile.ZipFile(tmp_path / "out" / "head.pt2") as archive:  # nothing of it is a pickle
        for name in archive.namelist():
            if name.endswith((".pt", ".pkl")):
                assert archive.read(name) == b"", name


def test_a_wrong_program_is_not_passed_off_as_the_head(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = torch.export.load

    class Off:
        def __init__(self, path: Path) -> None:
            self.program = real(path)

        def module(self) -> object:
            inner = self.program.module()
            return lambda features: inner(features) + 1e-3

    monkeypatch.setattr(torch.export, "load", Off)
    with pytest.raises(JobError, match="differs from"):
        export.export(run, tmp_path / "out")
