"""Both stages on a real model and real speech: manifest, cache, head, text; through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache import audio, manifest
from featcache.errors import MismatchError, UpstreamError
from featcache.job import Job, Request
from featcache.store import Cache
from featcache.upstreams import UpstreamConfig
from pipelines import rivals
from pipelines.demo import prompts
from pipelines.demo.model import PackagedModel
from pipelines.transcribe import Transcriber

pytestmark = pytest.mark.real

UTTERANCES = 16
# A head that was hardly trained says something on every frame, so that texts can be compared at all.
TINY = (
    "train.steps=1", "train.lr=1e-9", "train.batch_seconds=8.0", "train.workers=1", "fuser.width=16",
    "fuser.pool=2", "decoder.kind=linear", "decoder.stack=1",
)  # fmt: skip


class Demo:
    """A manifest of a few prompts, one beyond the model's window, and its two caches."""

    def __init__(self, folder: Path, share: Path) -> None:
        prompts.link_audio(share / "asterisk" / "sounds", folder / "audio")
        parsed = {p.id: p for p in prompts.read_transcript(share, "en")}
        long = [parsed["demo-congrats"]]
        short = [p for p in parsed.values() if p.family == "vm"][: UTTERANCES - 1]
        rows = []
        for i, prompt in enumerate([*long, *short]):
            path = f"audio/{prompts.VOICES['en']}/{prompt.id}.g722"
            seconds = audio.probe(folder / path).duration
            split = "test" if i % 4 == 0 else "dev" if i % 4 == 1 else "train"
            rows.append(
                manifest.Row(
                    id=prompt.id,
                    audio_filepath=path,
                    duration=seconds,
                    text=prompt.text,
                    labels={"lang": "en", "split": split},
                )  # fmt: skip
            )
        self.folder, self.rows = folder, rows
        self.manifest, self.cache, self.mel = folder / "manifest.jsonl", folder / "cache", folder / "mel"
        manifest.write(self.manifest, rows)
        Job(
            self.manifest,
            self.cache,
            Request(upstream=UpstreamConfig(id="package:whisper-tiny.en"), profile="fp16", calibration_seconds=20),
        ).extract()

    def command(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pipelines", *map(str, arguments)],
            capture_output=True, text=True, check=False, timeout=280, cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, speech_root: Path, whisper_tiny_package: PackagedModel) -> Demo:
    return Demo(tmp_path_factory.mktemp("demo"), speech_root)


