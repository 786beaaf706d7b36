"""Views from a manifest to a cache: how they are named, written, read, planned, computed, proven and forgotten."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

import featcache
from featcache import audio, manifest, reading
from featcache.augment import augment
from featcache.errors import AudioError, UsageError
from featcache.forget import forget
from featcache.inspect import status
from featcache.job import Job, Request
from featcache.manifest import Row
from featcache.recompute import recompute
from featcache.repair import repair
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig
from featcache.verify import verify
from featcache.views import parse, rows_with_views
from pipelines.bench.faults.inputs import repeat
from tests.featcache.test_augment import VIEWS
from tests.helpers import contents, make_speech, run_cli
from tests.real import request

MEL = Request(UpstreamConfig(id="mel:8"), "fp16", layout=Layout(chunk_frames=16, shard_frames=256))
TEXTS = ("speed=0.9", "noise=15", "reverb=0.3,speed=1.1")


def with_views(speech: Path, views: tuple[str, ...] = TEXTS, name: str = "views.jsonl") -> Path:
    manifest.write(speech.parent / name, rows_with_views(manifest.read(speech), views, {}))
    return speech.parent / name


# names


@given(VIEWS)
def test_a_view_is_written_in_one_way(text: str) -> None:
    view = parse(text)
    assert ",".join(f"{name}={value:g}" for name, value in view.steps) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "NUMBER"),
        ("speed", "NUMBER"),
        ("pitch=2", "speed=NUMBER, noise=NUMBER, reverb=NUMBER"),
        ("speed=0.9,", "NUMBER"),
        ("speed=0.9, noise=15", "' noise=15'"),
        ("speed=0.90", "write speed=0.9"),
        ("speed=.9", "write speed=0.9"),
        ("speed=0.9001", "three decimals"),
        ("speed=1", "other than 1"),
        ("speed=1.0", "other than 1"),
        ("speed=nan", "from 0.5 to 2"),
        ("speed=3", "from 0.5 to 2"),
        ("noise=x", "from -10 to 60"),
        ("noise=-0", "write noise=0"),
        ("reverb=0", "from 0.05 to 1"),
        ("noise=15,noise=10", "noise twice"),
    ],
)
def test_a_text_that_names_no_view_is_one_line_in_a_manifest_and_on_the_command_line(
    text: str, hint: str, tmp_path: Path
) -> None:
    line = {"id": "u@x", "audio_filepath": "a.wav", "duration": 1.0, "view": text, "view_of": "u"}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(line) + "\n")
    found = run_cli("manifest", "check", path)
    assert found.status == 2 and hint in found.err and f"{path}, line 1: " in found.err
    make_speech(tmp_path, 1)
    found = run_cli("manifest", "views", tmp_path / "manifest.jsonl", "-o", path, "--view", text)
    assert found.status == 2 and hint in found.err and len(found.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        ({"view": 0.9, "view_of": "u"}, "'speed=0.9'"),
        ({"view": "speed=0.9"}, "wants 'view_of'"),
        ({"view": "speed=0.9", "view_of": 7}, "write the id"),
        ({"view_of": " "}, "write the id"),
    ],
)
def test_labels_of_views_are_checked(labels: dict[str, Any], hint: str, tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps({"audio_filepath": "a.wav", "duration": 1.0, **labels}) + "\n")
    with pytest.raises(UsageError, match=hint):
        manifest.read(path)


def test_a_row_may_say_that_it_is_no_view(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio_filepath": "a.wav", "duration": 1.0, "view": null, "view_of": null}\n')
    [row] = manifest.read(path)
    assert row.view is None and row.view_of is None
    assert len(rows_with_views([row], ["noise=3"], {})) == 2


# the command


def test_the_command_adds_a_row_for_each_chosen_utterance_and_view(tmp_path: Path) -> None:
    speech = make_speech(tmp_path, 5)
    (tmp_path / "sub").mkdir()
    out = tmp_path / "sub" / "views.jsonl"
    arguments = ("manifest", "views", speech, "-o", out, "--view", "speed=0.9", "--view", "noise=15")
    dry = run_cli(*arguments, "--where", "speaker=s0", "--dry-run")
    assert dry.status == 0 and not out.exists()
    assert dry.out.splitlines() == [
        "originals: 5 utterances, 2.6 s", "speed=0.9: 2 utterances, 1.1 s", "noise=15: 2 utterances, 1.0 s",
    ]  # fmt: skip
    done = run_cli(*arguments, "--where", "speaker=s0")
    assert done.status == 0 and done.out.splitlines() == [str(out)]
    old, new = manifest.read(speech), manifest.read(out)
    assert [row.id for row in new] == [
        "u0", "u1", "u2", "u3", "u4", "u0@speed=0.9", "u3@speed=0.9", "u0@noise=15", "u3@noise=15",
    ]  # fmt: skip
    assert manifest.resolve(new[-1], out) == manifest.resolve(old[3], speech)
    slow, noisy = new[6], new[8]
    assert slow.duration == old[3].duration / 0.9 and noisy.duration == old[3].duration
    assert slow.text == "word 3" and slow.labels == {"speaker": "s0", "n": 3, "view": "speed=0.9", "view_of": "u3"}
    measured = run_cli("manifest", "check", out, "--measure")
    assert measured.status == 0 and "0 durations differ" in measured.out


def test_views_have_no_views_and_what_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    speech = make_speech(tmp_path, 2)
    views = with_views(speech, ("noise=15",))
    again = rows_with_views(manifest.read(views), ["speed=0.9"], {})
    assert [row.id for row in again[4:]] == ["u0@speed=0.9", "u1@speed=0.9"]
    unreadable = [row.model_copy(update={"duration": 0.0}) for row in manifest.read(speech)]
    with pytest.raises(UsageError, match="no row"):
        rows_with_views(unreadable, ["noise=15"], {})
    for options, hint in (
        (("--view", "noise=15"), "two rows have the id 'u0@noise=15'"),
        (("--view", "noise=5", "--where", "speaker=x"), "no row"),
        (("--view", "noise=5", "--where", "speaker"), "label=value"),
    ):
        found = run_cli("manifest", "views", views, "-o", tmp_path / "out.jsonl", *options)
        assert found.status == 2 and hint in found.err and len(found.err.strip().splitlines()) <= 3
        assert not (tmp_path / "out.jsonl").exists()


# reading


@settings(max_examples=50)
@given(VIEWS, st.integers(1, 20_000), st.sampled_from([8000, 16_000, 22_050, 44_100]), st.booleans())
def test_a_view_has_the_samples_that_its_row_promises(
    tmp_path_factory: pytest.TempPathFactory, text: str, samples: int, rate: int, part: bool
) -> None:
    folder = tmp_path_factory.mktemp("part")
    soundfile.write(folder / "a.wav", np.random.default_rng(samples).uniform(-1, 1, samples), rate)
    where = {"offset": samples // 3 / rate} if part else {}
    given = Row(id="u", audio_filepath="a.wav", duration=(samples - (samples // 3 if part else 0)) / rate, **where)
    row = rows_with_views([given], [text], {})[1]
    try:
        original = reading.load_part(given, folder / "m", 0, reading.row_samples(given))
        made = reading.load_part(row, folder / "m", 0, reading.row_samples(row))
    except AudioError:
        assert samples < 10  # less than one sample at 16 kHz
        return
    assert len(made) == reading.row_samples(row)
    view = row.view
    assert view is not None and row.is_part == part
    if rate == 16_000:  # elsewhere the part is cut at another sample before it is resampled
        source = audio.fit_length(original, view.source(len(made)))
        np.testing.assert_array_equal(made, augment(source, view, len(made), row.id))


def test_a_row_without_a_view_is_read_as_ever(tmp_path: Path) -> None:
    speech = make_speech(tmp_path, 2)
    for row in manifest.read(speech):
        pcm = audio.load(manifest.resolve(row, speech))
        assert reading.load_part(row, speech, 0, len(pcm)).tobytes() == pcm.tobytes()


def test_views_of_a_long_recording_are_made_window_by_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a window is in memory, and the windows abut as those of a recording that was made slower before."""
    speech = make_speech(tmp_path, 2, seconds=2)
    row = repeat(manifest.read(speech), speech, tmp_path / "long.flac", 150.01)
    views = ("speed=0.9", "speed=1.1", "noise=15,reverb=1")
    rows = rows_with_views([row], views, {})
    slow = soxr.resample(audio.load(tmp_path / "long.flac"), 14_400, 16_000)
    soundfile.write(tmp_path / "slow.wav", slow, 16_000, "FLOAT")
    rows.append(Row(id="slow", audio_filepath="slow.wav", duration=len(slow) / 16_000))
    manifest.write(tmp_path / "long.jsonl", rows)
    loaded: list[float] = []
    load = audio.load

    def measured(*arguments: Any, **options: Any) -> np.ndarray:
        pcm = load(*arguments, **options)
        loaded.append(len(pcm) / 16_000)
        return pcm

    monkeypatch.setattr(audio, "load", measured)
    layout = Layout(chunk_frames=64, shard_frames=32_768)
    job = Job(tmp_path / "long.jsonl", tmp_path / "c", Request(MEL.upstream, "fp16", layout=layout))
    job.extract()
    cache = job.cache
    assert max(loaded) <= 61 * 1.1 and not status(tmp_path / "c")["quarantined"]
    names = [f"{row.id}@{view}" for view in views]
    samples = [round(150.01 * 16_000 / speed) for speed in (0.9, 1.1, 1)]
    assert [len(cache.read(name)) for name in names] == [cache.spec.geometry.frames(n) for n in samples]
    ours, whole = cache.read(names[0]), cache.read("slow")
    assert np.abs(ours - whole[: len(ours)]).max() < 0.1 * whole.std()


