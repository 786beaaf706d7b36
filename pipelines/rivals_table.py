"""The tables of rivals, for a terminal of 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from rich import box
from rich.table import Table

from featcache.console import table_console
from fusion import intervals
from pipelines.rivals import Row


def print_tables(rows: Sequence[Row], claims: Sequence[dict[str, Any]] = (), measures: int | None = None) -> None:
    """One table a task and measure on standard output, then what was chosen, the claims, and what it all means.

    Args:
        measures: how many of each task's measures to show; all by default.
    """
    console = table_console()
    for task in dict.fromkeys(row.task for row in rows):
        of_task = [row for row in rows if row.task == task]
        for measure in of_task[0].measures[:measures]:
            console.print(_scores(of_task, measure.name, f"{task}: {measure.title}"))
        if any(row.chosen for row in of_task):
            console.print(_chosen(of_task))
        decoders = ", ".join(f"{row.rival.title} {row.decoder_parameters:,}" for row in of_task)
        console.print(
            f"Parameters of the decoders: {decoders}. Test utterances: {of_task[0].utterances}.", highlight=False
        )
    for line in _answers(claims):
        console.print(line, highlight=False, soft_wrap=True)
    seeds = ", ".join(map(str, rows[0].seeds))
    console.print(
        f"Seeds: {seeds} (values are means over them). Intervals: bootstrap over utterances. '- HFF': the row's value "
        "minus HFF's on the same utterances, with the interval of the paired difference.",
        highlight=False,
    )


def _scores(rows: Sequence[Row], name: str, title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    table.add_column("features, fuser")
    for column in ("fuser", title.rpartition(": ")[2], "95 %", "- HFF", "95 %"):
        table.add_column(column, justify="right")
    for row in rows:
        score = row.scores[name]
        gap = score.difference
        table.add_row(
            row.rival.title,
            f"{row.fusion_parameters / 1e3:.0f} k",
            intervals.figure(score.value),
            intervals.span(score.ci95),
            *(("", "") if gap is None else (f"{gap[0]:+.3f}", f"{gap[1]:+.3f}, {gap[2]:+.3f}")),
        )
    return table


def _chosen(rows: Sequence[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"{rows[0].task}: chosen on dev", title_justify="left")
    for column in ("features, fuser", "chosen", "dev"):
        table.add_column(column)
    for row in rows:
        tap = "" if row.tap is None else f"tap {row.tap}, "
        values = sorted(filter(math.isfinite, row.dev.values()))  # not those of a point that diverged
        spread = f"{values[0]:.3f} to {values[-1]:.3f}" if values else ""
        table.add_row(row.rival.title, tap + ", ".join(row.chosen), spread)
    return table


def _answers(claims: Sequence[dict[str, Any]]) -> Iterator[str]:
    for claim in claims:
        difference = "{:+.3f} ({:+.3f} to {:+.3f})".format(*claim["figure"]["difference"])
        yield f"{'yes' if claim['holds'] else 'no ':<3}  {claim['claim']}: {claim['figure']['measure']} {difference}"
