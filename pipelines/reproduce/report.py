"""The table and its claims, for a terminal and as JSON."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from featcache.console import table_console
from pipelines.reproduce.claims import Claim
from pipelines.reproduce.table import Result, Row, budget_line


def as_json(result: Result, claims: list[Claim]) -> dict[str, Any]:
    """JSON-able."""
    return {
        "scale": result.scale.name,
        "budget": budget_line(result.scale, result.recipe),
        "recipe": result.recipe.model_dump(mode="json"),
        "upstream": result.upstream,
        "upstream_parameters": result.upstream_parameters,
        "device": result.device,
        "extraction_s": result.extraction_s,
        "rows": [vars(row) for row in result.rows],
        "claims": [vars(claim) for claim in claims],
    }


def print_table(result: Result, claims: list[Claim]) -> None:
    """Quality and size, then cost, then the claims, on standard output."""
    console = table_console()
    console.print(budget_line(result.scale, result.recipe), highlight=False)
    console.print(_quality(result.rows))
    console.print(_cost(result.rows))
    extraction = "not known here" if result.extraction_s is None else f"{result.extraction_s:,.0f} s"
    memory = "of the GPU" if result.device == "cuda" else "resident, above what the process held before"
    console.print(
        f"{result.upstream}: {result.upstream_parameters:,} parameters; extraction: {extraction}. 'trained': weights "
        "of the upstream and of the fuser, and their share of the upstream. Intervals: bootstrap over utterances. "
        f"Memory: peak {memory}. Times are of steps, without looks at dev. 'pays': the first epoch after which "
        "cached HFF, its extraction counted, is ahead of the row (of a cached row: it ahead of full fine-tuning).",
        highlight=False,
    )
    for claim in claims:
        console.print(f"{claim.holds}: {claim.claim}: {claim.figure}", highlight=False)


def _quality(rows: tuple[Row, ...]) -> Table:
    table = _table("WER", "95 %", "trained", "%", "decoder")
    for row in rows:
        low, high = row.wer_ci95
        table.add_row(
            row.title, f"{row.wer:.3f}", f"{low:.3f}, {high:.3f}", f"{row.encoder_parameters:,}",
            f"{row.encoder_parameters_pct:.2f}", f"{row.decoder_parameters:,}",
        )  # fmt: skip
    return table


def _cost(rows: tuple[Row, ...]) -> Table:
    table = _table("MB", "s/epoch", "steps/s", "s to best", "h/h", "pays")
    for row in rows:
        table.add_row(
            row.title, f"{row.peak_memory_mb:,.0f}", f"{row.epoch_s:,.0f}", f"{row.steps_per_s:.2f}",
            f"{row.time_to_best_s:,.0f}", f"{row.hours_per_hour:,.0f}", str(row.break_even_epoch or "-"),
        )  # fmt: skip
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("row", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    return table
