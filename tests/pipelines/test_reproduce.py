"""The paper's table on a small real model and real speech: live rows, their cost, and the claims."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

from featcache import audio, manifest
from featcache.errors import Interrupted, UsageError
from featcache.job import Job, Request
from featcache.reading import load_part, row_samples
from featcache.store import Cache
from featcache.upstreams import UpstreamConfig
from featcache.views import rows_with_views
from fusion import checkpoint, modules, optimiser, recipe
from fusion.data import Batch, Loader, Sampler
from fusion.distributed import World
from fusion.modules import mask_features
from fusion.recipe import Recipe
from fusion.run import Files
from pipelines.demo import prompts
from pipelines.demo.model import PackagedModel
from pipelines.reproduce import claims, report, table, worker
from pipelines.reproduce.entries import BASE_RECIPE, ENTRIES, SCALES, Entry
from pipelines.reproduce.learners import LiveLearner, Measured, MeasuredLearner
from pipelines.reproduce.live import LiveHead
from pipelines.reproduce.speech import Speech, split_waves
from tests.helpers import make_speech

pytestmark = pytest.mark.real

CPU = torch.device("cpu")
SMALL = (
    "train.steps=2", "train.warmup=1", "train.eval_every=1", "train.batch_seconds=4.0", "train.threads=1",
    "train.workers=1", "train.mask_time=0.2", "train.mask_channels=0.2", "train.lr=1e-2", "decoder.kind=linear",
    "decoder.dropout=0.0", "fuser.width=8",
)  # fmt: skip
BY_NAME = {entry.name: entry for entry in ENTRIES}


class Speeches:
    """A manifest of a few short prompts and one beyond the model's window, and its cache."""

    def __init__(self, folder: Path, share: Path) -> None:
        prompts.link_audio(share / "asterisk" / "sounds", folder / "audio")
        parsed = {p.id: p for p in prompts.read_transcript(share, "en")}
        short = [p for p in parsed.values() if p.family == "vm"][:10]
        rows = []
        for i, prompt in enumerate([*short, parsed["demo-congrats"]]):
            path = f"audio/{prompts.VOICES['en']}/{prompt.id}.g722"
            split = "long" if i == 10 else "test" if i > 7 else "dev" if i > 5 else "train"
            seconds = audio.probe(folder / path).duration
            rows.append(
                manifest.Row(
                    id=prompt.id, audio_filepath=path, duration=seconds, text=prompt.text, labels={"split": split}
                )
            )
        self.manifest, self.place = folder / "manifest.jsonl", folder / "cache"
        manifest.write(self.manifest, rows)
        config = UpstreamConfig(id="package:whisper-tiny.en")
        Job(self.manifest, self.place, Request(upstream=config, profile="fp16", calibration_seconds=5)).extract()
        self.cache = Cache.open(self.place)

    def recipe(self, entry: Entry, *overrides: str) -> Recipe:
        shared = recipe.read(BASE_RECIPE, [f"cache={json.dumps(str(self.place))}", *SMALL, *overrides])
        return table.recipe_of(entry, shared, SCALES["smoke"])

    def learner(self, entry: Entry, folder: Path, warm: Path | None = None, *overrides: str) -> MeasuredLearner:
        settings = self.recipe(entry, *overrides)
        common: Any = (settings, self.cache, Files(folder), World(0, 1, CPU), Console(quiet=True), {})
        if not entry.live:
            return MeasuredLearner(*common, baseline=0)
        return LiveLearner(*common, baseline=0, entry=entry, manifest=self.manifest, warm=warm)


@pytest.fixture(scope="module")
def speeches(
    tmp_path_factory: pytest.TempPathFactory, speech_root: Path, whisper_tiny_package: PackagedModel
) -> Speeches:
    return Speeches(tmp_path_factory.mktemp("speeches"), speech_root)


def first_batch(learner: MeasuredLearner) -> Batch:
    split = learner.splits["train"]
    with Loader(learner.cache, split, CPU, learner.spec.taps, workers=0) as loader:
        return next(loader.batches(iter(Sampler(split.frames, 200, 1))))


