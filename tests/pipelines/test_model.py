"""Weights that ship in packages: pinned, checked, and a clear word where they are absent."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from featcache.errors import JobError, UsageError
from pipelines.demo.model import MODELS, PackagedModel, find, is_installed, verify


def test_names() -> None:
    assert find("package:whisper-base") is find("whisper-base") is MODELS["whisper-base"]
    with pytest.raises(UsageError, match=r"choose from whisper-base, whisper-tiny\.en"):
        find("whisper-large")


def small_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sha256: str) -> PackagedModel:
    for part, data in (("one", b"ab"), ("two", b"c")):
        folder = tmp_path / f"weights_{part}"
        folder.mkdir()
        (folder / "__init__.py").write_text("raise RuntimeError('not to be imported')\n")
        (folder / "model.bin").write_bytes(data)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return PackagedModel(
        name="small",
        requirements=("weights-one==1", "weights-two==1"),
        parts=(("weights_one", "model.bin"), ("weights_two", "model.bin")),
        sha256=sha256,
        download=3,
    )


def test_parts_are_checked_as_one_without_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    model = small_model(tmp_path, monkeypatch, abc)
    assert verify(model) == 3
    assert not is_installed(model)
    swapped = dataclasses.replace(model, parts=model.parts[::-1])
    with pytest.raises(JobError, match="not the pinned ones.*pip uninstall weights-one weights-two"):
        verify(swapped)


def test_absent_weights_name_the_command() -> None:
    model = dataclasses.replace(MODELS["whisper-base"], parts=(("no_such_package_here", "model.bin"),))
    with pytest.raises(JobError, match="run `pipelines demo model whisper-base`"):
        verify(model)


@pytest.mark.real
def test_real_weights(whisper_tiny_package: PackagedModel) -> None:
    assert verify(whisper_tiny_package) > 70e6
