"""`pipelines corpus`: what a corpus of any size would take."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated

import typer

from featcache.errors import UsageError
from pipelines.cli_options import DEMO_CACHE, Json


def corpus(
    cache: Annotated[
        str, typer.Option(help="The cache whose model, calibration, labels and measured rate are taken.")
    ] = str(DEMO_CACHE),
    hours: Annotated[float, typer.Option(min=0.001, help="Of speech.")] = 1e6,
    utterance_seconds: Annotated[
        float, typer.Option(min=0, help="Length of every utterance; 0 takes the cache's own, again and again.")
    ] = 10.0,
    segment_hours: Annotated[float, typer.Option(min=0.001, help="What one `featcache extract` adds.")] = 10_000.0,
    taps: Annotated[int, typer.Option(min=0, help="Of another model; 0 is the cache's.")] = 0,
    channels: Annotated[int, typer.Option(min=0, help="Of another model; 0 is the cache's.")] = 0,
    gpus: Annotated[int, typer.Option(min=1, help="At work at a time.")] = 64,
    gpu_realtime: Annotated[
        float, typer.Option(min=0, help="Seconds of speech that one extracts a second; 0 is what the cache's log says.")
    ] = 0.0,
    passes: Annotated[int, typer.Option(min=0, help="Of training, over the whole corpus.")] = 10,
    months: Annotated[float, typer.Option(min=0, help="For which the cache is kept.")] = 1.0,
    gpu_dollars: Annotated[float, typer.Option(min=0, help="An hour of one GPU.")] = 2.0,
    storage_dollars_tb_month: Annotated[float, typer.Option(min=0, help="A terabyte (10^12 bytes) for a month.")] = 23,
    put_dollars: Annotated[float, typer.Option(min=0, help="A million PUT or LIST requests.")] = 5.0,
    get_dollars: Annotated[float, typer.Option(min=0, help="A million GET or HEAD requests.")] = 0.4,
    block_cache_gb: Annotated[
        float, typer.Option(min=0, help="Blocks that a reading machine keeps on its disk.")
    ] = 10.0,
    check: Annotated[
        bool, typer.Option("--check", help="Instead: predict the cache itself, and compare with what it holds.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bytes, objects, requests, GPU hours and dollars of a corpus, by profile. Changes nothing.

    Prices and rates are yours: the defaults are round numbers and no offer of anybody.
    """
    from featcache.store import Cache
    from pipelines.corpus import estimate as estimates
    from pipelines.corpus import table

    opened = Cache.open(cache)
    if check:
        rows = estimates.check(opened)
        if as_json:
            print(json.dumps([asdict(row) for row in rows], indent=2))
        else:
            table.print_check(rows)
        return
    question = estimates.Question(
        hours, utterance_seconds, segment_hours, taps, channels, gpus, gpu_realtime, passes, months, gpu_dollars,
        storage_dollars_tb_month, put_dollars, get_dollars, block_cache_gb,
    )  # fmt: skip
    for name, value in asdict(question).items():
        if not math.isfinite(value):
            raise UsageError(f"--{name.replace('_', '-')} {value} is not an amount; give a finite number")
    found = estimates.estimate(opened, question)
    if as_json:
        print(json.dumps(asdict(found), indent=2))
    else:
        table.print_estimate(found)
