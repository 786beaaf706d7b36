"""Profile `residual`: bounds for any finite input, the same integers everywhere, the bytes of the format."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as hypothesis_arrays
from numcodecs.zstd import Zstd

from featcache import Cache, layout
from featcache import codec as codecs
from featcache.codec import fitting, kernels_pack, literal, mixing, packing
from featcache.codec.device import Decoder
from featcache.codec.residual import BOUND, Residual
from featcache.digest import sha256
from featcache.errors import CacheError, CorruptCacheError, UsageError
from featcache.plan import make_plan
from featcache.spec import Layout, format_profile
from featcache.storage import LocalStorage
from featcache.writer import SegmentWriter
from tests.featcache.codec.examples import CHANNELS, FINITE, TAPS, build, speech_like
from tests.helpers import make_cache, make_spec


@pytest.fixture(scope="module")
def codec() -> Residual:
    return build({"step": 0.5})


def decode(codec: codecs.Codec, rows: list[np.ndarray], taps: list[int] | None = None, thin: bool = True) -> np.ndarray:
    """Rows through the codec, as the store passes them on: `exact` only where it is asked for."""
    encoded = [codec.complete(codec.encode(row).planes) for row in rows]
    planes: dict[str, torch.Tensor] = {}
    for plane in codec.planes:
        spans = [codec.needed(plane.name, row, len(row[plane.name])) for row in encoded]
        whole = [row[plane.name] for row in encoded]
        pieces = [row[span.start : span.stop] for row, span in zip(whole, spans, strict=True)] if thin else whole
        empty = np.zeros((0, *plane.frame_shape), plane.dtype)
        planes[plane.name] = torch.from_numpy(np.concatenate([empty, *pieces]))
    wanted = list(range(codec.taps)) if taps is None else taps
    return codec.decode(planes, [len(row) for row in rows], wanted).numpy()


def error_in_steps(codec: codecs.Codec, row: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    return np.abs(row.astype(np.float64) - decoded) / codec.calibration["step"]


# The bound


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_finite_input_is_within_the_bound(codec: Residual, data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 12)), TAPS, CHANNELS)
    row = data.draw(hypothesis_arrays(np.float32, shape, elements=FINITE, fill=st.just(np.float32(0))))
    assert error_in_steps(codec, row, decode(codec, [row])).max() <= BOUND


@pytest.mark.parametrize(
    "frames, taps, channels", [(1, 1, 1), (1, 3, 20), (70, 1, 1), (70, 1, 7), (70, 4, 1), (2, 2, 513)]
)
@pytest.mark.parametrize("parameters", [{"step": 0.3}, {"step": 1.5}, {"step": 4.0}, {"bits": 1.0}, {"nmse": 0.1}])
def test_all_shapes(frames: int, taps: int, channels: int, parameters: dict[str, Any]) -> None:
    rows = [speech_like(frames, seed, taps, channels) for seed in range(2)]
    codec = build(parameters, rows)
    assert error_in_steps(codec, rows[0], decode(codec, rows)[:frames]).max() <= BOUND


@pytest.mark.parametrize("value", [0.0, 1.0, -7.25, 1e30, 1e-40])
def test_a_constant_calibration(value: float) -> None:
    constant = np.full((50, TAPS, CHANNELS), value, np.float32)
    codec = build({"step": 1.0}, [constant])
    assert np.abs(decode(codec, [constant]) - constant).max() <= np.abs(value) * 1e-6
    other = speech_like(50, 1)
    assert error_in_steps(codec, other, decode(codec, [other])).max() <= BOUND


def test_an_error_that_is_asked_for_of_a_constant_calibration() -> None:
    silence = np.zeros((50, TAPS, CHANNELS), np.float32)
    codec = build({"nmse": 0.1}, [silence, silence])
    np.testing.assert_array_equal(decode(codec, [silence]), silence)


def test_a_channel_that_wakes_up_after_calibration_is_coded_with_the_typical_step() -> None:
    rows = [speech_like(200, seed) for seed in range(2)]
    silent = [row.copy() for row in rows]
    for row in silent:
        row[:, :, 4] = 0
    codec = build({"step": 0.5}, silent)
    typical = np.median(codec.calibration["deviation"], axis=1)
    np.testing.assert_allclose(codec.calibration["deviation"][:, 4], typical, rtol=0.2)


def test_an_outlier_in_the_calibration_does_not_set_a_step(codec: Residual) -> None:
    rows = [speech_like(400, seed) for seed in range(3)]
    rows[1][50, 1, 5] = 1e20
    found = build({"step": 0.5}, rows)
    np.testing.assert_allclose(found.calibration["step"], codec.calibration["step"], rtol=0.01)


def test_outliers_leave_their_neighbours_as_they_were(codec: Residual) -> None:
    """500 deviations, and more than any step counts."""
    row = speech_like(60, 9)
    clean = decode(codec, [row])
    for size in (500.0, 1e6, 1e37):
        loud = row.copy()
        loud[30, 1, 5] = size * codec.calibration["deviation"][1, 5]
        found = decode(codec, [loud])
        assert error_in_steps(codec, loud, found).max() <= BOUND
        # Everywhere else errors stay what they usually are, and far from it values stay what they were.
        rest = error_in_steps(codec, loud, found)
        rest[30, 1, 5] = 0
        assert rest.max() < 2.0
        np.testing.assert_array_equal(found[:28], clean[:28])
        np.testing.assert_array_equal(found[:, 0], clean[:, 0])


def test_many_outliers_in_a_frame_exceed_its_tail_and_are_exact(codec: Residual) -> None:
    row = speech_like(40, 3)
    row[20] = codec.calibration["mean"] + 300 * codec.calibration["deviation"]
    assert error_in_steps(codec, row, decode(codec, [row])).max() <= BOUND


# Targets


@pytest.mark.parametrize("bits", [0.8, 1.0, 1.5, 2.0, 3.0])
def test_asked_bits_are_kept_on_other_rows(bits: float) -> None:
    calibration = [speech_like(640, seed, 4, 64) for seed in range(8)]
    codec = build({"bits": bits}, calibration)
    size = stored_bits(codec, [speech_like(640, seed, 4, 64) for seed in range(20, 26)])
    assert 0.85 * bits < size <= bits * 1.02


@pytest.mark.parametrize("nmse", [0.3, 0.03, 0.003])
def test_asked_nmse_is_kept_by_every_row_and_tap(nmse: float) -> None:
    codec = build({"nmse": nmse})
    ordinary = [speech_like(100, seed) for seed in range(30, 34)]
    # One that is much livelier than the calibration was.
    lively = speech_like(100, 40) * 4
    found = []
    for row in [*ordinary, lively]:
        error = (row - decode(codec, [row])) / codec.calibration["deviation"]
        per_tap = np.square(error.astype(np.float64)).mean(axis=(0, 2))
        assert per_tap.max() <= nmse
        found.append(per_tap.mean())
    assert np.mean(found[:-1]) > nmse / 3  # and not by being much finer than asked


@pytest.fixture(scope="module")
def bounded() -> Residual:
    return build({"nmse": 0.05})


@settings(max_examples=60)
@given(data=st.data())
def test_asked_nmse_is_kept_for_any_finite_input(bounded: Residual, data: st.DataObject) -> None:
    """However far a row is from the calibration, every tap of it keeps the bound."""
    row = speech_like(data.draw(st.integers(1, 40)), data.draw(st.integers(0, 99)))
    row *= np.float32(data.draw(st.floats(0, 1e6, width=32)))
    strays = data.draw(hypothesis_arrays(np.float32, (1, TAPS, CHANNELS), elements=FINITE, fill=st.just(np.float32(0))))
    row[: data.draw(st.integers(0, 2))] = strays
    error = (row.astype(np.float64) - decode(bounded, [row])) / bounded.calibration["deviation"]
    assert np.square(error).mean(axis=(0, 2)).max() <= 0.05 * (1 + 1e-5)


def test_pieces_are_smaller_than_what_any_level_makes_of_frames_and_any_zstd_reads_them() -> None:
    # Bytes of about the same entropy stand side by side, as `order` puts them.
    widths = np.repeat(np.geomspace(1, 120, 12).astype(int), literal.PIECE)
    codes = np.random.default_rng(0).laplace(0, widths / 4, (fitting.CHUNK_FRAMES, len(widths)))
    frames = np.abs(np.rint(codes)).clip(0, 255).astype(np.uint8).reshape(len(codes), -1, literal.PIECE)
    pieces = np.ascontiguousarray(frames.transpose(literal.ORDER))
    [packed] = literal.compress_each([pieces])
    levels = {level: len(Zstd(level=level, checksum=True).encode(frames)) for level in range(1, 20)}
    assert len(packed) < 0.95 * min(levels.values())
    assert Zstd().decode(packed) == pieces.tobytes()
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 1
    with pytest.raises(RuntimeError):
        Zstd().decode(bytes(flipped))


@pytest.mark.parametrize(
    "parameters",
    [
        {"bits": 0},
        {"bits": float("nan")},
        {"bits": "2"},
        {"bits": 1, "step": 1},
        {"rate": 1},
        {"pack": "tight"},
        {"last": 0.5},
        {"last": float("nan")},
        {"last": "2"},
        {"level": 3},
    ],
)
def test_wrong_parameters_are_refused(parameters: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="residual"):
        Residual.fit([speech_like(10, 0)], parameters)


def test_profiles_as_users_write_them() -> None:
    assert codecs.parse_profile("fp16") == ("fp16", {})
    assert codecs.parse_profile("residual") == ("residual", {})
    assert codecs.parse_profile("residual:1.5") == ("residual", {"bits": 1.5})
    last = codecs.parse_profile("residual:1.5,last=1")
    assert last == ("residual", {"bits": 1.5, "last": 1.0}) and format_profile(*last) == "residual:1.5,last=1.0"
    assert codecs.parse_profile(format_profile(*last)) == last
    assert codecs.parse_profile("residual:1.5bit") == ("residual", {"bits": 1.5})
    assert codecs.parse_profile("residual:nmse=0.05") == ("residual", {"nmse": 0.05})
    assert codecs.parse_profile("blosc:step=0.5") == codecs.parse_profile("blosc:0.5") == ("blosc", {"step": 0.5})
    assert codecs.parse_profile("bitround:3") == ("bitround", {"keep": 3})
    wrongs = ("much", "pack=fast", "level=3", "bits=1,step=2", "1,2", "nmse=0.1,nmse=0.2", "step=1e40", "step=1e-9")
    for wrong in (*(f"residual:{rest}" for rest in wrongs), "int8:1", "blosc:many", "none"):
        with pytest.raises(UsageError):
            codecs.parse_profile(wrong)


# The same integers everywhere


@pytest.mark.parametrize("step", [0.05, 0.5, 1.0, 2.0])
def test_torch_gives_the_integers_of_the_kernels(step: float) -> None:
    codec = build({"step": step})
    rows = [speech_like(n, n) for n in (1, 2, 37, 80)]
    rows[2][5, 1, 3] = 1e4
    block = torch.from_numpy(np.concatenate([codec.encode(row).planes["codes"] for row in rows]))
    decoder = Decoder(codec.calibration, codec._scale, codec.radix, torch.device("cpu"))
    for taps in ([0, 1, 2], [1], [2, 0]):
        depth = min(max(taps) + 2, TAPS)
        # Without what is kept exactly, which neither of them looks at.
        ours = codec.decode({"codes": block, "exact": torch.zeros(0, TAPS, CHANNELS)}, [len(row) for row in rows], taps)
        torchs = [torch.empty(len(row), len(taps), CHANNELS) for row in rows]
        decoder.decode_into(block, depth, taps, torchs)
        assert torch.equal(ours, torch.cat(torchs))


def test_no_frames_at_all(codec: Residual) -> None:
    nothing = np.zeros((0, TAPS, CHANNELS), np.float32)
    assert decode(codec, [nothing]).shape == nothing.shape
    block = torch.from_numpy(codec.encode(nothing).planes["codes"])
    decoder = Decoder(codec.calibration, codec._scale, codec.radix, torch.device("cpu"))
    decoder.decode_into(block, TAPS, [0, 1, 2], [torch.from_numpy(nothing)])


def test_frames_that_no_encoder_writes_are_an_error() -> None:
    codec = build({"step": 4.0}, [speech_like(320, seed, 4, 64) for seed in range(2)])
    stored = codec.encode(speech_like(20, 1, 4, 64)).planes["codes"]
    block = stored.reshape(len(stored), -1).view(np.uint8)
    too_many, headless = block.copy(), block.copy()
    # Every code at the limit, and far beyond it.
    too_many[3, packing.HEADER : -codec.tail] = 121 if codec.radix == 3 else 255
    too_many[3, -codec.tail :] = 255
    headless[0, 0] = 0
    for wrong in (too_many, headless):
        with pytest.raises(CorruptCacheError):
            codes = torch.from_numpy(wrong.view(stored.dtype).reshape(stored.shape))
            codec.decode({"codes": codes, "exact": torch.zeros(0, 4, 64)}, [len(wrong)], [0])


def test_rows_decoded_together_are_rows_decoded_alone(codec: Residual) -> None:
    rows = [speech_like(n, n) for n in (3, 50, 1, 20)]
    rows[1][10, 2, 4] = 1e30
    together = decode(codec, rows)
    np.testing.assert_array_equal(together, np.concatenate([decode(codec, [row]) for row in rows]))
    np.testing.assert_array_equal(together, decode(codec, rows, thin=False))


def test_some_taps_are_those_of_all(codec: Residual) -> None:
    rows = [speech_like(30, 1), speech_like(9, 2)]
    rows[0][3, 1, 2] = -1e35
    everything = decode(codec, rows)
    for taps in ([0], [1], [2, 1], [2]):
        np.testing.assert_array_equal(decode(codec, rows, taps), everything[:, taps])


def test_encoding_again_gives_the_same_bytes() -> None:
    rows = [speech_like(100, seed) for seed in range(3)]
    first, second = (build({"bits": 1.5}, [row.copy() for row in rows]) for _ in range(2))
    for name, array in first.calibration.items():
        np.testing.assert_array_equal(array, second.calibration[name])
    for a, b in zip(first.encode(rows[0]).planes.values(), second.encode(rows[0]).planes.values(), strict=True):
        np.testing.assert_array_equal(a, b)


# Packing


@pytest.mark.parametrize("radix", sorted(packing.DIGITS))
@pytest.mark.parametrize("values", [1, 4, 15, 64])
def test_packing_round_trip(radix: int, values: int) -> None:
    rng = np.random.default_rng(values)
    limit = packing.limit_of(radix)
    taps = 1 if values % 2 else 2
    codes = rng.integers(-limit - 4, limit + 5, (taps, 50, values // taps)).astype(np.int16)
    codes[0, 7, 0], codes[-1, 8, -1] = 511, -511
    order = packing.padded_order(rng.permutation(values), radix)
    tail = packing.tail_bytes(values, radix, packing.tail_quarters(codes, radix).max())
    block = packing.assemble(codes, order, radix, tail).reshape(50, -1).view(np.uint8)
    assert block.shape[1] % literal.PIECE == 0
    assert packing.budget_of(tail) >= packing.tail_quarters(codes, radix).max()
    back = np.empty_like(codes)
    body = packing.packed_bytes(values, radix)
    wrong = kernels_pack.disassemble(
        block, packing.table(radix), *packing.at_limit(radix), order, packing.HEADER, body, values, np.arange(50), back
    )
    assert wrong == -1
    np.testing.assert_array_equal(back, codes)


# Products of small integers


@pytest.mark.parametrize("k", [1, 8, 1040, 1041, 3840])
def test_products_are_exact_by_either_way(k: int) -> None:
    rng = np.random.default_rng(k)
    left, right = (rng.choice(np.array([-127, 127, 3, 0], np.int8), shape) for shape in ((19, k), (k, 24)))
    left[0], right[:, 0] = 127, 127
    expected = left.astype(np.int64) @ right.astype(np.int64)
    for way in (mixing.product, mixing._by_blocks):
        found = way(torch.from_numpy(left), torch.from_numpy(right))
        assert found.dtype == torch.int32
        np.testing.assert_array_equal(found.numpy(), expected)


def test_channels_of_the_tap_below_predict_a_tap() -> None:
    """A tap that a few sums of the channels below it make, plus a little, costs little more than the first alone."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((32, 6)) @ rng.standard_normal((6, 32)) / 14

    def mixed(frames: int) -> np.ndarray:
        first = rng.standard_normal((frames, 32))
        return np.stack([first, first @ matrix + 0.05 * rng.standard_normal((frames, 32))], axis=1).astype(np.float32)

    rows = [mixed(500) for _ in range(8)]
    codec = build({"step": 0.5}, rows)
    codes = codec._codes(codec.encode(mixed(500)).planes["codes"], np.arange(500), 500, 2)
    own, other = (np.abs(codes[tap]).mean() for tap in range(2))
    assert other < own / 3


