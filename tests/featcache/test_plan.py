"""Planning is arithmetic: windows abut, shards hold whole rows, batches keep to their budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from featcache import codec as codecs
from featcache.errors import UpstreamError
from featcache.geometry import Geometry
from featcache.plan import make_plan, shards_together
from featcache.spec import ROWS_BATCHED, CacheSpec, Layout
from featcache.upstreams import UpstreamConfig, load
from featcache.windows import stream_windows, windows
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
    st.integers(1, 5),
)
def test_rows_lie_whole_in_shards_and_once_in_batches(
    samples: list[int], geometry: Geometry, can_pad: bool, batch_seconds: float, together: int
) -> None:
    spec = spec_for(geometry, can_pad, batch_seconds=batch_seconds)
    plan = make_plan([f"u{i}" for i in range(len(samples))], samples, spec, 8)
    assert plan.shards_together == 1 and plan.groups == plan.shards
    plan = replace(plan, shards_together=together)
    end = plan.position + plan.frames
    filled = plan.frames > 0
    assert (plan.position // plan.shard_frames == plan.shard)[filled].all()
    assert (end <= (plan.shard + 1) * plan.shard_frames).all()
    assert (plan.position[1:] >= end[:-1]).all()
    assert (np.diff(plan.shard) >= 0).all() and (np.diff(plan.shard) <= 1).all()
    size = plan.stop - plan.start
    seen: list[int] = []
    for group in range(plan.groups):
        for batch in plan.batches(group):
            seen += batch
            assert {plan.group(int(plan.shard[r])) for r in batch} == {group}
            assert len(batch) == 1 or len(batch) * size[batch].max() <= batch_seconds * 16_000
            assert can_pad or len(set(size[batch].tolist())) == 1
    assert plan.passes[1] <= 0.05
    assert sorted(seen) == np.flatnonzero(plan.frames > 0).tolist()


@given(
    st.lists(st.integers(0, 40 * 16_000), min_size=1, max_size=80),
    st.booleans(),
    st.integers(1, 4),
    st.data(),
)
def test_some_shards_of_a_group_are_given_by_its_own_batches(
    samples: list[int], can_pad: bool, together: int, data: st.DataObject
) -> None:
    """Whichever are asked for, and in whatever pieces."""
    spec = spec_for(WAV2VEC2, can_pad, batch_seconds=60, shard_frames=2048)
    plan = make_plan([f"u{i}" for i in range(len(samples))], samples, spec, 8)
    plan = replace(plan, shards_together=together)
    wanted = data.draw(st.sets(st.integers(0, plan.shards - 1), min_size=1))
    grouped = plan.grouped(wanted)
    assert [shard for shards in grouped for shard in shards] == sorted(wanted)
    assert len({plan.group(shards[0]) for shards in grouped}) == len(grouped)
    for shards in grouped:
        whole = list(plan.batches(plan.group(shards[0])))
        assert {plan.group(shard) for shard in shards} == {plan.group(shards[0])}
        found = list(plan.batches_of(shards))
        assert [batch for batch, _ in found] == [b for b in whole if set(plan.shard[b].tolist()) & set(shards)]
        assert all(among == sorted(set(plan.shard[batch].tolist()) & set(shards)) for batch, among in found)
        # Each alone, and together again.
        one_by_one = {tuple(batch) for shard in shards for batch, _ in plan.batches_of([shard])}
        assert one_by_one == {tuple(batch) for batch, _ in found}
        rows = [row for batch, _ in found for row in batch if plan.shard[row] in shards]
        assert len(rows) == sum(plan.rows_with_frames(shard) for shard in shards) == len(set(rows))


def batched(spec: CacheSpec) -> CacheSpec:
    return spec.model_copy(update={"identity": {**spec.identity, "rows": "batched"}})


def test_only_where_rows_run_together_are_shards_planned_together() -> None:
    spec = spec_for(WAV2VEC2, shard_frames=18_960, batch_seconds=480)
    alone = spec.model_copy(update={"identity": {**spec.identity, "rows": "alone, one thread"}})
    assert shards_together(spec, 18_960, 9984) == shards_together(alone, 18_960, 9984) == 1
    # Eight batches of 480 s are ten shards of 379 s.
    assert shards_together(batched(spec), 18_960, 9984) == 11
    # Large activations: no more than fit the memory. Large shards: two, so that passes have the price of a launch.
    assert shards_together(batched(spec), 5_000, 53_000) == 16
    assert shards_together(batched(spec), 1 << 20, 1) == shards_together(batched(spec), 1 << 20, 1 << 20) == 2


def test_identities_say_how_rows_run() -> None:
    upstream = load(UpstreamConfig(id="mel:8"), "cpu")
    assert upstream.identity["rows"] != ROWS_BATCHED
    upstream.device = torch.device("cuda")
    assert upstream._identify()["rows"] == ROWS_BATCHED


def test_batches_of_a_device_are_full() -> None:
    """Within a shard, utterances of 8 to 16 s make batches of under 80 s."""
    samples = np.random.default_rng(0).integers(8 * 16_000, 16 * 16_000, 2000)
    spec = batched(spec_for(WAV2VEC2, shard_frames=18_960, batch_seconds=480))
    plan = make_plan([str(i) for i in range(2000)], samples, spec, 9984)
    assert plan.shards_together == 11
    per_shard = replace(plan, shards_together=1)
    seconds = samples.sum() / 16_000
    assert seconds / per_shard.passes[0] < 80 and seconds / plan.passes[0] > 350 and plan.passes[1] <= 0.05


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
        replace(plan, shards_together=2),
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
    assert count == sum(1 for group in range(plan.groups) for _ in plan.batches(group))
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


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_window_that_is_all_overlap_cuts_nothing(seconds: int) -> None:
    geometry = Geometry.whisper(seconds * 16_000)
    assert len(windows(seconds * 16_000, geometry)) == 1
    with pytest.raises(UpstreamError, match=f"window is {seconds} s, and windows overlap by 2 s"):
        windows(seconds * 16_000 + 1, geometry)
    with pytest.raises(UpstreamError, match="a longer window"):
        list(stream_windows([np.zeros(seconds * 16_000 + 1, np.float32)], geometry))
