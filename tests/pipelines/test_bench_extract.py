"""The benchmark of extraction: its keys, and that the forward it compares with is fed the same speech."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from featcache.upstreams import UpstreamConfig
from pipelines.bench import extract
from tests.helpers import make_speech


def test_extract_compares_with_the_forward_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "TURNS", 1)
    config = UpstreamConfig(id="mel:80")
    found = extract.measure(make_speech(tmp_path, 12, seconds=1.0), config, 10, "int8", "cpu", batch_seconds=3)
    json.dumps(found)
    assert found["efficiency"] > 0 and found["forward_realtime"] > 0 and found["batch_seconds"] == 3
    assert (found["dtype"], found["device"], found["upstream"]) == ("float32", "cpu", "mel:80")
    assert {"forward", "beside it: encode", "beside it: write"} <= set(found["spent"])
    assert len(found["rivals"]) == 2
    extract.print_table(found)


@pytest.mark.parametrize("can_pad", [False, True])
def test_a_device_is_also_offered_larger_batches(can_pad: bool) -> None:
    model: Any = SimpleNamespace(device=torch.device("cuda"), rows_alone=False, can_pad=can_pad)
    batches = [[np.full(length, n, np.float32)] * 3 for n, length in enumerate((9, 9, 9, 5, 5, 7))]
    ways = extract._ways(model, batches)
    everything = sorted(float(wave[0]) for batch in batches for wave in batch)
    for rows_alone, groups in ways.values():
        assert not rows_alone and sorted(float(wave[0]) for group in groups for wave in group) == everything
        assert can_pad or all(len({len(wave) for wave in group}) == 1 for group in groups)
    assert max(len(group) for name, (_, groups) in ways.items() if "twice" in name for group in groups) == 6
    assert max(len(group) for name, (_, groups) in ways.items() if "four" in name for group in groups) == (
        12 if can_pad else 9
    )