# the cache


def test_a_cache_is_extended_by_views_and_everything_works_on_them(tmp_path: Path) -> None:
    speech = make_speech(tmp_path, 6)
    place = tmp_path / "cache"
    Job(speech, place, MEL).extract()
    before, plain = contents(place), json.loads(run_cli("plan", speech, place, "--json").out)
    assert plain["views"] == []
    views = with_views(speech)
    shutil.copytree(place, tmp_path / "other")
    plan = json.loads(run_cli("plan", views, place, "--json").out)
    costs = {cost["view"]: cost for cost in plan["views"]}
    assert list(costs) == ["originals", *TEXTS]
    assert [(cost["utterances"], cost["to_add"]) for cost in costs.values()] == [(6, 0), (6, 6), (6, 6), (6, 6)]
    assert costs["speed=0.9"]["hours"] == pytest.approx(costs["originals"]["hours"] / 0.9, rel=1e-3)
    assert sum(cost["bytes"] for cost in plan["views"]) == pytest.approx(plan["profiles"][0]["bytes"], abs=len(TEXTS))
    assert sum(cost["bytes"] for cost in plan["views"][1:]) == pytest.approx(plan["bytes"], abs=len(TEXTS))
    assert sum(cost["seconds"] for cost in plan["views"][1:]) == pytest.approx(plan["seconds"])
    shown = run_cli("plan", views, place).out
    assert "by view" in shown and all(text in shown for text in ("originals", *TEXTS))

    assert run_cli("extract", views, place, "--upstream", "mel:8").status == 0
    cache = featcache.open(place)
    assert before.items() <= contents(place).items()  # what was there has not changed, the values id included
    assert cache.complete and verify(place).whole and not status(place)["quarantined"] and len(cache) == 24
    assert not recompute(views, place, 24)
    listed = run_cli("ls", place, "--json", "--where", "view=noise=15").out.splitlines()
    assert [json.loads(line)["view_of"] for line in listed] == [f"u{i}" for i in range(6)]

    # In another order, and in another process's batches, the same values.
    rows = manifest.read(views)
    manifest.write(tmp_path / "turned.jsonl", [*rows[:6], *reversed(rows[6:])])
    Job(tmp_path / "turned.jsonl", tmp_path / "other", MEL).extract()
    other = featcache.open(tmp_path / "other")
    for id_ in cache.ids:
        np.testing.assert_allclose(cache.read(id_), other.read(id_), rtol=2**-9, atol=1e-3)
        assert id_.startswith("u0") or not np.array_equal(cache.read(id_), cache.read("u0"))
    digests = [segment.column("audio_sha256").tobytes() for segment in cache.segments]
    assert len({digests[1][i : i + 32] for i in range(0, len(digests[1]), 32)}) == 18

    whole = contents(place)
    next(path for path in (place / "segments/000001").rglob("c/0/**/*") if path.is_file()).unlink()
    assert repair(views, place) and contents(place) == whole


