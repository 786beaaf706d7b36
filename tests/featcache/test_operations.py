"""Operations on caches one after the other, on unusual data: beside each lies what it must hold, and every byte of it.

What a cache must hold is kept row by row as codes. After each step it is written anew by `SegmentWriter` alone: the
cache must be that, to the byte, and give back the values that were read when its rows were first written.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from featcache import codec as codecs
from featcache import layout, manifest
from featcache.codec import Arrays, Codec
from featcache.diff import diff
from featcache.errors import CacheError, JobError, UsageError, UtteranceNotFound
from featcache.forget import forget
from featcache.garbage import garbage
from featcache.geometry import Geometry
from featcache.index import label_text
from featcache.inspect import utterances
from featcache.ledger import Quarantined, Saturated, ShardRecord, read_records
from featcache.plan import make_plan
from featcache.pull import pull
from featcache.push import push
from featcache.recode import recode
from featcache.repair import repair
from featcache.select import merge, subset
from featcache.spec import CacheSpec, Layout, encoding_id
from featcache.storage import LocalStorage, open_storage
from featcache.store import Cache
from featcache.verify import verify
from featcache.windows import windows
from featcache.writer import SegmentWriter, create_cache
from tests.helpers import contents, make_spec
from tests.s3 import Bucket

TAPS, CHANNELS = 2, 4
# Windows of 3 s, longer than a shard; the inner ones of long recordings give 50 and 100 frames.
GEOMETRY = Geometry.whisper(window_samples=3 * 16_000)
SMALL = Layout(chunk_frames=16, shard_frames=128)
# By id: of one frame, of whole chunks, of several windows and shards.
FRAMES = {
    "a": 1,
    "ä/ö": 16,
    "b b": 40,
    "😀": 128,
    "-1": 3,
    "long": 290,
    "longer": 401,
    "Z" * 300: 64,
    "a@speed=0.9": 45,
}
PROFILES: dict[str, dict[str, Any]] = {"residual": {"step": 1.0}, "int8": {}, "fp16": {}}
VALUES = [None, "", "x", "ü\u0301", "NaN", 3, -0.5, True, False, "a=b"]
COLUMNS = ["who", "n", "é"]
# What a recode may go to, as it is written, and with which parameters.
COARSER = {"int8": {}, "residual:step=4": {"step": 4.0}}


@dataclass(frozen=True)
class Row:
    """A window as it is stored; None: nothing is, for a reason, which only rows that could not be read have."""

    planes: Arrays | None
    audio: str
    reason: str = ""
    saturated: int = 0


@dataclass(frozen=True)
class Utterance:
    """`features` as they were first read; none where it is quarantined."""

    id: str
    rows: tuple[Row, ...]
    features: np.ndarray
    labels: Mapping[str, str | None]

    @property
    def samples(self) -> int:
        return FRAMES[self.id] * GEOMETRY.hop

    @property
    def usable(self) -> bool:
        return not any(row.reason for row in self.rows)

    @property
    def audio(self) -> bytes:
        if not self.usable:
            return bytes(32)
        digests = [bytes.fromhex(row.audio) for row in self.rows]
        return digests[0] if len(digests) == 1 else sha256(b"".join(digests)).digest()


@dataclass(frozen=True)
class Held:
    """What a segment holds: utterances in their order, and columns of labels."""

    utterances: tuple[Utterance, ...]
    columns: frozenset[str]


@dataclass
class Model:
    """A cache and what it must hold, by the names of its segments."""

    place: Path | str
    spec: CacheSpec
    codec: Codec
    segments: dict[str, Held] = field(default_factory=dict)

    @property
    def all(self) -> list[Utterance]:
        return [u for held in self.segments.values() for u in held.utterances]

    @property
    def columns(self) -> frozenset[str]:
        return frozenset().union(*(held.columns for held in self.segments.values()))


class Killed(BaseException):
    """Nothing handles it, as nothing handles SIGKILL."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Killed at the n-th change of a folder or a bucket, if there are as many; leases are then a dead process's."""
    left = step
    changes = [(LocalStorage, name) for name in ("write", "create", "delete", "delete_folder", "move_folder")]
    changes += [(obstore, name) for name in ("put", "delete", "copy")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        for owner, name in changes:
            original = getattr(owner, name)

            def stepped(*given: Any, original: Callable[..., Any] = original, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    raise Killed
                return original(*given, **named)

            patch.setattr(owner, name, stepped)
        yield


def features_of(utterance_id: str) -> np.ndarray:
    """The same for an id each time: speech-like noise, with strays far beyond what codes say."""
    rng = np.random.default_rng(len(utterance_id) * 1000 + FRAMES[utterance_id])
    out = np.cumsum(rng.standard_normal((FRAMES[utterance_id], TAPS, CHANNELS)), axis=0).astype(np.float32)
    out -= out.mean(axis=0)
    # Not from the first frame on: of what is kept exactly only the frames from its first to its last are read.
    for frame in rng.integers(len(out) // 4, len(out), 4):
        out[frame, rng.integers(TAPS), rng.integers(CHANNELS)] = 5000 + frame
    return out


def first_spec(profile: str) -> tuple[CacheSpec, Arrays]:
    rng = np.random.default_rng(7)
    rows = [np.cumsum(rng.standard_normal((200, TAPS, CHANNELS)), axis=0).astype(np.float32)]
    parameters = PROFILES[profile]
    calibration = codecs.profile_class(profile).fit(rows, parameters)
    spec = make_spec(TAPS, CHANNELS, calibration, profile, SMALL)
    encoding = encoding_id(profile, spec.profile_version, parameters, calibration)
    changed = {"parameters": parameters, "encoding_id": encoding, "geometry": GEOMETRY, "bits_per_value": 16.0}
    return spec.model_copy(update=changed), calibration


def codec_of(spec: CacheSpec, calibration: Arrays) -> Codec:
    return codecs.build(spec.profile, spec.profile_version, TAPS, CHANNELS, spec.parameters, calibration)


def encoded(codec: Codec, features: np.ndarray) -> list[Row]:
    """The windows of a recording."""
    rows, at = [], 0
    for number, window in enumerate(windows(len(features) * GEOMETRY.hop, GEOMETRY)):
        piece = codec.encode(features[at : at + window.frames])
        at += window.frames
        audio = sha256(features.tobytes() + bytes([number])).hexdigest()
        rows.append(Row(piece.planes, audio, saturated=piece.saturated))
    assert at == len(features)
    return rows


def write_segment(place: Path | str, spec: CacheSpec, codec: Codec, name: str, held: Held) -> None:
    storage = open_storage(place)
    plan = make_plan([u.id for u in held.utterances], [u.samples for u in held.utterances], spec, codec.bytes_per_frame)
    writer = SegmentWriter(storage, spec, codec, name, plan)
    writer.begin()
    rows = [row for utterance in held.utterances for row in utterance.rows]
    for shard in range(plan.shards):
        block, span = writer.new_block(), plan.shard_rows(shard)
        for row in span:
            if (planes := rows[row].planes) is not None:
                block.put(planes, int(plan.position[row]) - shard * plan.shard_frames)
        saturated = [Saturated(row=row, values=rows[row].saturated) for row in span if rows[row].saturated]
        writer.record(
            ShardRecord(
                shard=shard,
                files=writer.write_files(writer.render(block, shard)),
                first=span.start,
                audio=tuple(rows[row].audio for row in span),
                quarantined=tuple(
                    Quarantined(row=row, id=plan.ids[plan.utterance[row]], reason=rows[row].reason)
                    for row in span
                    if rows[row].reason
                ),
                saturated=sum(found.values for found in saturated),
                saturated_rows=tuple(saturated),
            )
        )
    writer.seal({name: [u.labels.get(name) for u in held.utterances] for name in held.columns})


def unknown(model: Model, where: Mapping[str, set[str]], views: bool = False) -> bool:
    """Whether no utterance has one of the values of a condition; with `views` what they are of counts as an id."""
    ids = {u.id for u in model.all} | ({u.labels.get("view_of") or "" for u in model.all} if views else set())
    return any(
        accepted - (ids if label == "id" else {u.labels.get(label) for u in model.all})
        for label, accepted in where.items()
    )


labels = st.fixed_dictionaries({}, optional={name: st.sampled_from(VALUES) for name in COLUMNS})


@st.composite
def additions(draw: st.DrawFn) -> list[tuple[str, dict[str, Any], int]]:
    """Ids, each with labels and which window cannot be read, -1 for none."""
    ids = draw(st.lists(st.sampled_from(sorted(FRAMES)), min_size=1, max_size=5, unique=True))
    found = []
    for utterance_id in ids:
        given = draw(labels)
        if draw(st.integers(0, 3)) == 0:
            given["view_of"] = draw(st.sampled_from(sorted(FRAMES)))
        windows_ = len(windows(FRAMES[utterance_id] * GEOMETRY.hop, GEOMETRY))
        bad = draw(st.integers(0, windows_ - 1)) if draw(st.integers(0, 4)) == 0 else -1
        found.append((utterance_id, given, bad))
    return found


steps = st.one_of(st.just(0), st.integers(1, 60))


class Operations(RuleBasedStateMachine):
    """Caches `0`, `1`, ... in a folder, each with its model."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
        self.caches: list[Model] = []
        self.made = 0
        # Nothing but the order of the steps matters here.
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr("os.fsync", lambda descriptor: None)
        self.patch.setattr("featcache.lease.may_run", lambda *process: False)

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.root)

    # What there is

    def _place(self) -> Path | str:
        self.made += 1
        return self.root / f"cache {self.made}"

    def _pick(self, data: st.DataObject) -> Model:
        return data.draw(st.sampled_from(self.caches), label="cache")

    def _sound(self, data: st.DataObject) -> Model | None:
        """One that can be copied from."""
        found = self._pick(data)
        if not found.segments:
            with pytest.raises(CacheError, match="not complete"):
                subset(found.place, self.root / "none", {"id": {"a"}})
            return None
        return found

    def _where(self, data: st.DataObject, model: Model) -> tuple[dict[str, set[str]], list[Utterance]]:
        """A condition, and whom it chooses."""
        if data.draw(st.booleans(), label="by id") or not model.columns:
            known = [u.id for u in model.all] + ["a"]
            ids = set(data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3), label="ids"))
            return {"id": ids}, [u for u in model.all if u.id in ids]
        column = data.draw(st.sampled_from(sorted(model.columns)), label="column")
        known = sorted({u.labels.get(column) or "" for u in model.all} | {"x"})
        accepted = set(data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=2), label="values"))
        return {column: accepted}, [u for u in model.all if u.labels.get(column) in accepted]

    def _run(self, step: int, command: Callable[[], Any]) -> Any:
        """A command, or one that is killed and given again."""
        if step:
            try:
                with killed_at(step):
                    return command()
            except Killed:
                pass
        return command()

    # What is done

    @initialize(added=additions())
    def first(self, added: list[tuple[str, dict[str, Any], int]]) -> None:
        self.new("residual", [("b b", {"who": "x"}, -1), ("longer", {"n": 1}, -1)])
        self.extend_by(self.caches[0], added)

    @rule(profile=st.sampled_from(sorted(PROFILES)), added=additions())
    def new(self, profile: str, added: list[tuple[str, dict[str, Any], int]]) -> None:
        spec, calibration = first_spec(profile)
        model = Model(self._place(), spec, codec_of(spec, calibration))
        create_cache(open_storage(model.place), spec, calibration)
        self.caches.append(model)
        self._extend(model, added)

    @rule(data=st.data(), added=additions())
    def extend(self, data: st.DataObject, added: list[tuple[str, dict[str, Any], int]]) -> None:
        self.extend_by(self._pick(data), added)

    def extend_by(self, model: Model, added: list[tuple[str, dict[str, Any], int]]) -> None:
        there = {u.id for u in model.all}
        added = [(name, *rest) for name, *rest in added if name not in there]  # type: ignore[misc]
        if added:
            self._extend(model, added)

    def _extend(self, model: Model, added: list[tuple[str, dict[str, Any], int]]) -> None:
        made = []
        for utterance_id, given, bad in added:
            rows = encoded(model.codec, features_of(utterance_id))
            if bad >= 0:
                rows[bad] = Row(None, "", f"no window {bad} of {utterance_id}")
            texts = {name: None if value is None else label_text(value) for name, value in given.items()}
            made.append(Utterance(utterance_id, tuple(rows), np.zeros((0, TAPS, CHANNELS), np.float32), texts))
        held = Held(tuple(made), frozenset(name for _, given, _ in added for name in given))
        name = layout.next_segment([*model.segments])
        write_segment(model.place, model.spec, model.codec, name, held)
        cache = Cache.open(model.place)
        read = [replace(u, features=cache.read(u.id)) for u in made]
        for utterance in read:
            if utterance.usable:
                step = np.maximum(cache.calibration.get("step", np.float32(0)), 1e-3)
                error = np.abs(utterance.features - features_of(utterance.id))
                beyond = sum(row.saturated for row in utterance.rows)
                assert np.count_nonzero(error > 4 * step + np.abs(utterance.features) * 2**-10) <= beyond
        model.segments[name] = replace(held, utterances=tuple(read))
        self._check(model)

    @rule(data=st.data(), step=steps)
    def subset(self, data: st.DataObject, step: int) -> None:
        source = self._sound(data)
        if source is None:
            return
        where, chosen = self._where(data, source)
        place = self._place()
        if not chosen or unknown(source, where):
            with pytest.raises(UsageError, match="no utterance"):
                subset(source.place, place, where)
            return
        made = self._run(step, lambda: subset(source.place, place, where))
        assert made.utterances == len(chosen) and made.left_out == len(source.all) - len(chosen)
        model = Model(place, source.spec, source.codec, {layout.segment_name(0): Held(tuple(chosen), source.columns)})
        self._add(model)
        self._check(source)

    @precondition(lambda self: len(self.caches) > 1)
    @rule(data=st.data(), step=steps)
    def merge(self, data: st.DataObject, step: int) -> None:
        first, second = self._sound(data), self._sound(data)
        if first is None or second is None:
            return
        place = self._place()
        if first.spec.encoding_id != second.spec.encoding_id:
            with pytest.raises(CacheError, match="do not hold the same kind of codes"):
                merge(first.place, second.place, place)
            return
        of_first, of_second = ({u.id: u for u in model.all} for model in (first, second))
        better = {name for name, u in of_second.items() if u.usable and name in of_first and not of_first[name].usable}
        parts = [
            Held(tuple(u for u in first.all if u.id not in better), first.columns),
            Held(tuple(u for u in second.all if u.id in better or u.id not in of_first), second.columns),
        ]
        parts = [part for part in parts if part.utterances]
        made = self._run(step, lambda: merge(first.place, second.place, place))
        assert made.left_out == len(of_first.keys() & of_second.keys())
        segments = {layout.segment_name(number): part for number, part in enumerate(parts)}
        self._add(Model(place, first.spec, first.codec, segments))
        self._check(first)
        self._check(second)

    @rule(data=st.data(), step=steps)
    def recode(self, data: st.DataObject, step: int) -> None:
        source, profile = self._sound(data), data.draw(st.sampled_from(sorted(COARSER)), label="profile")
        if source is None:
            return
        place = self._place()
        try:
            self._run(step, lambda: recode(source.place, place, profile))
        except UsageError as error:
            assert "only goes downwards" in str(error)
            return
        except JobError as error:
            assert "no usable utterance" in str(error) and not any(u.usable for u in source.all)
            return
        cache = Cache.open(place)
        assert cache.spec.parent == source.spec.encoding_id and cache.values_id == source.spec.values_id
        model = Model(place, cache.spec, cache.codec)
        for name, held in source.segments.items():
            made = []
            for u in held.utterances:
                old = u.rows
                if u.usable:
                    rows = [
                        replace(new, audio=before.audio, saturated=max(before.saturated, new.saturated))
                        for before, new in zip(old, encoded(cache.codec, u.features), strict=True)
                    ]
                else:
                    rows = [replace(before, planes=None) for before in old]
                features = cache.read(u.id)
                step_ = cache.calibration["step"]
                error = np.abs(features - u.features)
                beyond = sum(row.saturated for row in rows)
                assert np.count_nonzero(error > 4.001 * step_ + np.abs(features) * 2**-20) <= beyond
                made.append(replace(u, rows=tuple(rows), features=features))
            model.segments[name] = replace(held, utterances=tuple(made))
        self._add(model)
        self._check(source)

    def _add(self, model: Model) -> None:
        self.caches.append(model)
        self._check(model)

    @rule(data=st.data(), step=steps)
    def forget(self, data: st.DataObject, step: int) -> None:
        model = self._pick(data)
        where, chosen = self._where(data, model)
        meant = {u.id for u in chosen} | where.get("id", set())
        before = -1
        while len(meant) > before:
            before = len(meant)
            meant |= {u.id for u in model.all if u.labels.get("view_of") in meant}
        left = without(model.segments, meant)
        gone = [u.id for u in model.all if u.id in meant]
        if unknown(model, where, views=True):
            with pytest.raises(UsageError, match="no utterance"):
                forget(model.place, where)
            self._check(model)
            return
        try:
            if step:
                with killed_at(step):
                    forget(model.place, where)
            else:
                forget(model.place, where)
        except UsageError as error:
            assert not gone and "no utterance" in str(error)
        except Killed:
            if open_storage(model.place).exists(layout.PENDING):
                for refused in (lambda: Cache.open(model.place), lambda: garbage(model.place, True)):
                    with pytest.raises(CacheError, match="a `featcache forget` was interrupted"):
                        refused()
                # Any other finishes it.
                model.segments = left
                again = forget_if_there(model.place, "longer")
                model.segments = without(model.segments, {*again})
                assert not {"longer"} & {u.id for u in model.all}
            elif gone and gone[0] not in Cache.open(model.place).ids:
                model.segments = left
        else:
            assert gone
            model.segments = left
        self._check(model)

    @rule(data=st.data(), number=st.integers(0, 200), unfinished=st.booleans())
    def tidy(self, data: st.DataObject, number: int, unfinished: bool) -> None:
        model = self._pick(data)
        if unfinished and model.segments:
            name = layout.next_segment([*model.segments])
            held = next(iter(model.segments.values()))
            with pytest.raises(Killed), killed_at(1 + number % 8):
                write_segment(model.place, model.spec, model.codec, name, held)
        garbage(model.place, True)
        assert not verify(model.place).unknown
        self._check(model)

    @rule(data=st.data(), number=st.integers(0, 200), flip=st.booleans())
    def mend(self, data: st.DataObject, number: int, flip: bool) -> None:
        """Files of index and labels are made again from the manifest, without the model."""
        model = self._pick(data)
        if not model.segments:
            return
        storage = open_storage(model.place)
        keys = [
            key
            for name in model.segments
            for key in storage.list_keys(name)
            if key.split("/")[2] in ("index", "labels") and not key.endswith("proof.json")
        ]
        key = sorted(keys)[number % len(keys)]
        if flip and (damaged := bytearray(storage.read(key) or b"")):
            damaged[number % len(damaged)] ^= 1
            storage.write(key, bytes(damaged))
        else:
            storage.delete(key)
        assert [problem.key for problem in verify(model.place).problems] == [key]
        rows = [
            manifest.Row(
                id=u.id, audio_filepath="nowhere.wav", duration=u.samples / 16_000, labels=dict(u.labels.items())
            )
            for u in model.all
        ]
        manifest.write(self.root / "manifest.jsonl", rows)
        assert repair(self.root / "manifest.jsonl", model.place) == [key]
        self._check(model)

    @precondition(lambda self: len(self.caches) > 1)
    @rule(data=st.data())
    def compare(self, data: st.DataObject) -> None:
        first, second = self._pick(data), self._pick(data)
        found = diff(first.place, second.place)
        of_first, of_second = ({u.id: u for u in model.all} for model in (first, second))
        both = [name for name in of_first if name in of_second]
        assert found.only_a == [name for name in of_first if name not in of_second]
        assert found.only_b == [name for name in of_second if name not in of_first]
        assert found.usable == [name for name in both if of_first[name].usable != of_second[name].usable]
        assert not found.audio
        assert found.values == [
            name
            for name in both
            if of_first[name].usable
            and of_second[name].usable
            and not np.array_equal(of_first[name].features, of_second[name].features)
        ]
        for column in first.columns | second.columns:
            differ = [name for name in both if of_first[name].labels.get(column) != of_second[name].labels.get(column)]
            assert found.labels.get(column, []) == differ

    # What must be

    def _check(self, model: Model) -> None:
        """It is whole, it is what `SegmentWriter` makes of the rows, and it gives back what was read before."""
        report = verify(model.place)
        assert report.whole, report.problems
        assert all(key.startswith(f"{layout.FORGET}/") for key in report.unknown), report.unknown
        expected = self.root / "expected"
        shutil.rmtree(expected, ignore_errors=True)
        create_cache(LocalStorage(expected), model.spec, model.codec.calibration)
        for name, held in model.segments.items():
            write_segment(expected, model.spec, model.codec, name, held)
        found = {key: data for key, data in files_of(model.place).items() if not key.startswith(layout.FORGET)}
        wanted = contents(expected)
        assert found.keys() == wanted.keys()
        assert [key for key in found if found[key] != wanted[key]] == []
        cache = pickle.loads(pickle.dumps(Cache.open(model.place)))
        self._check_reading(model, cache)

    def _check_reading(self, model: Model, cache: Cache) -> None:
        there = model.all
        assert [*cache.ids] == [u.id for u in there]
        assert cache.label_names == tuple(sorted(model.columns))
        assert cache.lengths.tolist() == [len(u.features) for u in there]
        for column in model.columns:
            assert cache.labels(column) == [u.labels.get(column) for u in there]
        order = np.random.default_rng(len(there)).permutation(len(there))
        batch, _ = cache.decode(cache.read_encoded(order))
        one, _ = cache.decode(cache.read_encoded(order[::-1], ["1"]))
        for at, row in enumerate(order.tolist()):
            utterance = there[row]
            assert cache.row(utterance.id) == row
            length = len(utterance.features)
            np.testing.assert_array_equal(cache.read(utterance.id), utterance.features)
            np.testing.assert_array_equal(batch[at, :length].numpy(), utterance.features)
            np.testing.assert_array_equal(one[len(order) - 1 - at, :length].numpy(), utterance.features[:, 1:])
            assert not batch[at, length:].any()
        digests = [row.tobytes() for segment in cache.segments for row in segment.column("audio_sha256")]
        assert digests == [u.audio for u in there]
        assert [row["id"] for row in utterances(cache)] == [u.id for u in there]
        reasons = [
            quarantined.reason
            for name in model.segments
            for _, record in sorted(read_records(cache.storage, name, "").items())
            for quarantined in record.quarantined
        ]
        assert reasons == [row.reason for u in there for row in u.rows if row.reason]
        for missing in FRAMES.keys() - {u.id for u in there}:
            with pytest.raises(UtteranceNotFound):
                cache.row(missing)


def without(segments: Mapping[str, Held], ids: set[str]) -> dict[str, Held]:
    """What is left without these; a segment of which nothing is left goes."""
    kept = {
        name: replace(held, utterances=tuple(u for u in held.utterances if u.id not in ids))
        for name, held in segments.items()
    }
    return {name: held for name, held in kept.items() if held.utterances}


def forget_if_there(place: Path | str, utterance_id: str) -> list[str]:
    """What went with it."""
    try:
        return forget(place, {"id": {utterance_id}}).ids
    except UsageError:
        return []


def files_of(place: Path | str) -> dict[str, bytes]:
    if isinstance(place, Path):
        return contents(place)
    storage = open_storage(place)
    return {key: storage.read(key) or b"" for key in storage.list_keys() if not key.startswith("log/")}


class OperationsOnS3(Operations):
    """Caches in folders and in a bucket by turns, which are copied to and fro as well."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__()
        self.bucket = bucket

    def _place(self) -> Path | str:
        place = super()._place()
        assert isinstance(place, Path)
        return place if self.made % 2 else f"{self.bucket.url}/{self.root.name}/{place.name}"

    @rule(data=st.data())
    def copy(self, data: st.DataObject) -> None:
        model = self._sound(data)
        if model is None:
            return
        place = self._place()
        if isinstance(model.place, Path) == isinstance(place, Path):
            place = self._place()
        if isinstance(model.place, Path):
            push(model.place, str(place))
        else:
            pull(model.place, place)
        self._add(replace(model, place=place, segments=dict(model.segments)))


TestOperations = Operations.TestCase
TestOperations.settings = settings(
    max_examples=int(os.environ.get("OPERATIONS_EXAMPLES", "4")),
    stateful_step_count=8,
    suppress_health_check=list(HealthCheck),
)


def test_operations_on_s3(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATCACHE_BLOCKS", str(tmp_path / "blocks"))
    monkeypatch.setenv("FEATCACHE_BLOCKS_GB", "1")
    run_state_machine_as_test(
        lambda: OperationsOnS3(bucket),
        settings=settings(TestOperations.settings, max_examples=int(os.environ.get("OPERATIONS_EXAMPLES", "2"))),
    )