def stored_bits(codec: codecs.Codec, rows: list[np.ndarray]) -> float:
    encoded = [codec.complete(codec.encode(row).planes) for row in rows]
    size = sum(
        len(layout.render_shard(plane, Layout(), np.concatenate([e[plane.name] for e in encoded])))
        for plane in codec.planes
    )
    return 8 * size / (sum(map(len, rows)) * codec.taps * codec.channels)


# In a cache


def test_through_the_store(tmp_path: Path) -> None:
    features = {f"u{n}": speech_like(n, n) for n in (5, 33, 64, 100)}
    features["u33"][4, 1, 1] = 1e20
    cache = Cache.open(make_cache(tmp_path / "cache", features, profile="residual"))
    for name, row in features.items():
        assert error_in_steps(cache.codec, row, cache.read(name)).max() <= BOUND
        np.testing.assert_array_equal(cache.read(name, ["1"]), cache.read(name)[:, [1]])
    batch, lengths = cache.decode(cache.read_encoded([0, 1, 3]))
    assert lengths.tolist() == [5, 33, 100]
    np.testing.assert_array_equal(batch[1, :33].numpy(), cache.read("u33"))
    # Values in plane `exact` are read where they are needed, and nowhere else.
    assert len(cache.read_encoded([0, 1, 3]).planes["exact"]) == 1


