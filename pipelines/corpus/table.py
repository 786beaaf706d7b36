"""The estimate for people: what was asked and assumed, then a line a profile."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from featcache.blocks import BLOCK_BYTES
from featcache.geometry import SAMPLE_RATE
from featcache.progress import size_text
from featcache.transfer import PART_MIB
from pipelines.corpus.estimate import Compared, Estimate

WIDTH = 120


def print_estimate(found: Estimate) -> None:
    """On standard output."""
    asked = found.question
    length = f"{asked.utterance_seconds:g} s each" if asked.utterance_seconds else "of the cache's lengths"
    measured = "as given" if found.device == "given" else f"on {found.device}, from the cache's log"
    lines = {
        "corpus": f"{asked.hours:,.0f} h: {found.utterances:,} utterances {length}, "
        f"{found.segments:,} segments of {asked.segment_hours:,.0f} h at most",
        "activations": f"{found.upstream}, {found.taps} taps x {found.channels} channels, {found.frame_rate:g} frames "
        f"a second: {found.frames * found.taps * found.channels:.3g} values",
        "extraction": f"{found.realtime:,.4g} x real time ({measured}): {found.gpu_hours:,.0f} hours, "
        f"{found.days:,.1f} days on {asked.gpus:,} of them; {_dollars(found.gpu_dollars)} at {asked.gpu_dollars:g} $ "
        "an hour",
        "prices": f"storage {asked.storage_dollars_tb_month:g} $ a TB and month, PUT and LIST {asked.put_dollars:g} $ "
        f"and GET and HEAD {asked.get_dollars:g} $ a million; all given, none looked up",
        "without a cache": f"{asked.passes} passes: {_dollars(asked.passes * found.gpu_dollars)}, extracting each time",
    }
    console = Console(width=WIDTH, highlight=False, markup=False, emoji=False)
    head = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in lines.items():
        head.add_row(name, text)
    console.print(head)
    months = f"{asked.months:g} month" + ("" if asked.months == 1 else "s")
    size, store = Table(box=box.SIMPLE_HEAD), Table(box=box.SIMPLE_HEAD)
    _columns(size, "bits", "bytes", "x PCM", "shards", "objects", "PUT", "GET, HEAD", "LIST", "push: PUT", "pull: GET")
    _columns(
        store, "writing, $", f"{months}, $", "GET a pass", "bytes a pass", "a pass, $", f"{asked.passes} passes, $",
        "all with GPUs, $",
    )  # fmt: skip
    pcm = 2.0 * SAMPLE_RATE * 3600 * found.gpu_hours * found.realtime
    for row in found.profiles:
        asks = row.requests
        size.add_row(
            row.profile, f"{row.bits:.2f}", size_text(row.bytes), f"{row.bytes / pcm:.2f}", _count(row.shards),
            _count(sum(row.objects.values())), _count(asks["PUT"]), _count(asks["GET"] + asks["HEAD"]),
            _count(asks["LIST"]), _count(row.push_requests), _count(row.pull_requests),
        )  # fmt: skip
        passes = asked.passes * row.pass_dollars
        store.add_row(
            row.profile, _dollars(row.write_dollars), _dollars(row.storage_dollars), _count(row.pass_requests),
            size_text(row.pass_bytes), _dollars(row.pass_dollars), _dollars(passes),
            _dollars(found.gpu_dollars + row.dollars + passes),
        )  # fmt: skip
    console.print(size)
    console.print(store)
    console.print(
        f"PUT, GET, HEAD, LIST: `extract` straight to S3. push: from a folder, in parts of {PART_MIB} MiB; pull: all "
        f"of it, once. a pass: random order, read where it lies by blocks of {BLOCK_BYTES >> 20} MiB. Transfer out "
        "of the provider's network, servers that are no GPUs, and training itself are not counted."
    )


def print_check(rows: Sequence[Compared]) -> None:
    """Predicted against held, on standard output."""
    table = Table(box=box.SIMPLE_HEAD)
    _columns(table, "objects", "held", "bytes", "held", "difference", first="kind")
    for row in rows:
        off = f"{100 * (row.bytes / row.bytes_held - 1):+.2f} %" if row.bytes_held else ""
        table.add_row(
            row.kind, f"{row.objects:,}", f"{row.objects_held:,}", f"{row.bytes:,}", f"{row.bytes_held:,}", off
        )
    Console(width=WIDTH, highlight=False, markup=False, emoji=False).print(table)


def _columns(table: Table, *names: str, first: str = "profile") -> None:
    table.add_column(first, no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _count(number: int) -> str:
    """A count for people: 12.3 M."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if number >= size:
            return f"{number / (1e3 if unit == ' k' else size):,.4g}{unit}"
    return f"{number:,}"


def _dollars(amount: float) -> str:
    return f"{amount:,.0f} $" if amount >= 100 else f"{amount:,.2f} $"
