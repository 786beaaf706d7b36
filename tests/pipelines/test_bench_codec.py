"""The comparison of codecs: its keys, and that its figures are right on values whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from featcache.errors import UsageError
from pipelines.bench import codec as bench
from tests.featcache.codec.examples import speech_like

KEYS = {"name", "bits_per_value", "snr_db", "worst_tap_snr_db", "encode_mb_s", "decode_mb_s"}


@pytest.fixture(autouse=True)
def synthetic(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [speech_like(n, n, 2, 64) for n in (64, 100, 300, 129, 200)]
    monkeypatch.setattr(bench, "activations", lambda *_: [(rows[:3], 4.0), (rows[3:], 2.0)])
    monkeypatch.setattr(bench, "READS", 3)


def compare(*only: str) -> dict[str, dict[str, float]]:
    result = bench.compare(None, "none", 10.0, only)  # type: ignore[arg-type]
    json.dumps(result)
    return {row["name"]: row for row in result["rows"]}


def test_rows_and_keys() -> None:
    rows = compare("residual:2.0", "fp16", "int8", "bitround", "blosc:step")
    assert all(set(row) >= KEYS or row["absent"] for row in rows.values())
    assert rows["residual:2.0"]["bits_per_value"] < rows["int8 + zstd"]["bits_per_value"]
    assert rows["fp16 + zstd"]["snr_db"] > 40
    values = 329 * 2 * 64
    seconds = rows["residual:2.0"]["encode_share"] * 2.0
    assert seconds == pytest.approx(4e-6 * values / rows["residual:2.0"]["encode_mb_s"], rel=0.02, abs=2e-4)
    # A uniform step of one deviation has the error of a uniform distribution: 1 / 12.
    assert rows["blosc:step=1.0"]["snr_db"] == pytest.approx(10 * np.log10(12), abs=0.4)
    assert rows["residual:2.0"]["worst_tap_snr_db"] <= rows["residual:2.0"]["snr_db"]


def test_what_is_not_installed_is_said_to_be_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert compare("lilcom tick 0")["lilcom tick 0"] == {"name": "lilcom tick 0", "absent": "lilcom"}


def test_an_unknown_row_is_an_error() -> None:
    with pytest.raises(UsageError, match="no codec's name begins with"):
        compare("gzip")