def prepared(learner: MeasuredLearner, batch: Batch) -> Batch:
    """For the next step; the batch stays as it is."""
    return learner.prepare(learner.state.step + 1, replace(batch, features=batch.features.clone()))


def test_a_live_model_gives_the_features_of_the_cache(speeches: Speeches, tmp_path: Path) -> None:
    """Alone, each row exactly, once through the codec; in a batch, up to the rounding of a batch."""
    entry = replace(BY_NAME["hff_adapters"], method="top_layer", settings={})
    learner = speeches.learner(entry, tmp_path)
    live, speech, cache = learner.head, learner.cache, speeches.cache
    assert isinstance(live, LiveHead)
    live.eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in extraction; two threads round otherwise
    try:
        for row in (0, 5, cache.row("demo-congrats")):
            features = live.features(*speech.decode(speech.read_encoded([row])))
            assert features.requires_grad
            if cache.seconds[row] > 30:  # its windows are cut before resampling there, and after it here
                stored = torch.from_numpy(cache.read(row))
                torch.testing.assert_close(features[0].detach(), stored, rtol=2**-10, atol=0.02)
                continue
            stored_codes = cache.read_encoded([row]).planes
            for name, codes in cache.codec.encode(features[0].detach().numpy()).planes.items():
                np.testing.assert_array_equal(codes, stored_codes[name])
        rows = [0, 1, 2, 3]
        together = live.features(*speech.decode(speech.read_encoded(rows))).detach()
    finally:
        torch.set_num_threads(threads)
    stored, lengths = cache.decode(cache.read_encoded(rows))
    for i, length in enumerate(lengths.tolist()):
        # fp16 keeps 11 bits
        torch.testing.assert_close(together[i, :length], stored[i, :length], rtol=2**-10, atol=0.002)
        assert not together[i, length:].any()


def test_recordings_take_the_place_of_features(speeches: Speeches, tmp_path: Path) -> None:
    speech = Speech(speeches.cache, speeches.manifest)
    waves, lengths = speech.decode(speech.read_encoded([3, 1]))
    assert lengths.tolist() == speeches.cache.lengths[[3, 1]].tolist()
    first, second = split_waves(waves)
    row = manifest.read(speeches.manifest)[1]
    np.testing.assert_array_equal(second.numpy(), audio.load(manifest.resolve(row, speeches.manifest)))
    assert len(first) == round(float(speeches.cache.seconds[3]) * 16_000)
    other = tmp_path / "other.jsonl"
    manifest.write(other, manifest.absolute(manifest.read(speeches.manifest)[:2], speeches.manifest))
    with pytest.raises(UsageError, match="has no utterance"):
        Speech(speeches.cache, other).read_encoded([3])


def test_a_live_model_hears_the_views_of_a_cache(tmp_path: Path) -> None:
    rows = rows_with_views(manifest.read(make_speech(tmp_path, 2)), ["speed=0.9", "noise=15"], {})
    place = tmp_path / "views.jsonl"
    manifest.write(place, rows)
    Job(place, tmp_path / "cache", Request(UpstreamConfig(id="mel:8"), "fp16")).extract()
    speech = Speech(Cache.open(tmp_path / "cache"), place)
    for number, row in enumerate(rows):
        [wave] = split_waves(speech.decode(speech.read_encoded([number]))[0])
        np.testing.assert_array_equal(wave.numpy(), load_part(row, place, 0, row_samples(row)))
        assert len(wave) == row_samples(row)


@pytest.mark.parametrize("name", [entry.name for entry in ENTRIES if entry.live])
def test_only_what_a_row_trains_moves(speeches: Speeches, tmp_path: Path, name: str) -> None:
    learner = speeches.learner(replace(BY_NAME[name], warm=""), tmp_path)
    live = learner.head
    assert isinstance(live, LiveHead)
    before = {key: value.detach().clone() for key, value in live.named_parameters()}
    batch = first_batch(learner)
    live.train()
    assert not live.network.training
    for _ in range(2):  # what lies below a bottleneck that starts at zero moves in the second
        learner.step(learner.prepare(learner.state.step + 1, batch))
    moved = {key for key, value in live.named_parameters() if not torch.equal(value, before[key])}
    trained = {key for key, value in live.named_parameters() if value.requires_grad}
    assert moved <= trained
    assert {key for key in trained - moved if not key.endswith(".gate")} == set()  # of one tap there is no choice
    assert any(key.startswith("network.") for key in trained)
    assert learner.measured.encoder_parameters == modules.count_parameters(live.network)
    assert learner.measured.upstream_parameters == 8_208_384
    # frozen weights are not in its state, and come back all the same
    state = live.state_dict()
    assert {key for key in state if key.startswith("network.")} == {key for key in trained if "network." in key}
    assert live.load_state_dict(state).missing_keys == []


