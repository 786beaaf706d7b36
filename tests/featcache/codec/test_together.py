"""Rows that are encoded together, and utterances that are decoded together, are what each is alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as hypothesis_arrays

from featcache import codec as codecs
from featcache.codec import residual
from featcache.codec.residual import Residual
from featcache.errors import CorruptCacheError
from tests.featcache.codec.examples import CHANNELS, FINITE, TAPS, build, speech_like

PROFILES = ("residual:step=0.5", "residual:nmse=0.05", "int8", "fp16", "blosc:0.5", "bitround:3")
SPECIAL = st.one_of(FINITE, st.sampled_from([np.float32(v) for v in (np.nan, np.inf, -np.inf, 1e30)]))


@pytest.fixture(scope="module")
def bounded() -> Residual:
    return build({"nmse": 0.05})


def of(profile: str) -> codecs.Codec:
    name, parameters = codecs.parse_profile(profile)
    kind = codecs.profile_class(name)
    calibration = kind.fit([speech_like(320, seed) for seed in range(2)], parameters)
    return codecs.build(name, kind.version, TAPS, CHANNELS, parameters, calibration)


def stored(
    codec: codecs.Codec, rows: Sequence[np.ndarray], taps: Sequence[int]
) -> tuple[dict[str, torch.Tensor], list[int], Sequence[int]]:
    """What `decode` takes: the planes of rows, their lengths, and where the taps are."""
    encoded = [codec.complete(codec.encode(row).planes) for row in rows]
    planes = {plane.name: np.concatenate([row[plane.name] for row in encoded]) for plane in codec.planes}
    selected, places = codec.select(planes, taps)
    return {name: torch.from_numpy(plane) for name, plane in selected.items()}, [len(row) for row in rows], places


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_is_encoded_to_the_same_bytes_whatever_is_encoded_with_it(bounded: Residual, data: st.DataObject) -> None:
    """Whatever it holds: beyond all bounds, not finite, or nothing at all."""
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
    shapes = [(length, TAPS, CHANNELS) for length in lengths]
    fill = st.just(np.float32(0))
    rows = [data.draw(hypothesis_arrays(np.float32, shape, elements=SPECIAL, fill=fill)) for shape in shapes]
    with np.errstate(all="ignore"):
        together = [rest() for rest in bounded.encode_rows(rows)]
        alone = [bounded.encode(row) for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one.planes.keys() == other.planes.keys()
        assert all(one.planes[name].tobytes() == other.planes[name].tobytes() for name in one.planes)


@pytest.mark.parametrize("profile", PROFILES)
def test_long_and_short_rows_in_any_order(profile: str) -> None:
    codec = of(profile)
    rows = [speech_like(frames, seed) for seed, frames in enumerate((700, 3, 260, 250, 1, 40))]
    rests = codec.encode_rows(rows)
    for number in (4, 0, 5, 3, 1, 2):
        found, expected = rests[number]().planes, codec.encode(rows[number]).planes
        assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_nothing_is_encoded_before_it_is_asked_for_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    codec, calls = build({"step": 0.5}), []
    encode = codec._encode
    monkeypatch.setattr(codec, "_encode", lambda rows: calls.append(len(rows)) or encode(rows))
    monkeypatch.setattr(residual, "TOGETHER", 60)
    rests = codec.encode_rows([speech_like(25, seed) for seed in range(5)])
    assert calls == []
    for rest in (rests[1], rests[0], rests[1]):
        rest()
    assert calls == [2]
    for rest in rests:
        rest()
    assert calls == [2, 2, 1]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("taps", [[0, 1, 2], [2, 0]])
def test_a_batch_is_its_utterances_and_zeros(profile: str, taps: list[int]) -> None:
    codec = of(profile)
    rows = [speech_like(frames, seed) for seed, frames in enumerate((5, 0, 40, 17))]
    rows[2][7, 1, 3] = 1e30 if profile.startswith("residual") else 1.0
    planes, lengths, places = stored(codec, rows, taps)
    flat, batch = codec.decode(planes, lengths, places), codec.decode_batch(planes, lengths, places)
    assert batch.shape == (4, 40, len(taps), CHANNELS) and batch.dtype == torch.float32
    for padded, part in zip(batch, flat.split(lengths), strict=True):
        assert torch.equal(padded[: len(part)], part)
        assert not padded[len(part) :].any()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_batch_of_nothing(profile: str) -> None:
    codec = of(profile)
    planes, _, places = stored(codec, [np.zeros((0, TAPS, CHANNELS), np.float32)], [0, 1])
    assert codec.decode_batch(planes, [], places).shape == (0, 0, 2, CHANNELS)
    assert codec.decode_batch(planes, [0, 0], places).shape == (2, 0, 2, CHANNELS)


def test_an_utterance_that_begins_within_a_row_is_an_error() -> None:
    codec = build({"step": 0.5})
    planes, _, _ = stored(codec, [speech_like(30, 1), speech_like(20, 2)], [0])
    with pytest.raises(CorruptCacheError, match="do not begin with a row"):
        codec.decode(planes, [29, 21], [0])
