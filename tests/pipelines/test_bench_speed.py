"""The benchmarks of speed and scale: their keys, and that what they compare is the same work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from featcache.errors import UsageError
from fusion.modules.hff import HFF
from pipelines.bench import head, read, scale, sweep
from tests.helpers import make_cache

ROW = {"utterances", "open_s", "open_rss_mb", "order_s", "append_s", "plan_s", "files"}


def stamped(result: dict[str, Any]) -> dict[str, Any]:
    json.dumps(result)
    assert "cores" in result["machine"] and result["commit"]
    return result


@pytest.mark.parametrize("taps", [2, 5])
def test_the_loop_over_taps_computes_what_hff_does(taps: int) -> None:
    torch.manual_seed(0)
    model = HFF(taps, 6, 8, dropout=0.0, tap_norm="layer")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    features = torch.randn(2, 7, taps, 6)
    torch.testing.assert_close(head.per_tap_loop(model, features), model(features), atol=1e-5, rtol=1e-4)


def test_head_compares_outputs_and_gradients() -> None:
    found = stamped(head.measure(20, 4, 6, 8, turns=2, device="cpu", dtype="float32"))
    assert found["speedup"] > 0 and found["floor_share"] > 0
    assert found["max_abs_diff"] < 1e-4


def test_scale_grows_a_real_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "ADDED", 12)
    found = stamped(scale.measure([200, 400], "mel:80"))
    assert [set(row) for row in found["rows"]] == [ROW, ROW]
    small, large = found["rows"]
    assert (small["utterances"], large["utterances"]) == (200, 400)
    # Twice the audio: twice the shards and records, and once what every cache has.
    assert small["files"] < large["files"] < 2 * small["files"]
    # A process that loads neither torch nor a codec.
    assert large["open_rss_mb"] < 200
    assert found["files_per_hour"] > 0


def test_every_store_gives_the_features_that_were_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = {f"u{i}": rng.standard_normal((20 + i, 3, 8)).astype(np.float32) for i in range(12)}
    place = make_cache(tmp_path / "cache", features, profile="int8")
    found = stamped(read.measure(place, 10, 1, s3=False))
    rows = {row["name"]: row for row in found["rows"]}
    assert {read.OURS, read.MAP, "HDF5 gzip", ".npy per utterance"} <= set(rows)
    assert found["utterances"] == 10
    for row in rows.values():
        assert set(row) >= {"name", "utterances_s_cold", "utterances_s_warm", "bytes"}
        assert row["utterances_s_cold"] > 0 and row["utterances_s_warm"] > 0 and row["bytes"] > 0
    # Codes of 8 bits against values of 32.
    assert rows[read.MAP]["bytes"] < rows[".npy per utterance"]["bytes"] / 3


def test_sweep_compares_the_same_heads_both_ways(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    features = {f"u{i}": rng.standard_normal((40, 3, 8)).astype(np.float32) for i in range(24)}
    labels = {
        name: {"text": "ab", "lang": "xy"[i % 2], "split": ("train", "train", "dev", "test")[i // 2 % 4]}
        for i, name in enumerate(features)
    }
    place = make_cache(tmp_path / "cache", features, labels)
    found = stamped(sweep.measure(str(place), heads=3, steps=2, utterances=20, turns=1))
    assert [row["name"] for row in found["rows"]] == [sweep.HFF, sweep.SUMS, sweep.PROBES]
    for row in found["rows"]:
        assert row["heads"] == 3 and row["speedup"] == pytest.approx(row["alone_s"] / row["together_s"], rel=0.2)
    sweep.print_table(found)
    with pytest.raises(UsageError, match="has 3 taps, one for each probe: give --heads 3"):
        sweep.measure(str(place), heads=4, steps=2, utterances=20, turns=1)