def test_a_view_of_another_length_than_planned_is_left_out(tmp_path: Path) -> None:
    views = with_views(make_speech(tmp_path, 2))
    rows = manifest.read(views)
    rows[2] = rows[2].model_copy(update={"duration": rows[0].duration})  # as if it were not slower
    manifest.write(views, rows)
    Job(views, tmp_path / "c", MEL).extract()
    [left_out] = status(tmp_path / "c")["quarantined"]
    assert left_out["id"] == "u0@speed=0.9" and "the manifest says" in left_out["reason"]


def test_what_is_forgotten_goes_with_its_views(tmp_path: Path) -> None:
    views = with_views(make_speech(tmp_path, 3), ("speed=0.9", "noise=15"))
    Job(views, tmp_path / "c", MEL).extract()
    gone = forget(tmp_path / "c", {"id": {"u1"}})
    assert gone.ids == ["u1", "u1@speed=0.9", "u1@noise=15"]
    cache = featcache.open(tmp_path / "c")
    assert len(cache) == 6 and cache.complete and verify(tmp_path / "c").whole
    assert forget(tmp_path / "c", {"view": {"noise=15"}}).ids == ["u0@noise=15", "u2@noise=15"]


@pytest.mark.real
def test_a_real_model_hears_the_views(speech: Path, tmp_path: Path) -> None:
    rows = manifest.absolute(manifest.read(speech)[1:4], speech)
    texts = ("speed=0.9", "noise=5", "noise=50", "reverb=0.3")
    manifest.write(tmp_path / "views.jsonl", rows_with_views(rows, texts, {}))
    job = Job(tmp_path / "views.jsonl", tmp_path / "cache", request("fp16"))
    job.extract()
    cache, upstream = job.cache, job.upstream
    assert cache.complete and verify(tmp_path / "cache").whole and len(cache) == 15
    assert not recompute(tmp_path / "views.jsonl", tmp_path / "cache", 3, seed=1)
    for row in rows:
        pcm = audio.load(row.audio_filepath)
        for text in texts:
            view = parse(text)
            planned = audio.samples_of(len(pcm) / 16_000 / view.speed)
            name = f"{row.id}@{text}"
            heard = augment(audio.fit_length(pcm, view.source(planned)), view, planned, name)
            live, stored = upstream.forward([heard])[0], cache.read(name)
            assert stored.shape == live.shape and ((stored - live) ** 2).mean() / live.var() < 1e-6
        far = [
            float(((cache.read(f"{row.id}@noise={level}") - cache.read(row.id)) ** 2).mean() / cache.read(row.id).var())
            for level in (50, 5)
        ]
        assert far[0] < far[1] / 2 and far[1] > 0.01, far
