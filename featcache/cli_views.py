"""How results look on a terminal: tables on standard output, messages on standard error."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from featcache.console import table_console
from featcache.geometry import PCM_RATE
from featcache.inspect import info, label_key
from featcache.progress import size_text, speech_text, time_text

if TYPE_CHECKING:
    # `info` loads none of them, and with some a model's library.
    from featcache.diff import Differences
    from featcache.extract import Done
    from featcache.job import Job
    from featcache.outlook import Outlook
    from featcache.stats import Statistics
    from featcache.store import Cache
    from featcache.verify import Report


def note(message: str) -> None:
    """A message, on standard error."""
    print(message, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


def _pairs(rows: dict[str, str], title: str) -> None:
    table = Table(show_header=False, title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, value)
    table_console().print(table)


def print_info(cache: Cache, as_json: bool) -> None:
    """The identity card of a cache."""
    card = info(cache)
    if as_json:
        return print_json(card)
    frames = card["frames"]
    bits = f" ({card['bits_per_value']:.2f} bits per value, all included)" if frames else ""
    pcm = PCM_RATE * card["hours"] * 3600
    rows = {
        "upstream": card["upstream"],
        "utterances": f"{card['utterances']:,} ({card['quarantined']} left out)",
        "speech": f"{speech_text(card['hours'] * 3600)}, {frames:,} frames at {card['frame_rate']:g} per second",
        "taps x channels": f"{len(card['taps'])} x {card['channels']} ({', '.join(card['taps'])})",
        "profile": cache.spec.profile_text,
        "size": size_text(card["bytes"])
        + bits
        + (f", {card['bytes'] / pcm:.1f} times the 16-bit audio" if pcm else ""),
        "segments, shards": f"{card['segments']}, {card['shards']}",
        "labels": ", ".join(card["labels"]),
        "values id": card["values_id"],
        "encoding id": card["encoding_id"],
        "complete": "yes" if card["complete"] else "no" + (f", a part of {cache.origin}" if cache.origin else ""),
    }
    return _pairs(rows, f"cache {cache.path}")


def print_done(done: Done | None, job: Job, cache: str) -> None:
    """What `extract` did, which utterances it left out and why, and how they come in; None where all was there."""
    from featcache.audio import OTHER_LENGTH

    again = f"`featcache forget {cache} --where id=ID`, then this command"
    if done is None:
        note(f"complete: all {len(job.rows)} utterances of {job.manifest} are in {cache}")
        left_out = sum(segment.seal.quarantined for segment in job.cache.segments)
        if left_out:
            note(
                f"left out in all of {cache}: {left_out} (`featcache status {cache}` lists them); to try one again "
                f"once it is mended: {again}"
            )
        return
    note(f"written: shards {done.shards}, {size_text(done.bytes)}; utterances left out: {len(done.quarantined)}")
    for row in done.quarantined[:5]:
        note(f"  left out: {row.id}: {row.reason}")
    if len(done.quarantined) > 5:
        note(f"  and {len(done.quarantined) - 5} more: `featcache status {cache}` lists them all")
    if any(row.reason.startswith(OTHER_LENGTH) for row in done.quarantined):
        note(
            f"  `featcache manifest check {job.manifest} --measure -o FIXED.jsonl` writes the true durations; "
            f"to add one of these: {again} with FIXED.jsonl"
        )
    if done.saturated:
        note(f"  {done.saturated} values lay beyond the calibrated range and were set to its limit")


def print_outlook(job: Job, as_json: bool) -> None:
    """The plan of what is missing."""
    from featcache.outlook import outlook

    view = outlook(job)
    if as_json:
        return print_json({**asdict(view), "unusable": [{"id": i, "reason": r} for i, r in view.unusable]})
    left_out = sum(segment.seal.quarantined for segment in job.cache.segments)
    stored = f"{len(job.spec.taps)} taps x {job.spec.channels} channels"
    rows = {
        "utterances": f"{view.utterances:,} in the manifest, {view.present:,} in the cache, {view.planned:,} to add",
        "speech to add": f"{speech_text(view.hours * 3600)}, {view.frames:,} frames, {stored}",
        "size": f"{size_text(view.bytes)} to write at {job.spec.bits_per_value:.2f} bits per value "
        f"({job.spec.profile_text}); {size_text(view.free_bytes)} free",
        "shards": f"{view.shards} ({view.shards_done} done)",
        "forward passes": f"{view.batches} ({100 * view.padding_waste:.1f} % padding)",
        "time": time_text(view.seconds) if view.seconds is not None else "not measured yet on this device",
        "unusable": f"{len(view.unusable)} known before reading the audio"
        + (f"; {left_out:,} left out so far (`featcache status {job.storage}` lists them)" if left_out else ""),
    }
    _pairs(rows, f"plan for {job.storage}")
    if len(view.profiles) > 1:
        _print_profiles(view, sum(row.duration for row in job.rows))
    if view.views:
        _print_views(view)
    for utterance_id, reason in view.unusable[:20]:
        note(f"  will be left out: {utterance_id}: {reason}")
    return None


def _print_profiles(view: Outlook, seconds: float) -> None:
    """What every profile would take for the whole manifest; the cache's own comes first."""
    title = "the whole manifest, by profile (from the calibration)"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("profile", "bits per value", "size", "times 16-bit audio", "worst tap's error"):
        table.add_column(column, justify="left" if column == "profile" else "right")
    for found in view.profiles:
        table.add_row(
            found.profile,
            f"{found.bits_per_value:.2f}",
            size_text(found.bytes),
            f"{found.bytes / (PCM_RATE * seconds):.1f}" if seconds else "",
            f"{10 * math.log10(found.nmse):.1f} dB" if found.nmse else "",
        )
    table_console().print(table)