def test_exact_values_of_an_utterance_in_several_windows(tmp_path: Path) -> None:
    """Only the frames between the first and the last of them are read, over the windows' borders."""
    row = speech_like(1800, 7)
    cases: dict[str, list[int]] = {"none": [], "border": [1440, 1799], "ends": [3, 1700]}
    features = {name: row.copy() for name in cases}
    for name, frames in cases.items():
        features[name][frames, 1, 1] = 1e20
    cache = Cache.open(make_cache(tmp_path / "cache", features, profile="residual", layout=Layout()))
    for name, frames in cases.items():
        span = cache.read_encoded([cache.row(name)]).planes["exact"]
        assert len(span) == (frames[-1] - frames[0] + 1 if frames else 0)
        decoded = cache.read(name)
        assert error_in_steps(cache.codec, features[name], decoded).max() <= BOUND
        assert (decoded[frames, 1, 1] == np.float32(1e20)).all()
    together, _ = cache.decode(cache.read_encoded(range(len(cache))))
    np.testing.assert_array_equal(together[1].numpy(), cache.read("border"))


def test_a_newer_version_is_a_clear_error(codec: Residual) -> None:
    with pytest.raises(CacheError, match=r"residual version 99.*install the version of speech-featcache"):
        codecs.build("residual", 99, TAPS, CHANNELS, {}, codec.calibration)


