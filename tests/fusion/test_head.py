"""A head over means of frames: right against a loop, indifferent to padding, and at the rate that it states."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache import Cache
from featcache.errors import UsageError
from fusion import head, recipe
from fusion import train as training
from fusion.head import Head, pool_frames
from fusion.modules import DECODERS, build_decoder, build_fuser
from tests.fusion.speech import toy_cache, toy_recipe


@given(lengths=st.lists(st.integers(0, 13), min_size=1, max_size=4), pool=st.integers(1, 5), behind=st.integers(0, 3))
def test_every_frame_of_an_utterance_is_in_one_mean(lengths: list[int], pool: int, behind: int) -> None:
    longest = max(lengths) + behind
    features = torch.randn(len(lengths), longest, 2, 3)
    for row, length in enumerate(lengths):
        features[row, length:] = 0
    pooled, counts = pool_frames(features, torch.tensor(lengths), pool)
    assert counts.tolist() == [-(-length // pool) for length in lengths] and pooled.shape[1] == -(-longest // pool)
    for row, length in enumerate(lengths):
        expected = [features[row, at : min(at + pool, length)].mean(0) for at in range(0, length, pool)]
        for frame, mean in zip(pooled[row], expected, strict=False):
            torch.testing.assert_close(frame, mean)
        assert not pooled[row, len(expected) :].any()


def test_what_is_prepared_elsewhere_gives_the_same_logits() -> None:
    head_ = Head(build_fuser("last", 3, 8, width=8), build_decoder("linear", 8, 5), taps=3, channels=8, pool=2).eval()
    head_.standardise_by(torch.randn(3, 8), torch.rand(3, 8))
    features, lengths = torch.randn(2, 7, 3, 8), torch.tensor([7, 4])
    expected, of = head_(features, lengths)
    found, prepared_of = head_(*head_.prepare(features, lengths), prepared=True)
    assert torch.equal(found, expected) and torch.equal(prepared_of, of)


@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize("kind", DECODERS)
def test_an_utterance_does_not_see_its_batch(kind: str, pool: int) -> None:
    fuser = build_fuser("hff", taps=4, channels=12, width=8)
    module = Head(fuser, build_decoder(kind, 8, 5), taps=4, channels=12, pool=pool).eval()
    module.standardise_by(torch.full((4, 12), 3.0), torch.full((4, 12), 2.0))
    lengths = [17, 30, 1]
    features = torch.randn(3, 30, 4, 12) + 3
    for row, length in enumerate(lengths):
        features[row, length:] = 0
    logits, counts = module(features, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone, count = module(features[row : row + 1, :length], torch.tensor([length]))
        assert int(counts[row]) == int(count) == alone.shape[1]
        torch.testing.assert_close(logits[row : row + 1, : int(count)], alone, rtol=1e-4, atol=1e-5)


def test_a_run_states_the_rate_of_its_logits(tmp_path: Path) -> None:
    cache = Cache.open(toy_cache(tmp_path / "cache"))
    run = training.fit(
        recipe.parse(toy_recipe(tmp_path / "cache", 3), ["fuser.pool=3", "decoder.stack=2"]), runs=tmp_path
    )
    assert (run.spec.pool, run.spec.stride, run.logit_rate) == (3, 6, cache.frame_rate / 6)
    assert run.recipe.fuser.pool == 3 and head.build(run.spec).pool == 3
    assert len(run.log_probs(cache.read(0))) == -(-len(cache.read(0)) // 6)
    with pytest.raises(UsageError, match="fuser.pool"):
        recipe.parse(toy_recipe(tmp_path / "cache"), ["fuser.pool=0"])
