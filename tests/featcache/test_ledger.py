"""Records and seals prove themselves, down to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import CorruptCacheError
from featcache.ledger import (
    FileProof,
    Quarantined,
    ShardRecord,
    from_bytes,
    ledger_digest,
    read_proofs,
    read_records,
    record_key,
    to_bytes,
)
from featcache.storage import LocalStorage

hashes = st.binary(min_size=32, max_size=32).map(bytes.hex)
records = st.builds(
    ShardRecord,
    shard=st.integers(0, 10**6),
    files=st.dictionaries(
        st.text(min_size=1), st.builds(FileProof, bytes=st.integers(0, 2**40), sha256=hashes), max_size=3
    ),
    first=st.integers(0, 10**9),
    audio=st.lists(hashes | st.just(""), max_size=5).map(tuple),
    quarantined=st.lists(
        st.builds(Quarantined, row=st.integers(0, 10**9), id=st.text(), reason=st.text()), max_size=3
    ).map(tuple),
    saturated=st.integers(0, 2**40),
)


@given(records)
def test_a_record_comes_back_as_it_was(record: ShardRecord) -> None:
    assert from_bytes(ShardRecord, to_bytes(record), "x", "") == record


@given(records, st.data())
def test_every_flipped_byte_is_noticed(record: ShardRecord, data: st.DataObject) -> None:
    damaged = bytearray(to_bytes(record))
    at = data.draw(st.integers(0, len(damaged) - 1))
    damaged[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(CorruptCacheError, match="ledger/000000.json is damaged.*: mend it"):
        from_bytes(ShardRecord, bytes(damaged), "ledger/000000.json", "mend it")


def test_json_without_an_end_is_damage() -> None:
    deep = b'{"content":' * 100_000
    with pytest.raises(CorruptCacheError, match="x is damaged .RecursionError.: mend it"):
        from_bytes(ShardRecord, deep, "x", "mend it")
    with pytest.raises(CorruptCacheError, match="x is damaged or missing: mend it"):
        read_proofs(deep, "x", "mend it")


def test_the_ledger_is_read_by_shard_and_its_digest_ignores_the_order(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    made = [ShardRecord(shard=i, files={}, first=i, audio=("",)) for i in (2, 0, 1)]
    for record in made:
        storage.write(record_key("s", record.shard), to_bytes(record))
    read = read_records(storage, "s", "")
    assert read == {record.shard: record for record in made}
    assert ledger_digest(read) == ledger_digest({r.shard: r for r in reversed(made)})
    changed = {**read, 1: ShardRecord(shard=1, files={}, first=1, audio=("00",))}
    assert ledger_digest(changed) != ledger_digest(read)