def test_rates(speeches: Speeches, tmp_path: Path) -> None:
    learner = speeches.learner(BY_NAME["full"], tmp_path)
    assert isinstance(learner.head, LiveHead)
    optimiser.set_rate(learner.optimiser, 0.1)
    slow = {id(parameter) for parameter in learner.head.network.parameters()}
    seen: set[int] = set()
    for group in learner.optimiser.param_groups:
        own = {id(parameter) for parameter in group["params"]}
        assert own <= slow or not own & slow
        assert group["lr"] == pytest.approx(0.1 * BY_NAME["full"].rate if own <= slow else 0.1)
        assert not own & seen
        seen |= own
    assert len(seen) == len(list(learner.head.parameters()))


def test_live_rows_are_masked_as_cached_ones_are(speeches: Speeches, tmp_path: Path) -> None:
    cached = speeches.learner(BY_NAME["hff"], tmp_path)
    live = speeches.learner(replace(BY_NAME["hff_adapters"], warm=""), tmp_path)
    assert isinstance(live.head, LiveHead)
    batch = first_batch(cached)
    heard = first_batch(live)
    assert torch.equal(batch.lengths, heard.lengths)
    expected = prepared(cached, batch)
    plain, lengths = cached.head.prepare(batch.features, batch.lengths)
    assert (expected.features != plain).any() and torch.equal(expected.lengths, lengths)
    live.step(live.prepare(1, heard))
    assert live.head.masks is not None
    masked, _ = live.head.prepare(live.head._masked(batch.features, live.head.masks), batch.lengths)
    for i, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(masked[i, :length], expected.features[i, :length])
    fill = live.head.centre
    assert torch.equal(fill, cached.head.centre)
    assert mask_features(batch.features, batch.lengths) is batch.features


def test_a_warm_start_says_what_the_cached_head_said(speeches: Speeches, tmp_path: Path) -> None:
    cached = speeches.learner(BY_NAME["hff"], tmp_path / "cached")
    batch = first_batch(cached)
    cached.head.train()
    for _ in range(2):
        cached.step(prepared(cached, batch))
    weights = tmp_path / "best.safetensors"
    checkpoint.save(weights, cached.head.state_dict(), {})
    live = speeches.learner(BY_NAME["hff_adapters"], tmp_path / "live", weights)
    cold = speeches.learner(BY_NAME["hff_adapters"], tmp_path / "cold")
    heard = first_batch(live)
    expected = logits(cached, batch)
    scale = expected.std()
    assert (logits(live, heard) - expected).abs().max() < 0.02 * scale
    assert (logits(cold, heard) - expected).abs().max() > 0.5 * scale


