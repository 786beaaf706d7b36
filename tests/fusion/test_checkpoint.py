"""Checkpoints: what goes in comes out, whole or not at all, and never as pickle."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from featcache.errors import FeatcacheError, JobError, UsageError
from fusion import checkpoint


def test_tensors_and_facts_come_back(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(6.0).reshape(2, 3),
        "a": torch.tensor(3, dtype=torch.int64),
        "h": torch.ones(2, dtype=torch.bfloat16),
    }
    checkpoint.save(tmp_path / "x.safetensors", tensors, {"step": 3, "name": "é"})
    again, facts = checkpoint.load(tmp_path / "x.safetensors")
    assert facts == {"step": 3, "name": "é"} and again.keys() == tensors.keys()
    assert all(torch.equal(again[name], value) and again[name].dtype == value.dtype for name, value in tensors.items())


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    for name, order in (("a", ("x", "y")), ("b", ("y", "x"))):
        checkpoint.save(tmp_path / name, {key: torch.full((2,), float(ord(key))) for key in order}, {"p": 1, "q": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_write_that_fails_leaves_the_old_file_and_no_debris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "x.safetensors"
    checkpoint.save(place, {"a": torch.zeros(2)}, {"step": 1})
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(JobError, match="no space is left"):
        checkpoint.save(place, {"a": torch.ones(2)}, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert checkpoint.load(place)[1] == {"step": 1}


def _full(_: int) -> None:
    raise OSError(28, "No space left on device")


def test_damage_and_absence_are_errors_that_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train the run first"):
        checkpoint.load(tmp_path / "none.safetensors")
    place = tmp_path / "x.safetensors"
    checkpoint.save(place, {"a": torch.zeros(200)}, {})
    place.write_bytes(place.read_bytes()[:-8])
    with pytest.raises(FeatcacheError, match="damaged"):
        checkpoint.load(place)


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    place = tmp_path / "x.safetensors"
    place.write_bytes(pickle.dumps(_Trap(str(tmp_path / "sprung"))))
    with pytest.raises(FeatcacheError, match="damaged"):
        checkpoint.load(place)
    assert not (tmp_path / "sprung").exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (self.path,))


def test_an_optimiser_goes_on_as_if_never_stopped() -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.AdamW]:
        torch.manual_seed(1)
        module = torch.nn.Linear(3, 2)
        return module, torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)

    def step(module: torch.nn.Module, optimiser: torch.optim.AdamW, value: float) -> None:
        optimiser.zero_grad()
        module(torch.full((1, 3), value)).square().sum().backward()
        optimiser.step()

    module, optimiser = make()
    for value in (1.0, 2.0):
        step(module, optimiser, value)
    other, fresh = make()
    checkpoint.load_weights(other, {k: v.clone() for k, v in module.state_dict().items()}, Path("x"))
    state = {k: v.clone() for k, v in checkpoint.optimiser_tensors(optimiser, module).items()}
    checkpoint.load_optimiser(fresh, other, state)
    for value in (3.0, -1.0):
        step(module, optimiser, value)
        step(other, fresh, value)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_weights_of_another_head_are_refused() -> None:
    with pytest.raises(FeatcacheError, match="does not fit"):
        checkpoint.load_weights(torch.nn.Linear(3, 2), {"weight": torch.zeros(2, 4), "bias": torch.zeros(2)}, Path("x"))
