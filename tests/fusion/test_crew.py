"""Heads on threads: at the same time where there are cores, and each with random numbers of its own."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fusion.crew import Crew
from fusion.distributed import World, cores
from fusion.modules import randomness
from fusion.modules.decoders import BLSTM, ConformerDecoder
from fusion.modules.dropout import Dropout

CPU = World(0, 1, torch.device("cpu"))


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")


@pytest.mark.parametrize(("heads", "threads", "at_a_time"), [(2, 0, 2), (8, 0, 4), (4, 2, 2), (2, 1, 2)])
def test_as_many_heads_at_a_time_as_the_cores_take(heads: int, threads: int, at_a_time: int) -> None:
    together = threading.Barrier(at_a_time, timeout=20)
    with Crew(heads, CPU, threads) as crew:
        found = crew.map(lambda head: (together.wait(), head)[1], range(heads))
    assert found == list(range(heads))


def test_the_cores_are_shared_out_among_heads() -> None:
    with Crew(2, CPU) as crew:
        assert crew.map(lambda head: torch.get_num_threads(), range(2)) == [2, 2]
    with Crew(8, CPU) as crew:
        assert crew.map(lambda head: torch.get_num_threads(), range(8)) == [1] * 8


@pytest.mark.parametrize(
    ("heads", "here", "threads", "in_turn"),
    [
        (1, CPU, 0, False),
        (8, CPU, 0, True),
        (8, CPU, 3, False),
        (8, World(0, 2, torch.device("cpu")), 0, False),
        (8, World(0, 1, torch.device("cuda")), 0, False),
    ],
)
def test_in_turn_where_threads_do_not_help_or_would_do_harm(
    heads: int, here: World, threads: int, in_turn: bool
) -> None:
    with Crew(heads, here, threads, in_turn) as crew:
        found = crew.map(lambda head: threading.current_thread(), range(heads))
    assert set(found) == {threading.main_thread()}


def test_an_error_is_raised_when_the_others_have_ended() -> None:
    ended = []

    def step(head: int) -> None:
        if head == 0:
            raise ValueError("head 0")
        ended.append(head)

    with Crew(6, CPU) as crew, pytest.raises(ValueError, match="head 0"):
        crew.map(step, range(6))
    assert sorted(ended) == [1, 2, 3, 4, 5]


def test_cores_are_those_that_the_user_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cores() == 4
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert cores() == 3
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cores() >= 1


def test_a_seed_draws_what_it_draws_from_torch_whatever_other_threads_do() -> None:
    x, layer = torch.ones(1000), Dropout(0.4).train()
    expected = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected.append([layer(x), layer(x)])
    meet = threading.Barrier(2, timeout=20)

    def draw(seed: int) -> list[torch.Tensor]:
        with randomness.seeded(seed):
            meet.wait()
            first = layer(x)
            meet.wait()
            return [first, layer(x)]

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(draw, (1, 2)))
    assert torch.equal(torch.stack(sum(found, [])), torch.stack(sum(expected, [])))
    # outside of it torch's own generator counts again
    torch.manual_seed(2)
    assert torch.equal(layer(x), expected[1][0])


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (BLSTM(8, 3, hidden=4, dropout=0.5), False),
        (ConformerDecoder(8, 3, hidden=8, layers=1, heads=2, feedforward=8, kernel=3, dropout=0.1), True),
        (ConformerDecoder(8, 3, hidden=8, layers=1, heads=2, feedforward=8, kernel=3, dropout=0.0), False),
        (nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)), True),
        (nn.LSTM(2, 2, num_layers=2, dropout=0.1), True),
        (nn.MultiheadAttention(4, 2, dropout=0.1), True),
    ],
)
def test_what_draws_from_the_generator_of_all_threads_is_known(module: nn.Module, expected: bool) -> None:
    assert randomness.draws_from_torch(module) is expected
