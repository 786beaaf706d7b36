"""Training: it learns, it stops, and a run that was killed and resumed ends in the same bits."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from featcache.errors import JobError, MismatchError, UsageError
from fusion import Run, checkpoint, evaluate, optimiser, recipe, stream, tasks
from fusion import train as training
from fusion.data import Batch
from fusion.distributed import World
from fusion.head import Head
from fusion.learner import Learner
from fusion.modules import build_decoder, build_fuser
from fusion.predict import Predictions, predict_together
from fusion.recipe import Recipe, TrainRecipe
from tests.fusion.power import power_cut
from tests.fusion.speech import toy_cache, toy_recipe, utterances
from tests.helpers import make_cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_cache(tmp_path_factory.mktemp("train") / "cache")


def fit(made: Recipe, runs: Path, mode: str = "auto") -> tuple[Run, str]:
    with (runs.parent / f"log-{time.monotonic_ns()}").open("w+") as log:
        run = training.fit(made, runs=runs, mode=mode, console=Console(file=log, width=200))
        log.seek(0)
        return run, log.read()


def toy(cache: Path, *overrides: str, steps: int = 30) -> Recipe:
    return recipe.parse(toy_recipe(cache, steps), overrides)


def test_a_head_learns_and_the_run_holds_what_it_should(cache: Path, tmp_path: Path) -> None:
    run, log = fit(toy(cache, "train.eval_every=25", steps=150), tmp_path / "runs")
    metrics = run.metrics()
    assert (
        run.evaluate("dev").metrics["cer"] < 0.2 and metrics["wer_ci95"][0] <= metrics["wer"] <= metrics["wer_ci95"][1]
    )
    assert metrics["fuser"] == "hff" and metrics["fusion_parameters"] > 0 and metrics["decoder_parameters"] > 0
    assert metrics["split"] == "test" and metrics["normalise"] == "basic" and "lower case" in metrics["normalise_rule"]
    # u0009 has more labels than frames; in test it is scored, in train it would be skipped
    assert metrics["utterances"] == 6 and metrics["train_utterances"] == 48 - 3
    assert metrics["skipped"] == {
        "quarantined in the cache": 1, "more labels than frames": 1, "empty text after normalisation": 1,
    }  # fmt: skip
    names = {path.name for path in run.path.iterdir()}
    assert names == {
        "recipe.toml", "head.json", "checkpoint.safetensors", "state.json", "best.safetensors", "metrics.json",
        "utterances.jsonl", "skipped.jsonl", "tb",
    }  # fmt: skip
    skipped = [json.loads(line) for line in run.files.skipped.read_text().splitlines()]
    assert {"id": "u0001", "split": "train", "reason": "more labels than frames"} in skipped
    rows = [json.loads(line) for line in run.files.utterances.read_text().splitlines()]
    assert evaluate.score([r["reference"] for r in rows], [r["hypothesis"] for r in rows]).wer == metrics["wer"]
    assert list(run.files.tensorboard.glob("events*"))
    assert "train: 45 utterances" in log and "best so far" in log and "frames/s" in log and "waiting" in log


def test_the_same_recipe_gives_the_same_bits_and_another_seed_others(cache: Path, tmp_path: Path) -> None:
    weights = [_weights(fit(toy(cache, *seed), tmp_path / name)[0].path) for name, seed in _SEEDS.items()]
    assert weights[0] == weights[1] != weights[2]


_SEEDS: dict[str, tuple[str, ...]] = {"a": (), "b": ("train.workers=0",), "c": ("seed=2",)}


def _weights(path: Path) -> tuple[bytes, bytes]:
    return (path / "checkpoint.safetensors").read_bytes(), (path / "best.safetensors").read_bytes()


@pytest.mark.parametrize("die_at", [1, 10, 13])
def test_a_run_that_died_goes_on_to_the_same_bits(cache: Path, tmp_path: Path, die_at: int) -> None:
    """Dies without notice within a step; the work since the last look at dev is done again."""
    whole = _weights(fit(toy(cache, steps=20), tmp_path / "whole")[0].path)
    with power_cut(die_at):
        fit(toy(cache, steps=20), tmp_path / "died")
    run, log = fit(toy(cache, steps=20), tmp_path / "died")
    assert ("going on from step" in log) == (die_at >= 10)
    assert _weights(run.path) == whole


def test_a_signal_saves_the_very_step_and_the_run_goes_on_to_the_same_bits(cache: Path, tmp_path: Path) -> None:
    whole = _weights(fit(toy(cache, steps=60), tmp_path / "whole")[0].path)
    (tmp_path / "r.toml").write_text(toy_recipe(cache, 60))
    command = [sys.executable, "-m", "fusion", "train", str(tmp_path / "r.toml"), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path.cwd())
    state = tmp_path / "runs" / "toy" / "state.json"
    until = time.monotonic() + 120
    while not state.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and not out and "Traceback" not in err, err
    assert "the same command goes on from there" in err
    assert 0 < json.loads(state.read_text())["step"] < 60
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0 and "going on from step" in done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "runs" / "toy")
    assert _weights(tmp_path / "runs" / "toy") == whole


def test_a_killed_process_leaves_a_state_that_loads(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(toy_recipe(cache, 5000) + "patience = 0\n")
    command = [sys.executable, "-m", "fusion", "train", str(tmp_path / "r.toml"), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    place = tmp_path / "runs" / "toy" / "checkpoint.safetensors"
    until = time.monotonic() + 120
    while not place.exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    process.wait()
    tensors, facts = checkpoint.load(place)
    assert facts["step"] % 10 == 0 and any(name.startswith("optimiser.") for name in tensors)


def test_patience_ends_when_neither_score_nor_loss_is_better_and_the_best_score_is_kept(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([(1.0, 5.0), (0.9, 4.0), (1.0, 3.0), (0.95, 3.5), (0.95, 3.1), (0.1, 0.1)])
    scores: list[float] = []

    def scripted(*arguments: object, **keywords: object) -> list[Predictions]:
        [found] = predict_together(*arguments, **keywords)  # type: ignore[arg-type]
        score, loss = next(looks)
        scores.append(score)
        return [replace(found, loss=loss)]

    monkeypatch.setattr(stream, "predict_together", scripted)
    monkeypatch.setattr(tasks.CtcTask, "measure", lambda *_: {"cer": scores[-1], "wer": 1.0})
    made = toy(cache, "train.patience=2", "train.eval_every=2", steps=40)
    run, log = fit(made, tmp_path / "runs")
    state = json.loads(run.files.state.read_text())
    assert state["step"] == 10 and state["finished"] and "stopping early" in log
    assert state["best_step"] == 4 == run.metrics()["best_step"] and state["best"] == [0.9, 4.0]
    assert checkpoint.load(run.files.best)[1]["step"] == 4


def test_a_finished_run_is_left_alone_and_restart_replaces_it(cache: Path, tmp_path: Path) -> None:
    run, _ = fit(toy(cache, steps=10), tmp_path / "runs")
    (run.path / "notes.txt").write_text("mine")
    before = run.files.metrics.stat().st_mtime_ns
    _, log = fit(toy(cache, steps=10), tmp_path / "runs")
    assert "is finished" in log and run.files.metrics.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match=r"differs in train\.lr.*--restart"):
        fit(toy(cache, "train.lr=0.1", steps=10), tmp_path / "runs")
    again, _ = fit(toy(cache, "train.lr=0.1", steps=10), tmp_path / "runs", "restart")
    assert again.recipe.train.lr == 0.1 and (run.path / "notes.txt").exists()
    with pytest.raises(UsageError, match="no run"):
        fit(toy(cache, "name=other"), tmp_path / "runs", "resume")


def test_a_run_does_not_go_on_over_other_labels_or_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = utterances(40)
    place = make_cache(tmp_path / "cache", features, labels)
    own = tmp_path / "own.csv"
    own.write_text("id,text\nu0000,aa bb\n")
    made = toy(place, f"task.labels_file={own}")
    with monkeypatch.context() as patch:
        patch.setattr(stream.Stream, "finish", _stop)
        with pytest.raises(KeyboardInterrupt):
            fit(made, tmp_path / "runs")
    own.write_text("id,text\nu0000,bb aa\n")
    with pytest.raises(UsageError, match="labels or utterances .* changed"):
        fit(made, tmp_path / "runs")
    own.write_text("id,text\nu0000,aa bb\n")
    head = json.loads((tmp_path / "runs/toy/head.json").read_text())
    (tmp_path / "runs/toy/head.json").write_text(json.dumps(head | {"values_id": "0" * 64}))
    with pytest.raises(MismatchError, match="other features"):
        fit(made, tmp_path / "runs")


def _stop(_: object) -> None:
    raise KeyboardInterrupt


def test_a_loss_that_is_no_number_stops_the_job_and_keeps_the_last_good_state(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Learner.step

    def spoiled(self: Learner, batch: Batch) -> None:
        step(self, batch)
        if self.state.step == 15:
            self._loss_sum *= float("nan")

    monkeypatch.setattr(Learner, "step", spoiled)
    with pytest.raises(JobError, match=r"loss is nan .* train\.lr"):
        fit(toy(cache), tmp_path / "runs")
    assert checkpoint.load(tmp_path / "runs/toy/checkpoint.safetensors")[1]["step"] == 10


def test_threads_that_prepare_batches_change_no_bit(cache: Path, tmp_path: Path) -> None:
    """Masks of each step are drawn ahead of it, by whichever thread."""
    masks = ["fuser.pool=2", "train.mask_time=0.2", "train.mask_channels=0.2", "train.mask_taps=0.2"]
    alone, _ = fit(toy(cache, *masks, "train.workers=0", steps=10), tmp_path / "alone")
    threads, _ = fit(toy(cache, *masks, "train.workers=3", steps=10), tmp_path / "threads")
    assert _weights(alone.path) == _weights(threads.path)
    unmasked, _ = fit(toy(cache, "fuser.pool=2", "train.mask_time=0.0", steps=10), tmp_path / "unmasked")
    assert _weights(unmasked.path) != _weights(alone.path)


@pytest.mark.parametrize("kind", ["last", "weighted_sum", "concat", "tap", "hconv", "ladder"])
def test_the_rivals_train_and_one_tap_reads_no_other(cache: Path, tmp_path: Path, kind: str) -> None:
    overrides = [f"fuser.kind={kind}"] + (["fuser.tap=1"] if kind == "tap" else [])
    run, _ = fit(toy(cache, *overrides, steps=10), tmp_path / "runs")
    assert run.spec.taps == {"last": ("2",), "tap": ("1",)}.get(kind, ("0", "1", "2"))
    assert run.metrics()["fuser"] == kind
    assert Run.open(run.path).evaluate().metrics["wer"] == run.metrics()["wer"]


def test_sentencepiece_and_chosen_taps(cache: Path, tmp_path: Path) -> None:
    made = toy(cache, "task.tokens=sentencepiece", "task.vocabulary=12", 'fuser.taps=["2", "0"]', steps=10)
    run, _ = fit(made, tmp_path / "runs")
    assert run.spec.taps == ("2", "0") and run.spec.task["tokeniser"]["kind"] == "sentencepiece"
    assert Run.open(run.path).evaluate("dev").metrics["split"] == "dev"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2])
def test_several_processes_train_one_head(cache: Path, tmp_path: Path, processes: int) -> None:
    """Two gloo processes: they agree, finish, and each step takes a batch from either."""
    (tmp_path / "r.toml").write_text(toy_recipe(cache, 20))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "-m", "fusion.cli", "train", str(tmp_path / "r.toml"), "--runs", str(tmp_path / "runs"),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    run = Run.open(tmp_path / "runs" / "toy")
    assert done.stdout.splitlines()[-1] == str(run.path) and done.stdout.count("WER") == 1
    assert run.metrics()["utterances"] == 6
    alone, _ = fit(toy(cache, steps=20), tmp_path / "alone")
    assert _weights(run.path) != _weights(alone.path)  # half of each step came from the other process
    assert Run.open(run.path).evaluate().metrics["wer"] == run.metrics()["wer"]


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_going_on_with_another_number_of_processes_is_said(cache: Path, tmp_path: Path, processes: int) -> None:
    """The place in an epoch counts steps of all processes, so that the rest of it is other batches."""
    with power_cut(12):
        fit(toy(cache, steps=20), tmp_path)
    place = tmp_path / "toy" / "checkpoint.safetensors"
    tensors, facts = checkpoint.load(place)
    assert facts.pop("processes") == 1
    checkpoint.save(place, tensors, facts | ({"processes": processes} if processes else {}))
    run, log = fit(toy(cache, steps=20), tmp_path)
    assert "going on from step 10" in log and ("of each of 2 processes, from here on of 1:" in log) == (processes == 2)
    assert checkpoint.load(place)[1]["processes"] == 1


def test_the_learning_rate_rises_and_falls() -> None:
    settings = TrainRecipe(steps=100, warmup=10, lr=1.0, final_lr=0.1)
    rates = [optimiser.rate(settings, step) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10]) and rates[9:] == sorted(rates[9:], reverse=True)
    linear = settings.model_copy(update={"decay": "linear"})
    assert optimiser.rate(linear, 55) == pytest.approx(0.55)
    assert optimiser.rate(settings.model_copy(update={"decay": "none", "warmup": 0}), 70) == 1.0


def test_a_trace_says_where_the_time_of_steps_went(tmp_path: Path) -> None:
    made = recipe.parse(toy_recipe(toy_cache(tmp_path / "cache"), 40, "linear"), ["train.workers=1"])
    log = io.StringIO()
    training.fit(made, runs=tmp_path, console=Console(file=log), trace=tmp_path / "t" / "trace.json")
    said = log.getvalue()
    shares = [float(line.split()[-2]) for line in said.split("20 steps")[1].splitlines() if line.strip().endswith("%")]
    assert shares.pop() == 100 and sum(shares) == pytest.approx(100, abs=0.5)
    names = {event["name"] for event in json.loads((tmp_path / "t" / "trace.json").read_text())["traceEvents"]}
    assert {"read", "forward", "backward", "update"} <= names
    short = recipe.parse(toy_recipe(tmp_path / "cache", 4, "linear"), ["train.workers=1", "name=short"])
    training.fit(short, runs=tmp_path, console=Console(file=log), trace=tmp_path / "none.json")
    assert "no trace: a run needs more than 10 steps" in log.getvalue() and not (tmp_path / "none.json").exists()
    training.fit(made, runs=tmp_path, console=Console(file=log, width=200), trace=tmp_path / "none.json")
    last = log.getvalue().splitlines()[-1]
    assert last.startswith("no trace: nothing was left to train; --restart trains anew") and str(tmp_path) in last
    assert not (tmp_path / "none.json").exists()
    # A path that no file can be written to is refused before anything is trained, and nothing is thrown away for it.
    (tmp_path / "file").write_bytes(b"")
    kept = sorted((tmp_path / made.name).rglob("*"))
    for path in (tmp_path, tmp_path / "file" / "trace.json"):
        with pytest.raises(UsageError, match="--profile-trace .*no file can be written there"):
            training.fit(made, runs=tmp_path, mode="restart", console=Console(file=log), trace=path)
    assert sorted((tmp_path / made.name).rglob("*")) == kept


def test_several_processes_share_a_module_with_empty_parameters(tmp_path: Path) -> None:
    """A ladder over one tap has no rungs."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        head = Head(build_fuser("ladder", 1, 8), build_decoder("linear", 128, 4), 1, 8)
        model = World(0, 2, torch.device("cpu")).wrap(head)
        for _ in range(2):
            logits, _ = model(torch.randn(2, 5, 1, 8), torch.tensor([5, 3]))
            logits.sum().backward()
    finally:
        torch.distributed.destroy_process_group()
