"""Caches from parts of others, their codes unchanged: `subset` and `merge`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featcache import layout
from featcache.digest import json_differences
from featcache.errors import CacheError, MismatchError, UsageError
from featcache.geometry import SAMPLE_RATE
from featcache.inspect import matching, refuse_unknown
from featcache.rewrite import Chosen, Progress, choose, copy_segment, open_source, refuse_more
from featcache.storage import Storage, open_storage
from featcache.store import Cache
from featcache.turns import adding, making
from featcache.writer import drop_other_calibration, refuse_foreign

# In place of the digest of a recording that could not be used.
QUARANTINED_AUDIO = bytes(32)


@dataclass(frozen=True)
class Selected:
    """What is, or would be, in the new cache."""

    utterances: int
    seconds: float
    left_out: int


def subset(
    source: str | Path,
    target: str | Path,
    where: dict[str, set[str]],
    dry_run: bool = False,
    on_shard: Progress = lambda seconds, written: None,
) -> Selected:
    """Write the utterances with these labels as a cache of their own. Goes on where an earlier run stopped.

    Raises:
        UsageError: none has them all, no utterance has one of them, or `target` holds something else or is the source.
        CacheError: the source is not complete, or a partial copy.
        MismatchError: `target` was begun from another cache or for other utterances.
    """
    storage = open_storage(target)
    cache = open_source(source, storage)
    refuse_unknown(cache, where)
    keep = matching(cache, where)
    if not keep.any():
        raise UsageError(f"no utterance of {source} is chosen: `featcache ls {source}` lists them with their labels")
    return _write([choose(cache, keep)], len(cache), storage, dry_run, on_shard)


def merge(
    first: str | Path,
    second: str | Path,
    target: str | Path,
    dry_run: bool = False,
    on_shard: Progress = lambda seconds, written: None,
) -> Selected:
    """Write the utterances of two caches as one.

    Those that both hold, with the same audio, are taken once: from the one that could use them, else from the first.

    Raises:
        MismatchError: the caches hold other values or codes, or one id stands for two recordings.
        UsageError, CacheError: as `subset`.
    """
    storage = open_storage(target)
    a, b = open_source(first, storage), open_source(second, storage)
    # Profiles without a calibration have one encoding id, whatever the codes were made of.
    if (a.values_id, a.encoding_id, a.spec.parent) != (b.values_id, b.encoding_id, b.spec.parent):
        fields = {"identity", "audio", "taps", "profile", "parameters", "encoding_id", "parent"}
        found = json_differences(
            a.spec.model_dump(mode="json", include=fields), b.spec.model_dump(mode="json", include=fields)
        )
        raise MismatchError(
            f"{first} and {second} do not hold the same kind of codes ({'; '.join(found)}): merge what was made "
            "from one `featcache init` (copy an empty cache to each machine, or use `featcache extract --part`)"
        )
    known = {utterance_id: (row, audio) for row, (utterance_id, audio) in enumerate(audio_digests(a).items())}
    keep_a, keep_b = np.ones(len(a), bool), np.ones(len(b), bool)
    for row, (utterance_id, audio) in enumerate(audio_digests(b).items()):
        if utterance_id not in known:
            continue
        of_a, audio_of_a = known[utterance_id]
        # Quarantined in one of them: the usable one is taken.
        keep_b[row] = audio_of_a == QUARANTINED_AUDIO != audio
        keep_a[of_a] = not keep_b[row]
        if QUARANTINED_AUDIO not in (audio_of_a, audio) and audio_of_a != audio:
            raise MismatchError(
                f"{utterance_id!r} is another recording in {first} than in {second}: give each recording its own id"
            )
    parts = [choose(a, keep_a), choose(b, keep_b)]
    return _write(parts, len(a) + len(b), storage, dry_run, on_shard)


def audio_digests(cache: Cache) -> dict[str, bytes]:
    """SHA-256 of the audio of every utterance by id, in their order; zeros where it is quarantined."""
    digests = (row.tobytes() for segment in cache.segments for row in segment.column("audio_sha256"))
    return dict(zip(cache.ids, digests, strict=True))


def _write(parts: Sequence[Sequence[Chosen]], of: int, storage: Storage, dry_run: bool, on_shard: Progress) -> Selected:
    """One segment for each cache that gives utterances."""
    parts = [part for part in parts if part]
    chosen = [piece for part in parts for piece in part]
    samples = sum(int(piece.segment.column("samples")[list(piece.utterances)].sum()) for piece in chosen)
    utterances = sum(len(piece.utterances) for piece in chosen)
    _prepare(parts[0][0].cache.storage, storage, dry_run)
    refuse_more(storage, [layout.segment_name(number) for number in range(len(parts))])
    if not dry_run:
        with adding(storage):
            for number, part in enumerate(parts):
                # Planes are laid out as the target's description says, which is that of the first cache.
                pieces = [Chosen(parts[0][0].cache, piece.segment, piece.utterances) for piece in part]
                copy_segment(pieces, storage, layout.segment_name(number), part[0].cache.label_names, on_shard)
    return Selected(utterances, samples / SAMPLE_RATE, of - utterances)


def _prepare(source: Storage, target: Storage, dry_run: bool) -> None:
    """Give the target the source's description and calibration, or check that it has them."""
    if target.exists(layout.ROOT):
        if target.read(layout.ROOT) != source.read(layout.ROOT):
            raise MismatchError(f"{target} holds another cache: give a new or an empty folder")
        return
    refuse_foreign(target)
    if dry_run:
        return
    with making(target):
        calibration = [*source.list_keys(layout.CALIBRATION)]
        drop_other_calibration(target, calibration)
        # The description last: it makes a cache of it.
        for key in (*calibration, layout.ROOT):
            data = source.read(key)
            if data is None:
                raise CacheError(f"{source}/{key} went away while it was copied: run `featcache verify {source}`")
            target.write(key, data)