# The format


def golden() -> tuple[Residual, np.ndarray]:
    """A codec whose calibration needs no fitting, and a row of whole numbers: exact on every machine."""
    taps, channels = 2, 11
    n = np.arange(taps * channels).reshape(taps, channels)
    mixing = (np.arange(taps * (3 + channels) * channels) * 53 % 43 - 21).reshape(taps, 3 + channels, channels)
    mixing = mixing.astype(np.int8)
    mixing[0, :3] = 0
    groups = np.array([0, 4, 8, 11], np.int32)
    for low, high in pairwise(groups):
        mixing[:, 3 + low :, low:high] = 0
    calibration = {
        "mean": (n % 5 - 2).astype(np.float32),
        "deviation": np.ones((taps, channels), np.float32),
        "step": (1 + n % 3).astype(np.float32) / 2,
        "rounding": np.full((taps, channels), 24, np.int16),
        "centroid": (n % 7 - 3).astype(np.int16),
        "near": np.stack([n * 150, 300 - n * 20, n * 13 - 100], axis=1).astype(np.int16),
        "summary": ((np.arange(taps * 2 * channels * 3) * 37) % 41 - 20).reshape(taps, 2 * channels, 3).astype(np.int8),
        "summary_shift": np.array([[0, 0, 0], [4, 5, 3]], np.int8),
        "mixing": mixing,
        "groups": groups,
        "mixing_shift": (6 + n % 3).astype(np.int8),
        "input_shift": np.array([2, 3], np.int8),
        "code_shift": np.array([3, 2], np.int8),
        "smoother": np.stack([1900 - n, n * 9, n * 5, n * 2, 60 - n], axis=1).astype(np.int16),
        "order": ((np.arange(taps * channels) * 7) % (taps * channels)).astype(np.int32),
        # Two pieces: the flags, 8 bytes of codes, a tail.
        "coding": np.array([5, 247], np.int32),
    }
    t = np.arange(40 * taps * channels).reshape(40, taps, channels)
    row = ((t * t * 31 + t * 17) % 23 - 11).astype(np.float32) / 4
    row[3, 1, 2], row[9, 0, 10], row[12, 0, 0] = 40, -1e30, 700
    made = codecs.build("residual", 5, taps, channels, {"step": 0.5}, calibration)
    assert isinstance(made, Residual)
    return made, row


