"""Jobs on log-mel: what is asked of a cache that exists, what is read of it, and several at one time."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache import audio, extract
from featcache.description import read_spec
from featcache.errors import MismatchError, UpstreamError, UsageError
from featcache.geometry import Geometry
from featcache.job import Job, Request
from featcache.lease import Lease
from featcache.manifest import absolute, read, write
from featcache.outlook import Outlook, outlook
from featcache.plan import Part
from featcache.spec import Layout
from featcache.storage import LocalStorage
from featcache.upstreams import UpstreamConfig, load, places
from featcache.verify import verify
from featcache.writer import SegmentWriter
from pipelines.bench.faults.inputs import repeat
from tests.helpers import contents, make_speech, run_cli

ROOT = Path(__file__).parents[2]
MEL = UpstreamConfig(id="mel:8")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech(tmp_path_factory.mktemp("speech"), 12)


def test_labels_that_a_disk_takes_for_one_are_refused_before_all_work(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = absolute(read(speech), speech)[:2]
    both = [row.model_copy(update={"labels": {"Lang": "a", "lang": "b"}}) for row in rows]
    write(tmp_path / "m.jsonl", both)
    job = Job(tmp_path / "m.jsonl", tmp_path / "told-apart", Request(MEL))
    job.extract()
    assert {"Lang", "lang"} <= set(job.cache.label_names)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path.name.startswith(".CASE-") or exists(path))
    with pytest.raises(UsageError, match=r"labels 'Lang' and 'lang' differ only in case, which the disk of .*: rename"):
        Job(tmp_path / "m.jsonl", tmp_path / "one", Request(MEL)).extract()
    assert not list((tmp_path / "one").glob("segments/*/*")) and not list((tmp_path / "one").rglob(".case-*"))


def test_parameters_of_a_profile_are_part_of_what_is_asked(speech: Path, tmp_path: Path) -> None:
    def ask(parameters: dict[str, float] | None) -> None:
        Job(speech, tmp_path / "c", Request(MEL, "residual", parameters)).init()

    ask({"step": 0.5})
    ask({"step": 0.5})
    ask(None)
    with pytest.raises(MismatchError, match="profile 'residual:step=1.0' is asked for.*step=0.5"):
        ask({"step": 1.0})
    ask({})  # a profile alone asks for no particular parameters


def test_batches_and_calibration_of_a_cache_that_is_there_are_not_passed_over(speech: Path, tmp_path: Path) -> None:
    place = tmp_path / "c"
    asked = ("extract", speech, place, "--upstream", "mel:8", "--batch-seconds", 30, "--calibration-seconds", 5)
    first = run_cli(*asked)
    assert first.status == 0 and "calibrated already" not in first.err, first.err
    again = run_cli(*asked)
    assert again.status == 0 and f"{place} is calibrated already: --calibration-seconds changes nothing" in again.err
    assert "calibrated already" not in run_cli("extract", speech, place).err
    for dry_run in ((), ("--dry-run",)):
        other = run_cli("extract", speech, place, "--batch-seconds", 20, *dry_run)
        assert other.status == 1 and "batch_seconds 20.0 is asked for, the cache has 30.0" in other.err


def test_a_new_cache_has_batches_for_the_device_it_is_made_on(speech: Path, tmp_path: Path) -> None:
    def seconds(place: str, device: str, **given: float) -> float:
        job = Job(speech, tmp_path / place, Request(MEL, "fp16", layout=Layout(**given)), device)
        job.use(load(MEL, "cpu"))
        return job.init().layout.batch_seconds

    assert seconds("a", "cpu") == 60 and seconds("b", "cuda:1") == 240 and seconds("c", "cuda", batch_seconds=90) == 90
    # One that is there keeps what it has.
    assert seconds("a", "cuda") == 60 and seconds("b", "cpu") == 240
    assert Layout(chunk_frames=16).on("mps").chunk_frames == 16


def test_a_device_with_more_memory_gets_longer_batches() -> None:
    def seconds(gigabytes: float) -> float:
        return Layout().on("cuda", int(gigabytes * 2**30)).batch_seconds

    # What cards of 4, 16, 24, 80 and 141 GB let programs have.
    assert [seconds(gigabytes) for gigabytes in (3.7, 15.7, 23.6, 79.2, 139.8)] == [60, 160, 240, 790, 960]
    assert Layout(batch_seconds=90).on("cuda", 80 << 30).batch_seconds == 90
    assert Layout().on("cpu", 80 << 30).batch_seconds == 60 and Layout().on("cuda").batch_seconds == 240


def test_a_shard_reads_its_own_record_alone(speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(speech, tmp_path / "c", Request(MEL, "fp16", layout=Layout(chunk_frames=16, shard_frames=64)))
    job.init()
    reads: list[str] = []
    read = LocalStorage.read

    def counted(self: LocalStorage, key: str) -> bytes | None:
        if "/ledger/" in key:
            reads.append(key)
        return read(self, key)

    monkeypatch.setattr(LocalStorage, "read", counted)
    done = job.extract()
    assert done is not None and done.shards == 12
    # Once when its lease is taken, once for the seal.
    assert len(reads) == 2 * done.shards


def test_a_very_long_recording_is_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a quarter of an hour no more is in memory than some windows, in the calibration as well."""
    speech = make_speech(tmp_path, 2, seconds=2)
    row = repeat(read(speech), speech, tmp_path / "long.flac", 900.01)
    write(tmp_path / "long.jsonl", [row])
    request = Request(MEL, "int8", layout=Layout(chunk_frames=64, shard_frames=8192), calibration_seconds=60)
    job = Job(tmp_path / "long.jsonl", tmp_path / "c", request)
    loaded: list[float] = []
    load = audio.load

    def measured(*arguments: Any, **options: Any) -> np.ndarray:
        pcm = load(*arguments, **options)
        loaded.append(len(pcm) / 16_000)
        return pcm

    monkeypatch.setattr(audio, "load", measured)
    job.init()
    assert sum(loaded) <= 62 and max(loaded) <= 61
    job.extract()
    cache = job.cache
    assert max(loaded) <= 61 and cache.lengths.tolist() == [90_001] and verify(tmp_path / "c").whole
    # The recording repeats itself: so do its frames, across the windows' edges.
    period = sum(round(other.duration * 100) for other in read(speech))
    features = cache.read(row.id)[:, 0]
    step = cache.codec.calibration["step"][0]
    assert (
        np.abs(features[10 : 10 + 80_000] - features[10 + period * 15 : 10 + period * 15 + 80_000]).max()
        < 2 * step.max()
    )


