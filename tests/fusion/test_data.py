"""Batches: each utterance once an epoch, within the budget, in an order that a seed fixes, with its values."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import Cache
from featcache.errors import CorruptCacheError
from fusion.data import Batch, Loader, Sampler, Slot, Workers, most_of, plan_epoch, plan_evaluation, threads_of
from fusion.labels import Split
from tests.helpers import make_cache

LENGTHS = st.lists(st.integers(1, 3000), min_size=1, max_size=200).map(lambda values: np.array(values, dtype=np.int64))


@given(LENGTHS, st.integers(1, 6000), st.integers(0, 5), st.integers(0, 5))
def test_an_epoch_has_every_utterance_once_and_no_batch_beyond_the_budget(
    lengths: np.ndarray, budget: int, seed: int, epoch: int
) -> None:
    for batches in (
        plan_epoch(lengths, budget, seed, epoch),
        [slot.positions for slot in plan_evaluation(lengths, budget)],
    ):
        assert sorted(itertools.chain.from_iterable(b.tolist() for b in batches)) == list(range(len(lengths)))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget


def test_an_epoch_is_fixed_by_seed_and_number_and_little_is_padding() -> None:
    lengths = np.random.default_rng(0).integers(20, 1500, 2000)
    first = plan_epoch(lengths, 3000, 1, 0)
    assert _same(first, plan_epoch(lengths, 3000, 1, 0))
    assert not _same(first, plan_epoch(lengths, 3000, 1, 1)) and not _same(first, plan_epoch(lengths, 3000, 2, 0))
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in first)
    assert lengths.sum() / padded > 0.9
    # not only the order of the batches differs between epochs, but what is together in one
    assert {tuple(sorted(b)) for b in first} != {tuple(sorted(b)) for b in plan_epoch(lengths, 3000, 1, 1)}


def _same(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@settings(max_examples=30)
@given(LENGTHS, st.integers(1, 60), st.integers(1, 3))
def test_a_sampler_goes_on_from_any_position(lengths: np.ndarray, taken: int, world: int) -> None:
    whole = list(itertools.islice(Sampler(lengths, 4000, 3, world=world), taken + 5))
    last = whole[taken - 1]
    rest = list(itertools.islice(Sampler(lengths, 4000, 3, world=world, epoch=last.epoch, step=last.step + 1), 5))
    for a, b in zip(whole[taken:], rest, strict=True):
        assert a[:2] == b[:2] and np.array_equal(a.positions, b.positions)


@settings(max_examples=30)
@given(LENGTHS, st.integers(1, 4))
def test_ranks_share_an_epoch_and_take_the_same_number_of_steps(lengths: np.ndarray, world: int) -> None:
    seen: list[int] = []
    steps = set()
    for rank in range(world):
        sampler = Sampler(lengths, 4000, 3, rank=rank, world=world)
        mine = list(itertools.takewhile(lambda slot: slot.epoch == 0, sampler))
        steps.add(len(mine))
        seen += [slot.positions[0].item() for slot in mine]
    batches = plan_epoch(lengths, 4000, 3, 0)
    assert len(steps) == 1
    assert {int(batch[0]) for batch in batches} == set(seen) and len(seen) - len(batches) < world


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cache, dict[str, np.ndarray], Split]:
    rng = np.random.default_rng(1)
    features = {
        f"u{i}": rng.standard_normal((3 + 2 * i, 3, 4)).astype(np.float16).astype(np.float32) for i in range(12)
    }
    cache = Cache.open(make_cache(tmp_path_factory.mktemp("data") / "cache", features))
    ids = tuple(reversed(cache.ids))
    rows = np.array([cache.row(id_) for id_ in ids])
    return (
        cache,
        features,
        Split("train", ids, rows, cache.lengths[rows], ids, tuple((i,) for i in range(12))),
    )


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("taps", [None, ("2", "0")])
def test_a_batch_holds_the_stored_values_of_its_utterances(
    stored: tuple[Cache, dict[str, np.ndarray], Split], workers: int, taps: tuple[str, ...] | None
) -> None:
    cache, features, split = stored
    slots = plan_evaluation(split.frames, 60)
    with Loader(cache, split, torch.device("cpu"), taps, workers) as loader:
        batches = list(loader.batches(slots))
    assert [batch.slot for batch in batches] == slots
    for batch in batches:
        assert batch.features.shape[1] == int(batch.lengths.max()) and batch.frames == int(batch.lengths.sum())
        for i, position in enumerate(batch.slot.positions):
            want = features[split.ids[position]][:, [0, 1, 2] if taps is None else [2, 0]]
            length = int(batch.lengths[i])
            assert length == len(want)
            np.testing.assert_allclose(batch.features[i, :length].numpy(), want, rtol=1e-3, atol=1e-3)
            assert not batch.features[i, length:].any()


class Slow:
    """A cache that takes its time and counts how much was read ahead."""

    def __init__(self, cache: Cache, seconds: float = 0.0, broken: int = -1) -> None:
        self.cache, self.seconds, self.broken = cache, seconds, broken
        self.reads = 0
        self.lock = threading.Lock()
        self.threads: set[str] = set()
        self.arithmetic: set[int] = set()

    def read_encoded(self, rows: np.ndarray, taps: object) -> object:
        with self.lock:
            self.reads += 1
            number = self.reads
        self.threads.add(threading.current_thread().name)
        time.sleep(self.seconds)
        if number == self.broken:
            raise CorruptCacheError("codes/c/0 is missing")
        return self.cache.read_encoded(rows)

    def decode(self, encoded: object, device: object) -> object:
        self.threads.add(threading.current_thread().name)
        self.arithmetic.add(torch.get_num_threads())
        return self.cache.decode(encoded)  # type: ignore[arg-type]


def test_reading_ahead_is_bounded_and_stops_with_the_loader(
    stored: tuple[Cache, dict[str, np.ndarray], Split],
) -> None:
    cache, _, split = stored
    slow = Slow(cache)
    with Loader(slow, split, torch.device("cpu"), workers=2) as loader:  # type: ignore[arg-type]
        batches = loader.batches(iter(Sampler(split.frames, 60, 1)))  # endless
        for _ in range(3):
            next(batches)
        time.sleep(0.1)
        assert 3 <= slow.reads <= 3 + 2 * 2
    assert not any(thread.name.startswith("fusion-read") for thread in threading.enumerate())


def test_waiting_is_measured_and_overlaps_with_work(
    stored: tuple[Cache, dict[str, np.ndarray], Split],
) -> None:
    cache, _, split = stored
    slots = plan_evaluation(split.frames, 30)
    shares = {}
    for workers in (0, 2):
        with Loader(Slow(cache, 0.02), split, torch.device("cpu"), workers=workers) as loader:  # type: ignore[arg-type]
            for _ in loader.batches(slots):
                time.sleep(0.02)
        shares[workers] = loader.watch.share
        assert loader.watch.frames == split.frames.sum()
    assert 0.35 < shares[0] < 0.65 and shares[2] < 0.25


@pytest.mark.parametrize("workers", [0, 2])
def test_on_the_cpu_threads_that_read_decode_too(
    stored: tuple[Cache, dict[str, np.ndarray], Split], workers: int
) -> None:
    cache, _, split = stored
    slow = Slow(cache)
    with Loader(slow, split, torch.device("cpu"), workers=workers) as loader:  # type: ignore[arg-type]
        list(loader.batches(plan_evaluation(split.frames, 30)))
    ours = threading.current_thread().name in slow.threads
    assert slow.threads and ours == (workers == 0)
    # Training has the cores.
    assert ours or slow.arithmetic == {1}


@pytest.mark.parametrize("workers", [0, 2])
def test_on_the_cpu_threads_that_read_prepare_batches_too(
    stored: tuple[Cache, dict[str, np.ndarray], Split], workers: int
) -> None:
    cache, _, split = stored
    threads: set[str] = set()

    def prepare(number: int, batch: Batch) -> tuple[int, Slot]:
        threads.add(threading.current_thread().name)
        return number, batch.slot

    slots = plan_evaluation(split.frames, 30)
    with Loader(cache, split, torch.device("cpu"), workers=workers) as loader:
        assert list(loader.prepared(iter(slots), prepare)) == list(enumerate(slots))
    assert (threading.current_thread().name in threads) == (workers == 0)
    assert loader.watch.frames == split.frames.sum()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_reading_reaches_the_trainer(
    stored: tuple[Cache, dict[str, np.ndarray], Split], workers: int
) -> None:
    cache, _, split = stored
    with (
        Loader(Slow(cache, broken=2), split, torch.device("cpu"), workers=workers) as loader,  # type: ignore[arg-type]
        pytest.raises(CorruptCacheError, match="codes/c/0"),
    ):
        list(loader.batches([Slot(0, i, np.array([i])) for i in range(4)]))


@pytest.mark.parametrize(
    ("workers", "device", "cores", "expected"),
    [
        ("auto", "cpu", 64, 2),
        ("auto", "cuda", 64, 8),
        ("auto", "cuda", 10, 5),
        ("auto", "cuda", 1, 2),
        (0, "cuda", 9, 0),
    ],
)
def test_a_gpu_has_more_threads_that_read(
    workers: Workers, device: str, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.data.cores", lambda: cores)
    assert threads_of(workers, torch.device(device)) == expected


def test_those_who_read_together_read_with_what_any_asks_for() -> None:
    assert most_of(["auto", "auto"]) == "auto" and most_of(["auto", 1, 3]) == 3
