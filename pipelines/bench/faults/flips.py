"""Single bytes changed anywhere in a cache: each is noticed, or nothing that is read has changed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from featcache import layout
from featcache.digest import digest, digest_arrays, sha256
from featcache.errors import FeatcacheError
from featcache.ledger import read_records
from featcache.storage import LocalStorage
from featcache.store import Cache
from featcache.verify import verify


def flip_bytes(reference: Path, flips: int, chance: random.Random, folder: Path) -> dict[str, Any]:
    """Flip one byte at a time and put it back; every second one in a file drawn evenly, so that small ones count.

    `flips_detected`: `verify` names it, or reading stops. `flips_harmless`: neither, and all parsed metadata
    and all values are equal. `flips_silent` are those after which reading gave other data without an error,
    whatever `verify` says of them.
    """
    place = folder / "flipped"
    shutil.copytree(reference, place)
    expected, documents = reading(place), metadata(place)
    files = [place / key for key in LocalStorage(place).list_keys()]
    sizes = [path.stat().st_size for path in files]
    detected = harmless = 0
    silent: list[str] = []
    missed: list[str] = []
    for number in range(flips):
        path = chance.choice(files) if number % 2 else chance.choices(files, sizes)[0]
        before = path.read_bytes()
        at, mask = chance.randrange(len(before)), chance.randrange(1, 256)
        path.write_bytes(before[:at] + bytes([before[at] ^ mask]) + before[at + 1 :])
        where = f"{path.relative_to(place)} byte {at} ^ {mask}"
        try:
            stopped, same = False, reading(place) == expected
        except FeatcacheError:
            stopped, same = True, False
        if stopped or not verify(place).whole:
            detected += 1
        elif same and metadata(place) == documents:
            harmless += 1
        else:
            missed.append(where)
        if not stopped and not same:
            silent.append(where)
        path.write_bytes(before)
    shutil.rmtree(place)
    return {
        "flips": flips,
        "flips_detected": detected,
        "flips_harmless": harmless,
        "flips_silent": len(silent),
        "flip_failures": sorted({*missed, *silent}),
    }


def reading(place: Path) -> dict[str, Any]:
    """All that a reader learns from a cache: its description, index, labels, records and values."""
    cache = Cache.open(place)
    storage = cache.storage
    found: dict[str, Any] = {
        "spec": digest(cache.spec.model_dump(mode="json")),
        "calibration": digest_arrays(cache.codec.calibration),
        "ids": list(cache.ids),
        "labels": {name: cache.labels(name) for name in cache.label_names},
        "complete": cache.complete,
    }
    for segment in cache.segments:
        columns = sorted(storage.folders(f"{segment.name}/index"))
        found[segment.name] = {
            "index": digest_arrays({name: segment.column(name) for name in columns}),
            "ledger": {n: r.model_dump(mode="json") for n, r in read_records(storage, segment.name, "").items()},
            "seal": segment.seal.model_dump(mode="json"),
            "values": [digest_arrays(segment.read(utterance)) for utterance in range(len(segment))],
        }
    return found


def metadata(place: Path) -> dict[str, Any]:
    """Every JSON file of a cache, parsed, used by a reader or not; but the log, which is part of no cache."""
    storage = LocalStorage(place)
    keys = [key for key in storage.list_keys() if key.endswith(".json") and not key.startswith(f"{layout.LOG}/")]
    return {key: _parsed(storage.read(key) or b"") for key in keys}


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return sha256(data)
