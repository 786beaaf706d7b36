"""Activations on their way to being stored: the same on a device as on the host."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache import activations
from featcache.activations import begin_rows
from featcache.codec.encoder import Encoder
from featcache.errors import JobError
from featcache.job import Job, Request
from featcache.spans import Spans
from featcache.spec import Layout
from featcache.upstreams import UpstreamConfig, load
from featcache.upstreams.padding import Padded
from tests.featcache.codec.examples import build, speech_like
from tests.helpers import contents, make_speech
from tests.real import SMALL, TINY

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]),
]


@pytest.mark.parametrize("encodes", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_only_kept_frames_are_judged_and_encoded(device: str, encodes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "ENCODING_DEVICES", (device,) if encodes else ())
    codec = build({"step": 0.5})
    rows = [speech_like(30, seed) for seed in range(3)]
    rows[0][0], rows[0][25] = np.nan, np.inf
    rows[1][5, 1, 3], rows[1][6, 2, 0] = np.nan, -np.inf
    kept = [slice(1, 25), slice(0, 30), slice(30, 30)]
    tensors = [torch.from_numpy(row).to(device) for row in rows]
    spans = Spans()
    found = begin_rows(codec, torch.device(device), lambda: tensors, kept, spans)()
    assert [span.name for span in spans.found] == ["forward", "copy"]
    assert [row.frames for row in found] == [30, 30, 30]
    assert [row.bad_taps().tolist() for row in found] == [[], [1, 2], []]
    for made, row, span in zip(found, rows, kept, strict=True):
        planes, expected = made.encode().planes, codec.encode(row[span]).planes
        assert {name: p.tobytes() for name, p in planes.items()} == {name: p.tobytes() for name, p in expected.items()}


def test_a_batch_without_a_usable_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "ENCODING_DEVICES", ("cpu",))
    assert begin_rows(build({"step": 0.5}), torch.device("cpu"), list, [], Spans())() == []


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("parameters", [{"bits": 1.0}, {"nmse": 0.01}, None])
def test_extraction_writes_the_same_bytes(
    device: str, parameters: dict[str, Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a recording whose activations are not finite, and one that is not there; None is a profile of the CPU's."""
    manifest = make_speech(tmp_path, 12)
    (tmp_path / "7.wav").unlink()
    profile = "int8" if parameters is None else "residual"
    request = Request(
        upstream=UpstreamConfig(id="mel:80"), profile=profile, parameters=parameters or {},
        layout=Layout(chunk_frames=16, shard_frames=128, batch_seconds=2), calibration_seconds=5,
    )  # fmt: skip
    host, there = extract_both_ways(manifest, tmp_path, request, device, monkeypatch, spoil=16_000 // 2 + 160 * 3)
    assert contents(host) == contents(there)


@pytest.mark.real
@pytest.mark.parametrize("device", DEVICES)
def test_extraction_of_a_real_model_writes_the_same_bytes(
    speech: Path, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(upstream=TINY, profile="residual", parameters={"bits": 1.0}, layout=SMALL, calibration_seconds=20)
    host, there = extract_both_ways(speech, tmp_path, request, device, monkeypatch)
    assert contents(host) == contents(there)


@pytest.mark.parametrize("encodes", [False, True])
def test_a_model_that_gives_other_frames_than_planned_stops_the_job(
    encodes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(activations, "ENCODING_DEVICES", ("cpu",) if encodes else ())
    request = Request(upstream=UpstreamConfig(id="mel:80"), profile="residual", calibration_seconds=5)
    job = Job(make_speech(tmp_path, 4), tmp_path / "cache", request)
    job.init()
    monkeypatch.setattr(job.upstream, "frames", lambda samples: job.upstream.geometry.frames(samples) - 1)
    with pytest.raises(JobError, match=r"the model gave \d+ frames for 'u\d' where its geometry says"):
        job.extract()


def extract_both_ways(
    manifest: Path, folder: Path, request: Request, device: str, monkeypatch: pytest.MonkeyPatch, spoil: int = 0
) -> tuple[Path, Path]:
    """Caches from one calibration: encoded on the host, and on the device. Spoils the recording of so many samples."""
    assert request.upstream is not None
    upstream = load(request.upstream, device)
    real = upstream._features

    def features(inputs: Padded) -> torch.Tensor:
        output = real(inputs)
        for row, samples in enumerate(inputs.lengths):
            if samples == spoil:
                output[row, 0, 0, 5] = torch.nan
        return output

    batches: list[int] = []
    begin = Encoder.begin

    def counted(self: Encoder, rows: Sequence[torch.Tensor]) -> Any:
        batches.append(len(rows))
        return begin(self, rows)

    monkeypatch.setattr(Encoder, "begin", counted)
    start = Job(manifest, folder / "start", request, device)
    start.use(upstream)
    start.init()
    upstream._features = features  # type: ignore[method-assign]
    for name, kinds in {"host": (), "there": (device,)}.items():
        monkeypatch.setattr(activations, "ENCODING_DEVICES", kinds)
        shutil.copytree(folder / "start", folder / name)
        job = Job(manifest, folder / name, request, device)
        job.use(upstream)
        done = job.extract()
        assert done is not None and len(done.quarantined) == (2 if spoil else 1)
        assert (name == "there" and request.profile == "residual") == bool(batches)
    assert max(batches, default=2) > 1
    return folder / "host", folder / "there"
