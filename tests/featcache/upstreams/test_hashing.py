"""Digests of weights, and the memo of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import torch

from featcache.upstreams import hashing


@pytest.fixture(autouse=True)
def memo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "featcache" / "sha256.json"


def test_files_are_hashed_as_one_after_the_other(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    assert hashing.sha256_of_files([first, second]) == hashlib.sha256(b"onetwo").hexdigest()
    assert hashing.sha256_of_parts([first]) == hashlib.sha256(b"one").hexdigest()
    assert hashing.sha256_of_parts([first, second]) == hashing.sha256_of_parts([second, first])


def test_memo_is_of_path_size_and_time(tmp_path: Path, memo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"one")
    os.utime(path, ns=(1, 1))
    digest = hashing.sha256_of_files([path])
    with monkeypatch.context() as patch:
        patch.setattr(hashing.hashlib, "sha256", None)
        assert hashing.sha256_of_files([path]) == digest
    path.write_bytes(b"two")
    os.utime(path, ns=(2, 2))
    assert hashing.sha256_of_files([path]) == hashlib.sha256(b"two").hexdigest()
    memo.write_text("not json")
    assert hashing.sha256_of_files([path]) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("how", ["written over", "replaced"])
def test_memo_does_not_trust_a_modification_time(how: str, tmp_path: Path) -> None:
    """Archives and copies set it, and models of one architecture are of one size."""
    path, other = tmp_path / "a", tmp_path / "b"
    for file, content in ((path, b"one"), (other, b"two")):
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))
    hashing.sha256_of_files([path])
    if how == "replaced":
        other.replace(path)
    else:
        path.write_bytes(b"two")
        os.utime(path, ns=(1, 1))
    assert hashing.sha256_of_files([path]) == hashlib.sha256(b"two").hexdigest()


def test_a_home_that_cannot_be_written_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert hashing.sha256_of_files([tmp_path / "file"]) == hashlib.sha256(b"").hexdigest()


def test_state_is_hashed_by_name_type_shape_and_bytes() -> None:
    state = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5)}
    digest = hashing.sha256_of_state(state)
    assert digest == hashing.sha256_of_state(dict(reversed(state.items())))
    assert digest == hashing.sha256_of_state({**state, "a": state["a"].t().contiguous().t()})
    for other in (
        {**state, "a": state["a"].reshape(3, 2)},
        {**state, "a": state["a"].half()},
        {**state, "a": state["a"] + 1},
        {"a": state["a"], "c": state["b"]},
    ):
        assert hashing.sha256_of_state(other) != digest
