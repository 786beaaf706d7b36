"""The benchmark of a model's device, on the CPU and a model without weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.errors import UsageError
from featcache.upstreams import UpstreamConfig
from pipelines.bench import device
from tests.helpers import make_speech

MEL = UpstreamConfig(id="mel:80")


@pytest.mark.parametrize("profile", ["residual:1.0", "int8"])
def test_what_it_says(profile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "CALIBRATION_SECONDS", 3.0)
    found = device.measure(make_speech(tmp_path, 12), MEL, 2.0, profile, "cpu", 1)
    assert found["bytes_agree"] and found["floats_agree"]
    assert found["rows"] > 1 and found["audio_seconds"] >= 1
    for name in ("forward_realtime", "encode_realtime", "both_realtime", "efficiency", "decode_values_s"):
        assert found[name] > 0


def test_too_little_speech(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds less than 60 s"):
        device.measure(make_speech(tmp_path, 4), MEL, 2.0, "int8", "cpu", 1)