def test_golden_bytes_of_version_5() -> None:
    """A change of these is a change of the format: give it a new version, and keep reading the old one."""
    codec, row = golden()
    planes = codec.complete(codec.encode(row).planes)
    assert {name: sha256(np.ascontiguousarray(p).tobytes()) for name, p in planes.items()} == GOLDEN_PLANES
    assert sha256(decode(codec, [row]).tobytes()) == GOLDEN_VALUES


def test_the_last_tap_gets_more_of_the_bits_and_the_size_stays() -> None:
    rows, others = ([speech_like(320, seed, 4, 64) for seed in span] for span in (range(8), (8, 9, 10)))
    errors, sizes = [], []
    for parameters in ({"bits": 1.5, "last": 1}, {"bits": 1.5}, {"bits": 1.5, "last": 6}):
        codec = build(parameters, rows)
        steps = codec.calibration["step"] / codec.calibration["deviation"]
        last = parameters.get("last", 3)
        assert np.allclose(steps[:-1], steps[0, 0]) and np.allclose(steps[-1], steps[0, 0] / last)
        error = (np.concatenate(others) - decode(codec, others)) / codec.calibration["deviation"]
        errors.append(np.square(error.astype(np.float64)).mean(axis=(0, 2)))
        sizes.append(stored_bits(codec, others))
    assert max(sizes) <= 1.5 * 1.02 and min(sizes) > 0.9 * max(sizes)
    uniform, default, much = errors
    assert default[-1] < uniform[-1] / 3 and much[-1] < default[-1] / 2
    assert uniform[:-1].max() < default[:-1].max() < 2 * uniform[:-1].max()


