"""Reading a cache: values, ids, labels, taps; and every kind of damage is an error, never a wrong number."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import random
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

import featcache
from featcache import layout
from featcache.errors import CacheError, CorruptCacheError, FeatcacheError, MismatchError, UsageError, UtteranceNotFound
from featcache.garbage import garbage
from featcache.inspect import status
from featcache.spec import Layout
from featcache.verify import verify
from tests.helpers import make_cache, run_cli

RNG = np.random.default_rng(0)
LAYOUT = Layout(chunk_frames=16, shard_frames=128)
FEATURES = {f"u{i}": RNG.standard_normal((5 + 7 * i % 60, 3, 8)).astype(np.float32) for i in range(12)}
LABELS = {name: {"text": f"words of {name}", "n": i} for i, name in enumerate(FEATURES)}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "cache"
    return make_cache(path, FEATURES, LABELS, quarantine={"u3": "no sound"}, layout=LAYOUT)


@pytest.fixture
def copy(sealed: Path, tmp_path: Path) -> Path:
    shutil.copytree(sealed, tmp_path / "cache")
    return tmp_path / "cache"


def test_values_ids_and_labels_come_back(sealed: Path) -> None:
    cache = featcache.open(sealed)
    assert list(cache.ids) == list(FEATURES) and cache.ids[-1] == "u11" and len(cache) == 12 and cache.complete
    assert cache.labels("text")[4] == "words of u4" and cache.labels("n")[4] == "4"
    for name, row in FEATURES.items():
        expected = row if name != "u3" else row[:0]
        assert cache.lengths[cache.row(name)] == len(expected)
        np.testing.assert_allclose(cache.read(name), expected, atol=2e-3)
    with pytest.raises(UtteranceNotFound, match="'nobody'.*featcache ls"):
        cache.row("nobody")
    with pytest.raises(UsageError, match="no label 'age'.*text"):
        cache.labels("age")


def test_batches_are_padded_with_zeros_and_taps_come_in_the_order_asked(sealed: Path) -> None:
    cache = featcache.open(sealed)
    features, lengths = cache.decode(cache.read_encoded([1, 3, 5], taps=["2", "0"]))
    assert features.shape[0] == 3 and features.shape[2:] == (2, 8) and lengths.tolist()[1] == 0
    for row, name in ((0, "u1"), (2, "u5")):
        length = len(FEATURES[name])
        np.testing.assert_allclose(features[row, :length].numpy(), FEATURES[name][:, [2, 0]], atol=2e-3)
        assert not features[row, length:].any()
    with pytest.raises(UsageError, match="no tap '9'"):
        cache.read(0, taps=["9"])


@pytest.mark.parametrize(("profile", "parameters"), [("fp16", {}), ("residual", {"step": 1.0})])
def test_no_utterances_are_an_empty_batch(profile: str, parameters: dict[str, float], tmp_path: Path) -> None:
    cache = featcache.open(make_cache(tmp_path / "c", FEATURES, profile=profile, parameters=parameters))
    features, lengths = cache.decode(cache.read_encoded([], taps=["2", "0"]))
    assert features.shape == (0, 0, 2, 8) and lengths.shape == (0,)


def test_positions_may_be_of_any_whole_type_and_ids_any_text(tmp_path: Path) -> None:
    many = {f"u{i}": FEATURES["u0"][:1] + i for i in range(150)}
    cache = featcache.open(make_cache(tmp_path / "c", many))
    # The number of utterances is no int8.
    assert np.array_equal(cache.read(np.int8(-1)), cache.read("u149"))
    # As Python takes a command line that is not UTF-8.
    with pytest.raises(UtteranceNotFound, match="holds no utterance '.udcff'"):
        cache.row("\udcff")
    assert run_cli("show", tmp_path / "c", "\udcff").status == 1


def test_a_recording_longer_than_the_window_is_read_as_one(tmp_path: Path) -> None:
    long = RNG.standard_normal((4000, 2, 4)).astype(np.float32)
    cache = featcache.open(
        make_cache(tmp_path / "c", {"long": long}, layout=Layout(chunk_frames=16, shard_frames=1600))
    )
    assert len(cache.segments[0].column("row_frames")) > 1 and cache.segments[0].seal.shards > 1
    np.testing.assert_allclose(cache.read("long"), long, atol=4e-3)


def _read_in_child(cache: featcache.Cache, out: multiprocessing.SimpleQueue) -> None:
    try:
        cache.read(0)
        out.put("read")
    except CacheError as error:
        out.put(str(error))


def test_a_forked_child_is_told_and_a_pickled_cache_opens_again(sealed: Path) -> None:
    cache = featcache.open(sealed)
    cache.read(0)
    context = multiprocessing.get_context("fork")
    out = context.SimpleQueue()
    child = context.Process(target=_read_in_child, args=(cache, out))
    child.start()
    child.join(30)
    assert "forkserver" in out.get()
    again = pickle.loads(pickle.dumps(cache))
    assert np.array_equal(again.read(0), cache.read(0))


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("segments/*/values/c/*/0/0"))


def test_a_missing_shard_is_named_with_its_repair(copy: Path) -> None:
    shards(copy)[0].unlink()
    cache = featcache.open(copy)
    with pytest.raises(CorruptCacheError, match=r"values/c/0/0/0 is missing: .*featcache repair"):
        cache.read(0)


def test_a_missing_chunk_of_an_index_or_label_is_no_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Texts of a corpus are longer than one chunk: 1 MiB.
    monkeypatch.setattr(layout, "INDEX_CHUNK", 16)
    folder = make_cache(tmp_path / "cache", FEATURES, {name: {"text": f"{name} said so"} for name in FEATURES})
    chunks = [*folder.glob("segments/*/index/id_bytes/c/1"), *folder.glob("segments/*/labels/text/bytes/c/[12]")]
    assert len(chunks) == 3
    for chunk in chunks:
        data = chunk.read_bytes()
        for left in (None, data[:-1]):
            if left is None:
                chunk.unlink()
            else:
                chunk.write_bytes(left)
            cache = featcache.open(folder)
            what = "is missing" if left is None else f"has {len(left)} bytes where {len(data)} were written"
            with pytest.raises(CorruptCacheError, match=f"bytes/c/{chunk.name} {what}: .*featcache repair"):
                list(cache.ids) if "index" in chunk.parts else cache.labels("text")
        chunk.write_bytes(data)
    assert featcache.open(folder).labels("text") == [f"{name} said so" for name in FEATURES]


def test_a_whole_file_of_equal_size_in_the_place_of_another_is_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "INDEX_CHUNK", 16)
    labels = {name: {"text": sha256(name.encode()).hexdigest()[:16]} for name in FEATURES}
    folder = make_cache(tmp_path / "cache", FEATURES, labels)
    for column in ("index/id_bytes", "labels/text/bytes"):
        first, second = (folder / f"segments/000000/{column}/c/{chunk}" for chunk in (0, 1))
        data, other = first.read_bytes(), second.read_bytes()
        assert len(data) == len(other) and data != other
        first.write_bytes(other)
        cache = featcache.open(folder)
        with pytest.raises(CorruptCacheError, match=f"{column}/c/0 is damaged .*featcache repair"):
            list(cache.ids) if "index" in column else cache.labels("text")
        first.write_bytes(data)
    assert list(featcache.open(folder).ids) == list(FEATURES)


def test_a_truncated_shard_is_named_with_its_repair(copy: Path) -> None:
    data = shards(copy)[0].read_bytes()
    shards(copy)[0].write_bytes(data[:-1])
    with pytest.raises(CorruptCacheError, match=r"values/c/0/0/0 has .* bytes where .*featcache repair"):
        featcache.open(copy).read(0)


def test_flipped_bytes_of_a_shard_never_become_values(copy: Path) -> None:
    shard = shards(copy)[0]
    data = shard.read_bytes()
    rows = [i for i, name in enumerate(FEATURES) if name != "u3"]
    expected = {i: featcache.open(copy).read(i) for i in rows}
    chance = random.Random(0)
    caught = 0
    for at in chance.sample(range(len(data)), 60):
        damaged = bytearray(data)
        damaged[at] ^= 1 << chance.randrange(8)
        shard.write_bytes(damaged)
        cache = featcache.open(copy)
        for i in rows:
            try:
                assert np.array_equal(cache.read(i), expected[i])
            except CorruptCacheError as error:
                assert "values/c/0" in str(error) and "featcache repair" in str(error)
                caught += 1
        assert any("values/c/0" in problem.key for problem in verify(copy).problems)
    assert caught > 60


def test_verify_notices_any_flip_in_any_file(copy: Path) -> None:
    assert verify(copy).whole
    chance = random.Random(1)
    files = [path for path in sorted(copy.rglob("*")) if path.is_file() and "log" not in path.parts]
    for path in files:
        data = path.read_bytes()
        for at in {0, len(data) - 1, *chance.sample(range(len(data)), min(3, len(data)))}:
            damaged = bytearray(data)
            damaged[at] ^= 1 << chance.randrange(8)
            path.write_bytes(damaged)
            try:
                report = verify(copy)
                assert report.problems, f"{path} byte {at}"
            except FeatcacheError:
                pass
        path.write_bytes(data)
        assert path.unlink() is None
        try:
            assert verify(copy).problems or path.name == "seal.json", f"{path} removed"
        except FeatcacheError:
            pass
        path.write_bytes(data)
    assert verify(copy).whole


@pytest.mark.parametrize("array", ["values", "index/hash", "index/frames", "labels/text/offsets", "labels/text/bytes"])
def test_an_arrays_altered_metadata_is_never_read_by(copy: Path, array: str) -> None:
    """One digit of a shape would give other values without any checksum of the data being wrong."""
    path = copy / "segments" / "000000" / array / "zarr.json"
    document = json.loads(path.read_bytes())
    document["shape"][0] -= 1
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptCacheError, match=r"zarr.json"):
        cache = featcache.open(copy)
        cache.read("u1")
        cache.labels("text")


def test_an_edited_description_does_not_open(copy: Path) -> None:
    root = copy / "zarr.json"
    document = json.loads(root.read_bytes())
    document["attributes"]["featcache"]["identity"]["weights"] = "1" * 64
    root.write_text(json.dumps(document))
    with pytest.raises(CorruptCacheError, match="values id"):
        featcache.open(copy)
    document["attributes"]["featcache"]["format"] = 99
    root.write_text(json.dumps(document))
    with pytest.raises(CacheError, match="format 99.*install"):
        featcache.open(copy)


def test_a_description_that_was_never_written_is_one_line(copy: Path) -> None:
    root = copy / "zarr.json"
    written = root.read_bytes()
    identity = b'"identity": {'
    assert identity in written and b'"featcache": {' in written
    for damaged in (
        written.replace(identity, identity + b'"x": NaN, '),
        written.replace(identity, identity + b'"x": "\\ud800", '),
        written.replace(b'"featcache": {', b'"featcachf": {'),
        b"[" * 100_000,
    ):
        root.write_bytes(damaged)
        with pytest.raises(CorruptCacheError, match=r"zarr\.json is damaged: restore it"):
            featcache.open(copy)
        assert any(problem.key == "zarr.json" for problem in verify(copy).problems)


def test_a_segment_of_another_upstream_is_refused(copy: Path, tmp_path: Path) -> None:
    other = make_cache(tmp_path / "other", FEATURES, layout=LAYOUT, identity={"family": "other", "weights": "2" * 64})
    shutil.copytree(other / "segments" / "000000", copy / "segments" / "000001")
    with pytest.raises(MismatchError, match="another model"):
        featcache.open(copy)


def test_folders_that_others_leave_are_neither_segments_nor_calibration(copy: Path) -> None:
    for folder in ("segments/@eaDir/0", "segments/.ipynb_checkpoints", "segments/٣", "calibration/@eaDir/x"):
        (copy / folder).mkdir(parents=True)
    (copy / "segments/@eaDir/0/note").write_text("of a NAS")
    cache = featcache.Cache.open(copy)
    assert cache.complete and len(cache.segments) == 1 and status(copy)["complete"]
    assert [segment["segment"] for segment in status(copy)["segments"]] == ["000000"]
    report = verify(copy)
    assert report.whole and not report.unsealed and report.unknown == ["segments/@eaDir/0/note"]
    assert garbage(copy, delete=False) == ["segments/@eaDir/0/note"]


def test_what_is_no_cache_says_so(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="there is no cache.*featcache init"):
        featcache.open(tmp_path / "nothing")
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(CacheError, match="not a feature cache"):
        featcache.open(tmp_path)


@pytest.mark.parametrize(
    ("inside", "kind", "said"),
    [
        (CacheError("the server went away"), CacheError, "the server went away"),
        (ValueError("bad checksum"), CorruptCacheError, "damaged .bad checksum"),
        (PermissionError(13, "denied"), CorruptCacheError, "cannot be read .*denied"),
        (MemoryError(), MemoryError, "^$"),
    ],
)
def test_an_error_that_zarr_raises_in_a_group_is_that_error(
    sealed: Path, monkeypatch: pytest.MonkeyPatch, inside: Exception, kind: type[Exception], said: str
) -> None:
    cache = featcache.open(sealed)

    def fetch(*_: object) -> np.ndarray:
        raise ExceptionGroup("unhandled", [ExceptionGroup("within", [inside])])

    monkeypatch.setattr(cache.segments[0], "_fetch", fetch)
    with pytest.raises(kind, match=said):
        cache.read("u0")
