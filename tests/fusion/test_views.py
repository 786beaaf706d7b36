"""Views in training: which rows have them, which are drawn, and that no copy of a row of dev or test is learnt from."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from featcache import Cache
from featcache.errors import UsageError
from fusion import labels, recipe, tasks
from fusion import train as training
from fusion.data import Batch, Sampler, plan_epoch
from fusion.distributed import World
from fusion.labels import VIEWS, Example, Skipped, Split
from fusion.learner import Learner
from fusion.recipe import Recipe, TaskRecipe
from fusion.run import Files
from fusion.stream import streams
from fusion.views import Pool, pool
from pipelines import fewshot
from tests.fusion.power import power_cut
from tests.fusion.speech import toy_recipe, utterances
from tests.helpers import make_cache

COUNT = 40


def views_cache(path: Path, with_views: bool = True) -> Path:
    """A toy language, and of every second utterance a noisy view and one of twice its frames."""
    features, texts = utterances(COUNT)
    rng = np.random.default_rng(7)
    for id_ in list(features)[::2] if with_views else ():
        values = features[id_]
        for view, made in (("noise=15", values), ("speed=0.5", np.repeat(values, 2, 0))):
            copy = f"{id_}@{view}"
            features[copy] = (made + 0.3 * rng.standard_normal(made.shape)).astype(np.float32)
            # What a view says of itself is not looked at.
            texts[copy] = {"text": "zzz", "split": "train", "view": view, "view_of": id_}
    quarantine = {"u0010@noise=15": "NaN at tap 1"} if with_views else {}
    return make_cache(path, features, texts, quarantine=quarantine)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("views")
    views_cache(root / "cache")
    views_cache(root / "plain", with_views=False)
    return root


def toy(place: Path, *overrides: str, steps: int = 12, cache: str = "cache") -> Recipe:
    text = toy_recipe(place / cache, steps, "linear")
    return recipe.parse(text, ["train.workers=1", "train.eval_every=5", *overrides])


def select(place: Path, *overrides: str) -> labels.Selection:
    return labels.select(Cache.open(place / "cache"), toy(place, *overrides))


# which rows


def test_no_split_has_a_view_and_only_rows_of_train_have_some(place: Path) -> None:
    selection = select(place)
    ids = {name: [example.id for example in found] for name, found in selection.splits.items()}
    assert not any("@" in id_ for found in ids.values() for id_ in found)
    assert (len(ids["train"]), len(ids["dev"]), len(ids["test"])) == (32, 4, 4)
    # u0008, u0018, ... have views and are in dev
    assert {view.view_of for view in selection.views} == {f"u{i:04d}" for i in range(0, COUNT, 2) if i % 10 != 8}
    label_of = {example.id: example.label for example in selection.splits["train"]}
    assert all(view.label == label_of[view.view_of] for view in selection.views)
    assert "u0010@noise=15" not in {view.id for view in selection.views}
    assert selection.skipped == ()
    assert select(place, "train.views=0.5").skipped == (Skipped("u0010@noise=15", VIEWS, "quarantined in the cache"),)


def test_views_follow_their_originals_through_filters_limits_and_files(place: Path, tmp_path: Path) -> None:
    few = select(place, "limit=8")
    drawn = {example.id for example in few.splits["train"]}
    assert len(drawn) == 8 and {view.view_of for view in few.views} == {id_ for id_ in drawn if int(id_[1:]) % 2 == 0}
    assert few.views
    rows = [{"id": f"u{i:04d}", "lang": "en" if i < 4 else "it", "text": f"new {i}"} for i in range(COUNT)]
    # A row of train goes to dev, and takes its views away from training.
    rows[2]["split"] = "dev"
    rows += [{"id": "u0002@noise=15", "split": "train", "lang": "en", "text": "leak"}]
    (tmp_path / "labels.jsonl").write_text(
        "".join(json.dumps({"split": _split(i), **row}) + "\n" for i, row in enumerate(rows))
    )
    found = select(place, f"task.labels_file={tmp_path / 'labels.jsonl'}", 'task.where.lang=["en", "it"]')
    assert "u0002" in {example.id for example in found.splits["dev"]}
    assert "u0002" not in {view.view_of for view in found.views} and found.views
    assert all(view.label == f"new {int(view.view_of[1:])}" for view in found.views)


def _split(i: int) -> str:
    return "dev" if i % 10 == 8 else "test" if i % 10 == 9 else "train"


def test_what_a_small_subset_leaves_out_is_not_learnt_from_through_its_views(place: Path, tmp_path: Path) -> None:
    small, (_, taken) = fewshot.within(toy(place), 0.03, "lang", tmp_path / "subset.jsonl")
    found = labels.select(Cache.open(place / "cache"), small)
    inside = {example.id for example in found.splits["train"]}
    assert len(inside) == taken < 32 and {view.view_of for view in found.views} <= inside


def test_a_cache_of_views_alone_names_the_split(tmp_path: Path) -> None:
    features = {name: np.ones((4, 3, 8), np.float32) for name in ("a@noise=1", "b@noise=1")}
    columns = {name: {"text": "a", "split": "train", "view_of": name[0]} for name in features}
    make_cache(tmp_path / "cache", features, columns)
    with pytest.raises(UsageError, match="key split.train: no usable row"):
        labels.select(Cache.open(tmp_path / "cache"), toy(tmp_path))


# what is drawn


def split_of(frames: list[int]) -> Split:
    ids = tuple(map(str, range(len(frames))))
    return Split("train", ids, np.arange(len(ids)), np.array(frames, np.int64), ids, tuple((1,) for _ in ids))


POOLS = st.integers(1, 60).flatmap(
    lambda n: st.builds(
        lambda of, share: Pool(split_of(list(range(1, n + len(of) + 1))), n, np.array(of, np.int64), share),
        st.lists(st.integers(0, n - 1), max_size=120),
        st.sampled_from([0.0, 0.3, 1.0]),
    )
)


@given(POOLS, st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_an_epoch_has_each_utterance_once_as_itself_or_one_of_its_views(made: Pool, seed: int, epoch: int) -> None:
    drawn = made.draw(seed, epoch)
    stands_for = np.concatenate([np.arange(made.originals), made.of])
    assert np.array_equal(stands_for[drawn], np.arange(made.originals))
    assert np.array_equal(drawn, made.draw(seed, epoch))
    if made.share == 0:
        assert np.array_equal(drawn, np.arange(made.originals))
    if made.share == 1:
        assert np.array_equal(drawn >= made.originals, np.isin(np.arange(made.originals), made.of))


def test_views_are_drawn_at_their_share_each_as_often_and_anew_each_epoch() -> None:
    count = 6000
    of = np.repeat(np.arange(count), 3)
    np.random.default_rng(0).shuffle(of)
    made = Pool(split_of([1] * (4 * count)), count, of, 0.4)
    first, second = made.draw(1, 0), made.draw(1, 1)
    assert (first >= count).mean() == pytest.approx(0.4, abs=0.03)
    # Of the three of an utterance, by their order.
    rank = np.empty(3 * count, np.int64)
    rank[np.argsort(of, kind="stable")] = np.tile(np.arange(3), count)
    chosen = np.bincount(rank[first[first >= count] - count], minlength=3)
    assert chosen / chosen.sum() == pytest.approx([1 / 3] * 3, abs=0.03)
    assert 0.3 < (first != second).mean() < 0.8 and not np.array_equal(first, made.draw(2, 0))


@settings(max_examples=30)
@given(POOLS, st.integers(0, 40), st.integers(1, 3))
def test_a_sampler_that_draws_views_goes_on_from_any_position(made: Pool, taken: int, world: int) -> None:
    def sampler(epoch: int = 0, step: int = 0) -> Sampler:
        return Sampler(made.split.frames, 200, 3, 0, world, epoch, step, made.draw)

    whole = list(itertools.islice(sampler(), taken + 6))
    last = whole[taken]
    for a, b in zip(whole[taken + 1 :], sampler(last.epoch, last.step + 1), strict=False):
        assert a[:2] == b[:2] and np.array_equal(a.positions, b.positions)
    for slot in whole:  # by the drawn row's length, not the original's
        assert len(slot.positions) == 1 or len(slot.positions) * made.split.frames[slot.positions].max() <= 200


def test_every_epoch_of_a_sampler_draws_anew() -> None:
    made = Pool(split_of([10] * 200), 100, np.arange(100), 0.5)
    slots = itertools.takewhile(lambda slot: slot.epoch < 3, Sampler(made.split.frames, 200, 3, draw=made.draw))
    for epoch, found in itertools.groupby(slots, lambda slot: slot.epoch):
        positions = np.concatenate([slot.positions for slot in found])
        assert sorted(positions) == sorted(made.draw(3, epoch))
    assert not np.array_equal(made.draw(3, 0), made.draw(3, 1))


@given(POOLS)
def test_without_views_the_batches_are_what_they_were(made: Pool) -> None:
    plain = Sampler(made.split.frames, 200, 3)
    batches = [slot.positions for slot in itertools.takewhile(lambda slot: slot.epoch == 0, plain)]
    for a, b in zip(batches, plan_epoch(made.split.frames, 200, 3, 0), strict=True):
        assert np.array_equal(a, b)


def test_a_view_that_cannot_be_learnt_from_is_skipped_with_its_reason() -> None:
    spans = json.dumps([["speech", 0.0, 0.06]])
    task = tasks.fit(TaskRecipe(kind="tag", label="spans"), [spans], 50.0)
    train = labels.prepare([Example(0, "a", spans, 10)], "train", task, [10])
    views = [
        Example(1, "a@noise=5", spans, 10, "a"),
        Example(2, "a@speed=0.5", spans, 20, "a"),
        Example(3, "x", "", 1, "b"),
    ]
    found = pool(train, views, 0.5, task, lambda examples: [example.frames for example in examples])
    assert found.split.ids == ("a", "a@noise=5") and found.of.tolist() == [0]
    assert [(skip.id, skip.split) for skip in found.split.skipped] == [("a@speed=0.5", VIEWS)]
    ctc = tasks.fit(TaskRecipe(), ["abcdefgh"], 50.0)
    train = labels.prepare([Example(0, "a", "abcdefgh", 10)], "train", ctc, [10], learn=True)
    views = [Example(1, "fast", "abcdefgh", 5, "a"), Example(2, "slow", "abcdefgh", 20, "a")]
    found = pool(train, views, 0.5, ctc, lambda examples: [example.frames for example in examples])
    assert found.split.ids == ("a", "slow")
    assert found.split.skipped == (Skipped("fast", VIEWS, "more labels than frames"),)


# in training


def fit(made: Recipe, runs: Path) -> tuple[tuple[bytes, bytes], dict[str, Any], str]:
    runs.parent.mkdir(exist_ok=True, parents=True)
    with (runs.parent / f"{runs.name}.log").open("w+") as log:
        run = training.fit(made, runs=runs, console=Console(file=log, width=200))
        log.seek(0)
        text = log.read()
    return tuple((run.path / name).read_bytes() for name in FILES), run.metrics(), text  # type: ignore[return-value]


FILES = ("checkpoint.safetensors", "best.safetensors")


def test_views_are_not_used_unless_a_recipe_asks_for_them(place: Path, tmp_path: Path) -> None:
    plain, _, log = fit(toy(place, cache="plain"), tmp_path / "plain")
    unused, metrics, told = fit(toy(place), tmp_path / "unused")
    used, with_views, said = fit(toy(place, "train.views=0.5"), tmp_path / "used")
    assert plain == unused != used
    assert "views" not in log and "views: 31, not used (key train.views is 0)" in told
    assert "views: 31 of 16 utterances of train, drawn at 50%, skipped 1 (quarantined in the cache)" in said
    assert (metrics["train_views"], with_views["train_views"]) == (0, 31)
    assert metrics["train_utterances"] == with_views["train_utterances"] == 32
    assert metrics["utterances"] == with_views["utterances"] == 4


def test_a_run_with_views_that_died_goes_on_to_the_same_bits(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = toy(place, "train.views=0.5")
    whole, _, _ = fit(made, tmp_path / "whole")
    step = Learner.step
    drawn: list[list[int]] = []

    def recording(self: Learner, batch: Batch) -> None:
        drawn.append(batch.slot.positions.tolist())
        # The label goes with the drawn row.
        assert batch.lengths.tolist() == self.pool.split.frames[batch.slot.positions].tolist()
        step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", recording)
        with power_cut(8):
            fit(made, tmp_path / "died")
    again, _, log = fit(made, tmp_path / "died")
    assert "going on from step 5" in log and again == whole
    assert any(position >= 32 for batch in drawn for position in batch)


def test_views_that_are_not_there_are_one_line(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="key train.views: 0.5 .* `featcache manifest views`"):
        training.fit(toy(place, "train.views=0.5", cache="plain"), runs=tmp_path)
    for value in ("1.5", "-0.1", '"half"'):
        with pytest.raises(UsageError, match="key train.views"):
            toy(place, f"train.views={value}")
    made = toy(place, "train.views=0.5")
    training.fit(made, runs=tmp_path)
    with pytest.raises(UsageError, match="differs in train.views"):
        training.fit(toy(place, "train.views=0.4"), runs=tmp_path)


def test_a_sweep_gives_each_share_of_views_batches_of_its_own(place: Path, tmp_path: Path) -> None:
    shares = {"none": 0.0, "half": 0.5, "also-half": 0.5, "all": 1.0}
    made = [toy(place, f"name={name}", f"train.views={share}") for name, share in shares.items()]
    cache, here = Cache.open(place / "cache"), World(0, 1, torch.device("cpu"))
    learners = [
        Learner(training.head.resolve(one), cache, Files(tmp_path / one.name), here, Console(quiet=True), {})
        for one in made
    ]
    together = [[learner.recipe.name for learner in stream] for stream in streams(learners)]
    assert together == [["none"], ["half", "also-half"], ["all"]]
    training.fit_together(made, runs=tmp_path / "together", console=Console(quiet=True))
    alone, _, _ = fit(made[2], tmp_path / "alone")
    assert alone == tuple((tmp_path / "together" / "also-half" / name).read_bytes() for name in FILES)
