"""The command line as a user meets it: results on standard output, one line for a mistake, exit statuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import stats as scipy_stats

import featcache
from featcache import cli
from featcache.manifest import Row, read, write
from tests.helpers import make_cache, run_cli

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    features = {f"u{i}": RNG.standard_normal((20 + i, 3, 8)).astype(np.float32) for i in range(6)}
    features["u1"][:, 1, 5] *= 100
    labels = {name: {"lang": "en" if i % 2 else "it", "text": f"word {i}"} for i, name in enumerate(features)}
    place = tmp_path_factory.mktemp("cli") / "cache"
    return make_cache(place, features, labels, "int8", quarantine={"u2": "no sound"})


class Result:
    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["featcache", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        out, err = capfd.readouterr()
        return Result(status, out, err)

    return call


def test_info_has_the_promised_keys(run, cache: Path) -> None:
    card = json.loads(run("info", "--json", cache).out)
    promised = (
        "upstream values_id encoding_id utterances hours frames taps channels frame_rate profile bytes "
        "bits_per_value complete"
    )
    assert set(promised.split()) <= set(card)
    assert card["utterances"] == 6 and card["quarantined"] == 1 and card["complete"] is True
    assert card["bytes"] == sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert "int8" in run("info", cache).out


_WITHOUT_TORCH = """
import sys

sys.modules["torch"] = None
from featcache.cli import main

