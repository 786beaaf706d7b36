"""Planning is arithmetic: windows abut, shards hold whole rows, batches keep to their budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache import codec as codecs
from featcache.geometry import Geometry
from featcache.plan import make_plan, windows
from featcache.spec import CacheSpec, Layout
from tests.helpers import make_spec

WAV2VEC2 = Geometry.conv(((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)), window_samples=20 * 16_000)
GEOMETRIES = [Geometry.whisper(), WAV2VEC2, Geometry.mel(160, window_samples=15 * 16_000)]


def spec_for(geometry: Geometry, can_pad: bool = True, **layout: float) -> CacheSpec:
    calibration = codecs.profile_class("int8").fit([np.ones((3, 2, 4), np.float32)], {})
    spec = make_spec(2, 4, calibration, "int8", Layout(**{"chunk_frames": 16, "shard_frames": 4096, **layout}))
    return spec.model_copy(update={"geometry": geometry, "can_pad": can_pad})


@given(st.sampled_from(GEOMETRIES), st.integers(0, 400 * 16_000))
def test_windows_cover_every_frame_once(geometry: Geometry, samples: int) -> None:
    cut = windows(samples, geometry)
    assert sum(window.frames for window in cut) == geometry.frames(samples)
    position = 0
    for window in cut:
        assert geometry.window_samples is None or window.stop - window.start <= geometry.window_samples
        assert window.start % geometry.hop == 0
        # Kept frames of consecutive windows are consecutive frames of the utterance.
        assert window.start // geometry.hop + window.keep == position
        assert window.keep >= 0 and window.keep + window.frames <= geometry.frames(window.stop - window.start)
        position += window.frames
    assert cut[0].start == 0 and cut[-1].stop == samples


def test_inner_edges_lose_a_second_of_context() -> None:
    first, second, *_ = windows(70 * 16_000, Geometry.whisper())
    assert (first.stop - second.start) / 16_000 == 2.0
    assert second.keep == 50 and first.frames == 1450


@given(
    st.lists(st.integers(0, 90 * 16_000), min_size=1, max_size=40),
    st.sampled_from(GEOMETRIES),
    st.booleans(),
    st.floats(1, 100),
)
def test_rows_lie_whole_in_shards_and_once_in_batches(
    samples: list[int], geometry: Geometry, can_pad: bool, batch_seconds: float
) -> None:
    spec = spec_for(geometry, can_pad, batch_seconds=batch_seconds)
    plan = make_plan([f"u{i}" for i in range(len(samples))], samples, spec, 8)
    end = plan.position + plan.frames
    filled = plan.frames > 0
    assert (plan.position // plan.shard_frames == plan.shard)[filled].all()
    assert (end <= (plan.shard + 1) * plan.shard_frames).all()
    assert (plan.position[1:] >= end[:-1]).all()
    assert (np.diff(plan.shard) >= 0).all() and (np.diff(plan.shard) <= 1).all()
    size = plan.stop - plan.start
    seen: list[int] = []
    for shard in range(plan.shards):
        for batch in plan.batches(shard):
            seen += batch
            assert {int(plan.shard[r]) for r in batch} == {shard}
            assert len(batch) == 1 or len(batch) * size[batch].max() <= batch_seconds * 16_000
            assert can_pad or len(set(size[batch].tolist())) == 1
    assert plan.passes[1] <= 0.05
    assert sorted(seen) == np.flatnonzero(plan.frames > 0).tolist()


def test_the_digest_follows_what_decides_the_bytes() -> None:
    spec = spec_for(Geometry.whisper())
    plan = make_plan(["a", "b"], [16_000, 32_000], spec, 8)
    assert plan.digest == make_plan(["a", "b"], [16_000, 32_000], spec, 8).digest
    for other in (
        make_plan(["a", "c"], [16_000, 32_000], spec, 8),
        make_plan(["a", "b"], [16_000, 32_320], spec, 8),
        make_plan(["b", "a"], [32_000, 16_000], spec, 8),
        replace(plan, batch_samples=1),
        replace(plan, can_pad=False),
    ):
        assert other.digest != plan.digest


def test_a_shard_is_no_longer_than_what_there_is_to_store() -> None:
    plan = make_plan(["a"], [16_000], spec_for(Geometry.whisper()), 8)
    assert plan.shard_frames == 64 and plan.shards == 1


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_padding_is_small_and_passes_are_full_when_lengths_are_spread(geometry: Geometry) -> None:
    rng = np.random.default_rng(0)
    samples = rng.integers(8_000, 15 * 16_000, 2000)
    plan = make_plan([str(i) for i in range(2000)], samples, spec_for(geometry, shard_frames=1 << 17), 8)
    count, waste = plan.passes
    assert count == sum(1 for shard in range(plan.shards) for _ in plan.batches(shard))
    assert waste < 0.05
    # No fuller than full, and not many small ones instead.
    assert 1 <= count / (samples.sum() / (60 * 16_000)) < 1.5


@given(st.lists(st.integers(0, 3 * 30 * 16_000), max_size=60), st.sampled_from([64, 512, 4096]))
def test_a_plan_of_many_is_the_plan_of_each(samples: list[int], shard_frames: int) -> None:
    """Rows and shards are computed for all at once; here one by one."""
    plan = make_plan([f"u{i}" for i in range(len(samples))], samples, spec_for(WAV2VEC2, shard_frames=shard_frames), 8)
    flat = [(u, window) for u, n in enumerate(samples) for window in windows(n, WAV2VEC2)]
    assert plan.utterance.tolist() == [u for u, _ in flat]
    for name in ("start", "stop", "keep", "frames"):
        assert getattr(plan, name).tolist() == [getattr(window, name) for _, window in flat]
    shard = used = 0
    for row, (_, window) in enumerate(flat):
        if used + window.frames > plan.shard_frames:
            shard, used = shard + 1, 0
        assert (plan.shard[row], plan.position[row]) == (shard, shard * plan.shard_frames + used)
        used += window.frames