@pytest.mark.parametrize("parameters", [{"nmse": 0.1}, {"step": 0.7}])
def test_an_error_that_is_asked_for_is_that_of_every_tap(parameters: dict[str, Any]) -> None:
    rows = [speech_like(320, seed, 4, 64) for seed in range(8)]
    steps = build(parameters, rows).calibration["step"] / build(parameters, rows).calibration["deviation"]
    assert np.allclose(steps, steps[0, 0])


def test_a_single_tap_is_no_finer_than_asked() -> None:
    row = speech_like(640, 1, 1, 16)
    one, two = (Residual.fit([row] * 2, {"bits": 2, "last": last}) for last in (1, 2))
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_sparse_plane_that_nothing_was_put_into_is_one_of_zeros() -> None:
    codec = build({"bits": 2}, [speech_like(300, seed) for seed in range(4)])
    spec = make_spec(TAPS, CHANNELS, codec.calibration, "residual")
    plan = make_plan(["a"], [16_000], spec, codec.bytes_per_frame)
    writer = SegmentWriter(LocalStorage(Path()), spec, codec, "segments/000000", plan)
    encoded = codec.encode(speech_like(20, 9)).planes
    assert list(encoded) == ["codes"]
    some, whole = writer.new_block(), writer.new_block()
    some.put(encoded, 0)
    whole.put(codec.complete(encoded), 0)
    assert writer.render(some, 0) == writer.render(whole, 0)


GOLDEN_PLANES = {
    "codes": "e73863f9219a6b66c7831db245e7b8f0cd1c0bf793dbc6b1ed7a36434ce91a9b",
    "exact": "1bf8c0a661e09b3455ead9f673aa49865a8c0770113e3a488fcff48ad058eefe",
}
GOLDEN_VALUES = "365ec3e9e8c116be3f9809ea42631886165de824811d342fc2324b9527a6ae28"
