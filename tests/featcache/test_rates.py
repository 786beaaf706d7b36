"""How fast extraction was, by kind of device."""

from __future__ import annotations

from pathlib import Path

import pytest

from featcache.rates import RATES, measured_rates, save_rate
from featcache.storage import LocalStorage


def test_each_kind_of_device_keeps_its_rate(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert measured_rates(storage) == {}
    for device, rate in (("cpu", 80.0), ("cuda:1", 4000.0), ("cpu", 90.004)):
        save_rate(storage, device, rate)
    assert measured_rates(storage) == {"cpu": 90.0, "cuda": 4000.0}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"realtime": 1}', b'{"realtime": {"cpu": "fast"}}'])
def test_rates_that_cannot_be_read_are_none(tmp_path: Path, data: bytes) -> None:
    storage = LocalStorage(tmp_path)
    storage.write(RATES, data)
    assert measured_rates(storage) == {}
    save_rate(storage, "cpu", 1.0)
    assert measured_rates(storage) == {"cpu": 1.0}