def test_reading_does_not_run_ahead_of_a_writer_that_waits(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(speech, tmp_path / "c", Request(MEL, "fp16", layout=Layout(chunk_frames=16, shard_frames=64)))
    job.init()
    read_rows: list[int] = []
    waiting, go_on = threading.Event(), threading.Event()
    load, write_files = extract.load_window, SegmentWriter.write_files

    def counted(*arguments: Any) -> Any:
        read_rows.append(arguments[-1])
        return load(*arguments)

    def slow(self: SegmentWriter, files: dict[str, bytes]) -> Any:
        if not go_on.is_set():
            waiting.set()
            go_on.wait(30)
        return write_files(self, files)

    monkeypatch.setattr(extract, "load_window", counted)
    monkeypatch.setattr(SegmentWriter, "write_files", slow)
    thread = threading.Thread(target=job.extract)
    thread.start()
    assert waiting.wait(30)
    time.sleep(1)
    # One shard is a batch of one row here: one is being written, one waits in each hand and in the model, two in each
    # queue.
    ahead = len(read_rows)
    go_on.set()
    thread.join()
    assert ahead <= 4 + 2 * extract.QUEUED_BATCHES < len(read_rows) == 12
    assert verify(tmp_path / "c").whole


def test_one_of_two_is_killed_and_the_other_finishes(speech: Path, tmp_path: Path) -> None:
    """The survivor takes the dead one's lease over, in the middle of a shard."""
    request = Request(MEL, "fp16", layout=Layout(chunk_frames=16, shard_frames=64))
    Job(speech, tmp_path / "whole", request).extract()
    place = tmp_path / "c"
    Job(speech, place, request).init()
    code = (
        "import sys, time; from featcache.cli import main; from featcache.writer import SegmentWriter\n"
        "write = SegmentWriter.write_files\n"
        "def stuck(self, files):\n"
        "    proofs = write(self, files); print('written', flush=True); time.sleep(600)\n"
        "SegmentWriter.write_files = stuck\n"
        "sys.argv = ['featcache', 'extract', *sys.argv[1:]]; main()\n"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(speech), str(place)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert first.stdout is not None and first.stdout.readline() == "written\n"
    second = subprocess.Popen([sys.executable, "-m", "featcache", "extract", str(speech), str(place)], cwd=ROOT)
    segment = place / "segments/000000"
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        records, leases = (len(list((segment / name).glob("0*"))) for name in ("ledger", "leases"))
        if records > 2 and records + leases >= 12:
            break
        time.sleep(0.01)
    # Something is done, the rest is begun, and the first one holds the shard that it wrote and did not record.
    assert second.poll() is None and records > 2 and not (segment / "ledger/000000.json").exists()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert second.wait(200) == 0
    assert contents(place) == contents(tmp_path / "whole")


def test_a_lease_of_another_machine_is_waited_for_until_it_expires(speech: Path, tmp_path: Path) -> None:
    """As on a shared disk, where nobody can see whether that process lives."""
    request = Request(MEL, "fp16", layout=Layout(chunk_frames=16, shard_frames=64))
    job = Job(speech, tmp_path / "c", request)
    job.init()
    expires = time.time() + 3
    foreign = Lease("", "another", expires, "another machine", 1, "1")
    LocalStorage(tmp_path / "c").write("segments/000000/leases/000003", foreign.to_bytes())
    done = job.extract()
    assert done is not None and done.shards == 12 and verify(tmp_path / "c").whole
    record = tmp_path / "c/segments/000000/ledger/000003.json"
    others = [path.stat().st_mtime for path in record.parent.iterdir() if path != record]
    assert record.stat().st_mtime >= expires > max(others)


def test_strict_stops_with_exit_status_1_and_the_row(speech: Path, tmp_path: Path) -> None:
    rows = absolute(read(speech), speech)
    write(tmp_path / "m.jsonl", [*rows, rows[0].model_copy(update={"id": "gone", "audio_filepath": "gone.wav"})])
    ran = run_cli("extract", tmp_path / "m.jsonl", tmp_path / "c", "--upstream", "mel:8", "--strict")
    assert ran.status == 1 and "featcache: 'gone' cannot be used: no such file (--strict)" in ran.err
    assert not list((tmp_path / "c").glob("segments/*/ledger/*"))
    assert run_cli("extract", tmp_path / "m.jsonl", tmp_path / "c").status == 0
    assert "gone" in run_cli("status", tmp_path / "c").out


def test_strict_does_not_finish_what_a_run_without_it_began(speech: Path, tmp_path: Path) -> None:
    gone = absolute(read(speech), speech)[0].model_copy(update={"id": "gone", "audio_filepath": "gone.wav"})
    write(tmp_path / "m.jsonl", [gone, *absolute(read(speech), speech)])
    small = Request(MEL, "int8", layout=Layout(chunk_frames=16, shard_frames=128))
    job = Job(tmp_path / "m.jsonl", tmp_path / "c", small)
    job.extract(part=Part(1, 2))
    before = contents(tmp_path / "c")
    again = run_cli("extract", tmp_path / "m.jsonl", tmp_path / "c", "--strict")
    assert again.status == 1 and "'gone' cannot be used: no such file (--strict); a run without" in again.err
    assert contents(tmp_path / "c") == before
    assert run_cli("extract", tmp_path / "m.jsonl", tmp_path / "c").status == 0


def test_labels_of_a_seal_that_was_killed_leave_nothing_behind(speech: Path, tmp_path: Path) -> None:
    """It is finished with a manifest that has fewer columns."""
    write(tmp_path / "fewer.jsonl", [row.model_copy(update={"labels": {}}) for row in absolute(read(speech), speech)])
    for name, manifest in (("whole", tmp_path / "fewer.jsonl"), ("killed", speech)):
        Job(manifest, tmp_path / name, Request(MEL, "int8")).extract()
    (tmp_path / "killed/segments/000000/seal.json").unlink()
    Job(tmp_path / "fewer.jsonl", tmp_path / "killed", Request()).extract()
    assert not verify(tmp_path / "killed").unknown
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_a_segment_is_its_own_manifests_in_its_order(speech: Path, tmp_path: Path) -> None:
    write(tmp_path / "m.jsonl", absolute(read(speech), speech)[::-1])
    small = Request(MEL, "int8", layout=Layout(chunk_frames=16, shard_frames=128))
    Job(speech, tmp_path / "c", small).extract(part=Part(1, 2))
    with pytest.raises(MismatchError, match="begun for 12 utterances in .*these 12 in .*order and durations counted"):
        Job(tmp_path / "m.jsonl", tmp_path / "c", small).extract()


def test_the_plan_of_a_half_finished_segment_is_of_the_other_half(speech: Path, tmp_path: Path) -> None:
    def planned() -> Outlook:
        return outlook(Job(speech, tmp_path / "c", small))

    small = Request(MEL, "int8", layout=Layout(chunk_frames=16, shard_frames=128))
    Job(speech, tmp_path / "c", small).init()
    whole = planned()
    Job(speech, tmp_path / "c", small).extract(part=Part(1, 2))
    half = planned()
    assert whole.shards_done == 0 and 0 < half.shards_done < half.shards
    assert abs(half.bytes / whole.bytes - (1 - half.shards_done / half.shards)) < 0.1
    Job(speech, tmp_path / "c", small).extract()
    assert planned().bytes == 0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small wav2vec 2.0 in a folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.Wav2Vec2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, conv_dim=(8, 8),
        conv_kernel=(10, 8), conv_stride=(5, 64), num_feat_extract_layers=2, num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    transformers.Wav2Vec2Model(config).save_pretrained(tmp_path / "w2v")
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path / "w2v")
    return tmp_path / "w2v"


def test_a_model_that_was_moved_is_still_the_caches(
    speech: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "c"
    monkeypatch.chdir(tmp_path)
    made = run_cli("extract", speech, place, "-u", "hf:w2v", "--profile", "fp16", "--limit", 4)
    assert made.status == 0, made.err
    assert read_spec(LocalStorage(place))[0].upstream_id == f"hf:{model}"
    # From another working directory, by either path.
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    assert run_cli("extract", speech, place, "-u", "hf:../w2v", "--limit", 5).status == 0
    model.rename(tmp_path / "moved")
    for lost in (
        run_cli("extract", speech, place),
        run_cli("verify", place, "--recompute", 1, "--manifest", speech),
    ):
        assert lost.status == 2 and "the folder" in lost.err and "name the one it is in now, --upstream" in lost.err
    added = run_cli("extract", speech, place, "-u", "hf:../moved")
    assert added.status == 0 and Job(speech, place, Request()).new_rows == [], added.err
    there = ("-u", f"hf:{tmp_path}/moved")
    compared = run_cli("verify", place, "--recompute", 12, "--manifest", speech, *there)
    assert compared.status == 0, compared.out + compared.err
    shard = place / "segments/000002/values/c/0/0/0"
    whole = shard.read_bytes()
    shard.unlink()
    assert run_cli("repair", speech, place, *there).status == 0 and shard.read_bytes() == whole
    # A model of that name that is another one is refused, whether or not anything is left to do.
    (tmp_path / "moved/preprocessor_config.json").write_text('{"do_normalize": false}')
    for command in (("extract", speech, place), ("repair", speech, place)):
        shard.unlink(missing_ok=True)
        other = run_cli(*command, *there)
        assert other.status == 1 and "this model would add other values" in other.err
    assert run_cli("extract", speech, place, *there, "--taps", "0").status == 1


def test_places_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    commit = "0" * 40
    hub, folder, gone = (UpstreamConfig(id=f"hf:{name}") for name in (f"a/b@{commit}", "here", "a/gone"))
    assert places.absolute(folder).id == f"hf:{tmp_path}/here"
    assert places.absolute(hub) == hub and places.absolute(gone) == gone
    assert places.moved(folder, gone).id == f"hf:{tmp_path}/here"
    # A model of the hub has no place on this machine to be moved from or to.
    assert places.moved(folder, hub) == hub and places.moved(hub, folder).id == f"hf:{tmp_path}/here"
    bundle = UpstreamConfig(id="torchaudio:X", weights="old.pt")
    assert places.moved(UpstreamConfig(id="torchaudio:X", weights="new.pt"), bundle).weights == f"{tmp_path}/new.pt"
    assert "checkpoint old.pt" in (places.missing(bundle) or "") and "--weights FILE" in (places.missing(bundle) or "")
    assert "a/gone" in (places.missing(gone) or "") and places.missing(hub) is None and places.missing(folder) is None
    # A worker that has loaded a model looks whether its files are still those.
    assert places.stamps(hub) == [] == places.stamps(gone) == places.stamps(bundle)
    for at, config in (("here/model.safetensors", folder), ("old.pt", bundle)):
        stamps = []
        for data in ("weights", "weights, trained further"):
            (tmp_path / at).write_text(data)
            stamps.append(places.stamps(config))
        assert len(stamps[0]) == len(stamps[1]) == 1 and stamps[0] != stamps[1]


def test_no_cache_is_made_for_a_model_whose_window_is_all_overlap(speech: Path, tmp_path: Path) -> None:
    upstream = load(MEL)
    upstream.geometry = Geometry.mel(160, window_samples=8000)
    job = Job(speech, tmp_path / "c", Request(MEL, "fp16"))
    job.use(upstream)
    with pytest.raises(UpstreamError, match=r"window is 0\.5 s, and windows overlap by 2 s"):
        job.extract()
    assert not job.exists