def _print_views(outlook: Outlook) -> None:
    """What the views of the manifest cost, below the recordings that they are made of."""
    title = "the whole manifest, by view"
    table = Table(title=title, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in ("view", "utterances", "to add", "hours", "size", "time"):
        table.add_column(column, justify="left" if column == "view" else "right")
    for cost in outlook.views:
        table.add_row(
            cost.view,
            f"{cost.utterances:,}",
            f"{cost.to_add:,}",
            f"{cost.hours:.2f}",
            size_text(cost.bytes),
            time_text(cost.seconds) if cost.seconds is not None else "not measured",
        )
    table_console().print(table)


def print_utterances(rows: Iterator[dict[str, Any]], limit: int | None, as_json: bool) -> None:
    """A table of utterances, or JSON Lines."""
    table: Table | None = None
    shown = left = 0
    for row in rows:
        if limit is not None and shown >= limit:
            left += 1
            continue
        shown += 1
        if as_json:
            print(json.dumps(row, ensure_ascii=False))
            continue
        if table is None:
            table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
            for column in row:
                table.add_column(column, justify="right" if column in ("seconds", "frames") else "left")
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    if table is not None:
        table_console().print(table)
    note(f"{shown} utterances" + (f", {left} more" if left else ""))


def print_utterance(view: dict[str, Any], as_json: bool) -> None:
    """One utterance: labels, then a line per tap."""
    if as_json:
        return print_json(view)
    frames, taps, channels = view["shape"]
    labels = {label_key(name, ("shape",)): str(value) for name, value in view["labels"].items() if value is not None}
    _pairs(
        {"shape": f"{frames} frames x {taps} taps x {channels} channels, {view['seconds']:.2f} s", **labels},
        view["id"],
    )
    if not view["taps"]:
        note("quarantined: it has no values; `featcache status` says why")
        return None
    table = Table("tap", "mean", "deviation", "minimum", "maximum", "loudest channel", "energy over time", box=None)
    for tap in view["taps"]:
        numbers = [f"{tap[name]:.3g}" for name in ("mean", "deviation", "minimum", "maximum")]
        table.add_row(tap["tap"], *numbers, str(tap["loudest_channel"]), tap["spark"])
    table_console().print(table)
    return None


def print_statistics(found: Statistics, taps: Sequence[str], as_json: bool) -> None:
    """Moments per tap, then the similarity of taps."""
    if as_json:
        return print_json(asdict(found))
    table = Table("tap", "mean", "deviation", "kurtosis", "minimum", "maximum", "outlier channels", box=None)
    for tap in found.taps:
        numbers = [f"{n:.3g}" for n in (tap.mean, tap.deviation, tap.kurtosis, tap.minimum, tap.maximum)]
        outliers = ", ".join(str(channel) for channel in tap.outlier_channels[:8])
        more = len(tap.outlier_channels) - 8
        table.add_row(tap.tap, *numbers, outliers + (f" and {more} more" if more > 0 else ""))
    console = table_console()
    console.print(f"{found.utterances:,} utterances, {found.frames:,} frames")
    console.print(table)
    matrix = Table("CKA", *taps, box=None)
    for name, row in zip(taps, found.similarity, strict=True):
        matrix.add_row(name, *(f"{value:.2f}" for value in row))
    console.print(matrix)
    return None


def print_status(view: dict[str, Any], as_json: bool) -> None:
    """Segments and what was left out."""
    if as_json:
        return print_json(view)
    table = Table("segment", "sealed", "shards done", "in work", "saturated values", box=None)
    for segment in view["segments"]:
        total = segment["shards"] if segment["shards"] is not None else "?"
        table.add_row(
            segment["segment"],
            "yes" if segment["sealed"] else "no",
            f"{segment['shards_done']} of {total}",
            str(segment["in_work"]),
            str(segment["saturated_values"]),
        )
    console = table_console()
    console.print(table)
    console.print(f"left out: {len(view['quarantined'])}")
    for left_out in view["quarantined"]:
        console.print(f"  {left_out['id']}: {left_out['reason']}")
    console.print(f"complete: {'yes' if view['complete'] else 'no'}")
    return None


def print_report(report: Report, place: str, as_json: bool) -> None:
    """What `verify` found."""
    from featcache.contents import proves

    if as_json:
        return print_json({**asdict(report), "whole": report.whole})
    print(
        f"{report.files:,} files, {size_text(report.bytes)}, {report.segments} sealed segments, "
        f"{report.utterances:,} utterances: {'whole' if report.whole else f'{len(report.problems)} problems'}"
    )
    for problem in report.problems:
        print(f"  {place}/{problem.key} {problem.what}")
    if any(problem.mendable for problem in report.problems):
        note(f"`featcache repair MANIFEST {place}` computes broken shards again")
    if not all(problem.mendable for problem in report.problems):
        note(
            f"`featcache forget {place} --where id=ID` and then `featcache extract MANIFEST {place}` take an utterance "
            "anew, from the recording that the manifest has now"
        )
    if report.not_pulled:
        note(f"{len(report.not_pulled)} shard files were not pulled: this is a partial copy, and whole as such")
    if report.unsealed:
        note(
            f"{report.unsealed[0]} is not finished: the command that began it goes on with it, `featcache gc` drops it"
        )
    # What it is that proves the others must be whole for that.
    if not any(proves(problem.key) for problem in report.problems):
        for key in report.unknown[:10]:
            note(f"  not part of the cache: {key} (`featcache gc {place}` removes it)")
    return None


def print_differences(found: Differences, as_json: bool) -> None:
    """What differs between two caches."""
    if as_json:
        return print_json({**asdict(found), "same": found.same})
    for line in found.recipe:
        print(f"recipe      {line}")
    lists = {
        "taps only in A": found.taps_only_a,
        "taps only in B": found.taps_only_b,
        "utterances only in A": found.only_a,
        "utterances only in B": found.only_b,
        "other audio": found.audio,
        "usable in one of them": found.usable,
        **{f"label {name}": changed for name, changed in found.labels.items()},
        "other values": found.values,
    }
    for what, names in lists.items():
        if names:
            print(f"{what}: {len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})")
    if found.values:
        print(f"largest error: NMSE {found.worst_nmse:.3g}")
    print(f"{found.compared} utterances compared: {'the same' if found.same else 'different'}")
    return None