main()
"""


@pytest.mark.parametrize("arguments", [["info"], ["info", "--json"], ["ls"], ["status"], ["verify"]])
def test_looking_at_a_cache_does_not_wait_for_torch(cache: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-c", _WITHOUT_TORCH, *arguments, str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_ls_filters_by_label_and_prints_json_lines(run, cache: Path) -> None:
    lines = run("ls", cache, "--where", "lang=it", "--json").out.splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["id"] for row in rows] == ["u0", "u2", "u4"]
    assert [row["usable"] for row in rows] == [True, False, True]
    assert "word 3" in run("ls", cache).out
    unknown = run("ls", cache, "--where", "id=u1", "--where", "id=u1,u2")
    assert unknown.status == 2 and "no utterance of" in unknown.err and "has id=u1,u2" in unknown.err
    wrong = run("ls", cache, "--where", "lang")
    assert wrong.status == 2 and "label=value" in wrong.err and wrong.out == ""


def test_a_notebook_sees_what_a_cache_is(cache: Path) -> None:
    assert repr(featcache.open(cache)) == f"<Cache {cache}: 6 utterances, 3 taps x 8 channels of test:none>"
    assert dir(featcache) == ["Cache", "Encoded", "FeatcacheError", "open"]


def test_a_table_that_goes_into_a_pipe_cuts_nothing(run, tmp_path: Path) -> None:
    """Of thirteen labels, as Common Voice has them, an id would be cut to `common...`, and grep not find it."""
    names = [f"common_voice_hi-IN_{i:08d}" for i in range(3)]
    labels = {name: {f"label_{k:02d}": f"value {k} of {name}" for k in range(13)} for name in names}
    made = make_cache(
        tmp_path / "c", {name: RNG.standard_normal((4, 2, 3)).astype(np.float32) for name in names}, labels
    )
    lines = run("ls", made).out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", *names]
    assert lines[-1].rstrip().endswith(f"value 12 of {names[-1]}")


def test_a_label_never_hides_what_the_cache_itself_says(run, tmp_path: Path) -> None:
    labels = {"frames": "a", "seconds": "b", "usable": "c", "shape": "d", "lang": "en"}
    place = make_cache(tmp_path / "c", {"u": np.ones((20, 2, 3), np.float32)}, {"u": labels})
    (row,) = [json.loads(line) for line in run("ls", place, "--json").out.splitlines()]
    assert row == {
        "id": "u", "seconds": 0.4, "frames": 20, "usable": True,
        "label frames": "a", "lang": "en", "label seconds": "b", "shape": "d", "label usable": "c",
    }  # fmt: skip
    shown = run("show", place, "u").out
    assert "20 frames x 2 taps" in shown and "label shape" in shown
    assert json.loads(run("show", place, "u", "--json").out)["labels"] == labels


def test_show_draws_every_tap(run, cache: Path, tmp_path: Path) -> None:
    view = json.loads(run("show", cache, "u1", "--json").out)
    assert view["shape"] == [21, 3, 8] and view["taps"][1]["loudest_channel"] == 5
    assert len(view["taps"][0]["spark"]) == 21
    assert run("show", cache, "u1", "--png", tmp_path / "heat.png").status == 0
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
    assert "quarantined" in run("show", cache, "u2").err
    assert run("show", cache, "nobody").status == 1


def test_what_looks_like_markup_is_printed_as_it_is(run, tmp_path: Path) -> None:
    ids, text = ["[red]x", ":smile:"], "[noise] and [/laugh] :smile:"
    features = {name: np.ones((20, 2, 3), np.float32) for name in ids}
    place = make_cache(tmp_path / "[b]", features, {name: {"[i]": text} for name in ids}, quarantine={ids[1]: text})
    listed = run("ls", place)
    assert listed.status == 0 and all(name in listed.out for name in (*ids, "[i]")) and listed.out.count(text) == 2
    shown = run("show", place, ids[0])
    assert shown.status == 0 and ids[0] in shown.out and "[i]" in shown.out and text in shown.out
    assert "/[b]" in run("info", place).out and f"{ids[1]}: {text}" in run("status", place).out


def test_stats_agree_with_numpy(run, cache: Path) -> None:
    opened = featcache.open(cache)
    values = np.concatenate([opened.read(i) for i in range(6)])
    found = json.loads(run("stats", cache, "--json").out)
    assert found["frames"] == len(values)
    for i, tap in enumerate(found["taps"]):
        assert tap["mean"] == pytest.approx(values[:, i].mean(), abs=1e-4)
        assert tap["deviation"] == pytest.approx(values[:, i].std(), rel=1e-4)
        assert tap["kurtosis"] == pytest.approx(scipy_stats.kurtosis(values[:, i], axis=None), rel=1e-3, abs=1e-3)
    assert found["taps"][1]["outlier_channels"] == [5]
    similarity = np.array(found["similarity"])
    assert np.allclose(np.diag(similarity), 1) and np.allclose(similarity, similarity.T)
    assert "CKA" in run("stats", cache).out


def test_status_lists_what_was_left_out(run, cache: Path) -> None:
    view = json.loads(run("status", "--json", cache).out)
    assert view["quarantined"] == [{"id": "u2", "reason": "no sound"}] and view["complete"]
    assert "u2: no sound" in run("status", cache).out


def test_verify_fails_with_the_file_and_its_repair(run, cache: Path, tmp_path: Path) -> None:
    assert run("verify", cache).status == 0
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    (copy / "segments/000000/codes/c/0/0/0").write_bytes(b"")
    found = run("verify", copy)
    assert found.status == 1 and "codes/c/0/0/0" in found.out and "featcache repair" in found.err
    report = json.loads(run("verify", "--json", copy).out)
    assert not report["whole"] and report["problems"][0]["key"].endswith("codes/c/0/0/0")
    (copy / "stray").write_bytes(b"")
    assert "stray" in run("gc", copy, "--dry-run").out and (copy / "stray").exists()
    assert "removed stray" in run("gc", copy).out and not (copy / "stray").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["info", "nowhere"], 1, "there is no cache at nowhere"),
        (["extract", "nowhere.jsonl", "cache"], 2, "nowhere"),
        (["extract", "m.jsonl", "cache", "--taps", "0"], 2, "name it with --upstream"),
        (["extract", "m.jsonl", "cache", "--upstream", "mel:80", "--profile", "zip"], 2, "no codec profile 'zip'"),
        (["extract", "m.jsonl", "cache", "--upstream", "mel:80", "--dry-run"], 2, "featcache init"),
        (["init", "m.jsonl", "cache", "--upstream", "nonsense"], 2, "nonsense"),
        (["extract", "m.jsonl", "cache", "--device", "cuda:7"], 2, "no GPU"),
        (["manifest", "check", "m.jsonl", "--out", "x"], 2, "--measure"),
    ],
)
def test_a_mistake_is_one_line(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write(tmp_path / "a.wav", np.zeros(1600), 16_000)
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "a.wav", "duration": 0.1}\n')
    found = run(*arguments)
    assert found.status == status and message in found.err
    assert len(found.err.strip().splitlines()) == 1 and "Traceback" not in found.err


def test_the_whole_of_stage_one_on_log_mel(run, tmp_path: Path) -> None:
    for i in range(5):
        soundfile.write(tmp_path / f"{i}.wav", RNG.standard_normal(16_000 + 777 * i) * 0.1, 16_000)
    lines = [{"audio_filepath": f"{i}.wav", "duration": 1.5, "text": str(i)} for i in range(5)]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    checked = run("manifest", "check", manifest, "--measure", "--out", tmp_path / "measured.jsonl")
    assert checked.status == 0 and "5 durations differ" in checked.out
    manifest, place = tmp_path / "measured.jsonl", tmp_path / "cache"
    assert run("init", manifest, place, "--upstream", "mel:80", "--profile", "fp16").status == 0
    plan = json.loads(run("plan", manifest, place, "--json").out)
    assert plan["planned"] == 5 and plan["bytes"] > 0
    assert plan["profiles"][0]["profile"] == "fp16" and plan["profiles"][0]["bytes"] == plan["bytes"]
    assert "residual:1.0" in run("plan", manifest, place).out
    first = run("extract", manifest, place, "--upstream", "mel:80", "--profile", "fp16")
    assert first.status == 0 and first.out.splitlines()[-1] == str(place)
    again = run("extract", manifest, place, "--upstream", "mel:80")
    assert again.status == 0 and "complete: all 5" in again.err
    assert "left out" not in run("plan", manifest, place).out
    assert run("extract", manifest, place, "--upstream", "mel:40").status == 1


def test_what_is_measured_is_the_path_that_is_written(run, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    rows = [Row(id="a", audio_filepath="../a.wav", duration=3), Row(id="b", audio_filepath="../b.wav", duration=3)]
    write(tmp_path / "lists/m.jsonl", rows)
    checked = run("manifest", "check", tmp_path / "lists/m.jsonl", "--measure", "--out", tmp_path / "m.jsonl")
    assert checked.status == 0 and "2 durations differ" in checked.out
    found = {row.id: (row.audio_filepath, row.duration) for row in read(tmp_path / "m.jsonl")}
    assert found == {"a": ("a.wav", 1.0), "b": ("b.wav", 0.0)}


@pytest.mark.parametrize("device", ["foo", "cpu:", "cuda:x", "cuda:99", "xpu"])
def test_a_device_that_is_not_there_is_one_line(device: str, tmp_path: Path) -> None:
    ran = run_cli("extract", tmp_path / "m.jsonl", tmp_path / "c", "-u", "mel:8", "--device", device)
    assert ran.status == 2 and ran.err.startswith(f"featcache: --device {device}: ") and ran.err.count("\n") == 1