@pytest.fixture(scope="module")
def table(demo: Demo) -> list[dict[str, Any]]:
    """`pipelines fusers` on two rows; leaves their runs."""
    overrides = [part for override in TINY for part in ("--set", override)]
    done = demo.command(
        "fusers", "--cache", demo.cache, "--mel-cache", demo.mel, "--manifest", demo.manifest,
        "--only", "mel,hff", "--seeds", "1,2", *overrides, "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_fusers_table(demo: Demo, table: list[dict[str, Any]]) -> None:
    assert [row["name"] for row in table] == ["mel", "hff"]
    for row in table:
        assert row["utterances"] == UTTERANCES // 4
        assert row["wer_ci95"][0] <= row["wer"] <= row["wer_ci95"][1]
        assert len(row["wer_by_seed"]) == 2
    assert table[0]["decoder_parameters"] > table[1]["decoder_parameters"]  # 2 of their means stacked, not 1
    assert table[0]["wer_difference"][0] == pytest.approx(table[0]["wer"] - table[1]["wer"])
    # Both heads say something 25 times a second.
    made = Cache.open(demo.mel)
    assert (made.upstream, len(made), made.frame_rate) == ("mel:80", UTTERANCES, 100.0)


def test_features_of_raw_audio_are_those_of_the_cache(demo: Demo, table: list[dict[str, Any]]) -> None:
    run = demo.folder / "runs" / "fusers" / "hff-seed1"
    transcriber = Transcriber.load(run, device="cpu")
    cache = Cache.open(demo.cache)
    for row in demo.rows[:3]:
        stored = cache.read(row.id)
        fresh = transcriber.features(audio.load(demo.folder / row.audio_filepath))
        assert fresh.shape == stored.shape
        scale = stored.std(axis=0)
        assert float(np.abs(fresh - stored).max() / scale.max()) < 0.01, row.id  # fp16 keeps 11 bits
    assert demo.rows[0].duration > 30  # cut into windows, in both


def test_transcribe(demo: Demo, table: list[dict[str, Any]]) -> None:
    run = demo.folder / "runs" / "fusers" / "hff-seed1"
    paths = [row.audio_filepath for row in demo.rows[:2]]
    done = demo.command("transcribe", run, *paths, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [entry["audio_filepath"] for entry in found] == paths
    transcriber = Transcriber.load(run, device="cpu")
    for row, entry in zip(demo.rows, found, strict=False):
        assert entry["duration"] == pytest.approx(row.duration, abs=1e-3)
        features = transcriber.features(audio.load(demo.folder / row.audio_filepath))
        assert entry["text"]
        assert [entry["text"]] == [text.strip() for text in transcriber.run.transcribe([features])]


def test_long_recordings_are_read_in_pieces(
    demo: Demo, table: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    transcriber = Transcriber.load(demo.folder / "runs" / "fusers" / "hff-seed1", device="cpu")
    pcm = audio.load(demo.folder / demo.rows[0].audio_filepath)
    whole = transcriber.run.log_probs(transcriber.features(pcm))
    monkeypatch.setattr("pipelines.transcribe.HEAD_SECONDS", 11.0)
    blocks = np.array_split(pcm, 7)  # as a long recording comes in
    pieces = list(transcriber._log_probs(transcriber._windows(blocks)))
    assert len(pieces) > 3 and max(map(len, pieces)) <= 11 * 25
    torch.testing.assert_close(torch.cat(pieces), whole)  # its head looks at one frame at a time


def test_transcribe_a_folder_a_manifest_and_what_cannot_be_read(
    demo: Demo, table: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = demo.folder / "runs" / "fusers" / "hff-seed1"
    source = demo.folder / demo.rows[1].audio_filepath
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "deep" / "one.g722").write_bytes(source.read_bytes())
    (tmp_path / "in" / "broken.wav").write_bytes(b"no sound")
    part = manifest.Row(id="en/part", audio_filepath=str(source), offset=0.5, duration=1.0)
    manifest.write(tmp_path / "m.jsonl", [part])
    done = demo.command("transcribe", run, tmp_path / "in", tmp_path / "m.jsonl", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "broken.wav: left out: not audio" in done.stderr and "1 of 3 recordings" in done.stderr
    whole, cut = (json.loads((tmp_path / "out" / name).read_text()) for name in ("deep/one.json", "en/part.json"))
    assert done.stdout == f"{tmp_path}/in/deep/one.g722\t{whole['text']}\nen/part\t{cut['text']}\n"
    assert (tmp_path / "out" / "deep" / "one.txt").read_text() == f"{whole['text']}\n"
    assert [word["text"] for word in whole["words"]] == whole["text"].split()
    for entry in (whole, cut):
        times = [time for word in entry["words"] for time in (word["start"], word["end"])]
        assert times == sorted(times) and times[-1] <= entry["duration"] + 0.05
        assert all(0 < word["confidence"] <= 1 for word in entry["words"])
    assert (cut["id"], cut["offset"], cut["duration"]) == ("en/part", 0.5, 1.0)
    assert (tmp_path / "out" / "en" / "part.srt").read_text().startswith("1\n00:00:0")


def test_another_upstream_is_refused(demo: Demo, table: list[dict[str, Any]]) -> None:
    run = demo.folder / "runs" / "fusers" / "hff-seed1"
    with pytest.raises(MismatchError, match="was trained on"):
        Transcriber.load(run, device="cpu", upstream="mel:80")


def test_a_model_that_was_moved_is_named_with_the_options_that_find_it(
    demo: Demo, table: list[dict[str, Any]], tmp_path: Path
) -> None:
    run = demo.folder / "runs" / "fusers" / "hff-seed1"
    with pytest.raises(UpstreamError, match="is not there: name the one it is in now, --upstream hf:FOLDER"):
        Transcriber.load(run, device="cpu", upstream=f"hf:{tmp_path}/gone")
    with pytest.raises(UpstreamError, match="is not there: .* --weights FILE"):
        Transcriber.load(run, device="cpu", upstream="torchaudio:WAV2VEC2_BASE", weights=f"{tmp_path}/gone.pth")


def test_mistakes_are_one_line(demo: Demo) -> None:
    done = demo.command("transcribe", "no-such-run", "x.wav")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("pipelines: ")
    assert done.stderr.count("\n") == 1
    done = demo.command("fusers", "--cache", demo.cache, "--only", "hff", "--seeds", "one")
    assert done.returncode == 2
    assert "not whole numbers" in done.stderr


def test_mel_is_not_extracted_again(demo: Demo, table: list[dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console(record=True, stderr=True)
    rivals.prepare_mel(demo.manifest, demo.mel, console=console)
    assert console.export_text() == ""
