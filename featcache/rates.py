"""How fast extraction was last, by kind of device: for the time that `plan` predicts. Part of no digest."""

from __future__ import annotations

import json

from featcache import layout
from featcache.storage import Storage

RATES = f"{layout.LOG}/rates.json"


def save_rate(storage: Storage, device: str, realtime: float) -> None:
    """Keep how many seconds of speech a second a device took, for its kind."""
    rates = measured_rates(storage) | {device.split(":")[0]: round(realtime, 2)}
    storage.write(RATES, json.dumps({"realtime": rates}).encode())


def measured_rates(storage: Storage) -> dict[str, float]:
    """Seconds of speech a second that extraction took last, by kind of device; empty where nothing is known."""
    data = storage.read(RATES)
    try:
        return {device: float(rate) for device, rate in json.loads(data)["realtime"].items()} if data else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