def test_a_live_row_pools_frames_as_the_cached_ones(speeches: Speeches, tmp_path: Path) -> None:
    overrides = ("fuser.pool=2", "decoder.stack=1")
    cached = speeches.learner(BY_NAME["hff"], tmp_path / "cached", None, *overrides)
    live = speeches.learner(replace(BY_NAME["hff_adapters"], warm=""), tmp_path / "live", None, *overrides)
    assert isinstance(live.head, LiveHead) and live.head.pool == cached.head.pool == 2
    batch, heard = first_batch(cached), first_batch(live)
    with torch.no_grad():
        _, expected = cached.head(batch.features, batch.lengths)
        _, lengths = live.head(heard.features, heard.lengths)
    assert torch.equal(lengths, expected) and torch.equal(lengths, (batch.lengths + 1) // 2)


def logits(learner: MeasuredLearner, batch: Batch) -> Tensor:
    learner.head.eval()
    with torch.no_grad():
        found, lengths = learner.head(batch.features, batch.lengths)
    return torch.cat([found[i, :length] for i, length in enumerate(lengths.tolist())])


def order(speeches: Speeches, runs: Path, name: str, *overrides: str) -> worker.Order:
    return worker.Order.make(
        BY_NAME[name], speeches.recipe(BY_NAME[name], *overrides), speeches.manifest, runs, None
    )  # fmt: skip


def test_a_row_that_was_stopped_goes_on(speeches: Speeches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights, the time that it took, and its peak are those of one that was not."""
    whole = order(speeches, tmp_path / "whole", "bitfit")
    worker.train(whole)
    parts = order(speeches, tmp_path / "parts", "bitfit")
    stop_after(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        worker.train(parts)
    monkeypatch.undo()
    assert not parts.finished
    assert Measured.read(parts.folder).steps == 1
    worker.train(parts)
    assert Measured.read(parts.folder).steps == 2
    assert Measured.read(parts.folder).frames == Measured.read(whole.folder).frames
    for name in ("best.safetensors", "utterances.jsonl"):
        assert (parts.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def test_a_signal_between_two_looks_at_dev(speeches: Speeches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = order(speeches, tmp_path, "bitfit", "train.eval_every=2")
    original: Callable[..., None] = LiveLearner.step

    def step(self: LiveLearner, *args: Any) -> None:
        original(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(LiveLearner, "step", step)
    with pytest.raises(Interrupted, match="stopped at step 1 of 2"):
        worker.train(wanted)
    monkeypatch.undo()
    before = Measured.read(wanted.folder)
    assert before.steps == 1 and before.seconds > 0
    worker.train(wanted)
    after = Measured.read(wanted.folder)
    assert after.steps == 2 and after.seconds > before.seconds


def stop_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original: Callable[..., None] = LiveLearner.look

    def look(self: LiveLearner, *args: Any) -> None:
        original(self, *args)
        if self.state.step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(LiveLearner, "look", look)


def test_the_table(speeches: Speeches, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def make(*overrides: str, only: str = "hff,hff_adapters", restart: bool = False) -> table.Result:
        return table.reproduce(
            "smoke", "package:whisper-tiny.en", speeches.manifest, speeches.place, only=only.split(","),
            runs=tmp_path, overrides=[*SMALL, *overrides], restart=restart, console=Console(quiet=True),
        )  # fmt: skip

    result = make()
    hff, both = result.rows
    assert (hff.name, both.name) == ("hff", "hff_adapters")
    assert result.extraction_s is not None and result.upstream_parameters == 8_208_384
    adapters = 4 * 2 * (2 * 384 * 16 + 16 + 384)
    assert both.encoder_parameters == hff.encoder_parameters + adapters
    assert hff.encoder_parameters_pct == pytest.approx(100 * hff.encoder_parameters / 8_208_384, abs=1e-3)
    assert hff.decoder_parameters == both.decoder_parameters > 0
    assert both.warm_start_s == pytest.approx(hff.time_to_best_s, abs=0.2)
    assert both.peak_memory_mb > 30 and hff.peak_memory_mb > 5
    assert both.epoch_s > 0 and hff.epoch_s > 0
    assert (both.break_even_epoch is None) == (both.epoch_s <= hff.epoch_s)
    # nothing is trained again, whatever is printed
    again = make()
    assert again == result
    answers = claims.answer({row.name: row for row in result.rows}, judges=result.scale.judges)
    value = json.loads(json.dumps(report.as_json(result, answers)))
    assert {"name", "wer", "wer_ci95", "encoder_parameters", "encoder_parameters_pct", "decoder_parameters",
            "peak_memory_mb", "epoch_s", "time_to_best_s"} <= value["rows"][0].keys()  # fmt: skip
    assert all(value["claims"][0].keys() == {"claim", "holds", "figure"} for _ in value["claims"])
    report.print_table(result, answers)
    assert "HFF + Adapters" in capsys.readouterr().out
    with pytest.raises(UsageError, match="other settings"):
        make("train.lr=0.5")
