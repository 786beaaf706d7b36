"""`python -m pipelines.bench`: parse, call one function, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from featcache.errors import FeatcacheError

app = typer.Typer(name="pipelines.bench", no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _benchmarks() -> None:
    """Benchmarks of the parts that have to be small or fast."""


@app.command()
def s3(
    cache: Annotated[Path, typer.Option(help="The cache to copy and to read.")] = Path("caches/demo"),
    where: Annotated[list[str] | None, typer.Option(help="label=value: only this part of it.")] = None,
    url: Annotated[str, typer.Option(help="An empty s3://bucket/prefix; moto on loopback by default.")] = "",
    recipe: Annotated[Path, typer.Option(help="What is trained.")] = Path("pipelines/recipes/asr.toml"),
    repeats: Annotated[int, typer.Option(min=1, help="Copies each way; the median counts.")] = 3,
    utterances: Annotated[int, typer.Option(min=1, help="Utterances to read; of each split to train on.")] = 400,
    steps: Annotated[int, typer.Option(min=0, help="Steps of training; 0 leaves it out.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Push and pull against s5cmd alone; reading and training from S3 against the local disk."""
    from pipelines.bench.s3 import Plan, print_tables, run

    found = run(cache, where or [], url, recipe, Plan(repeats, utterances, steps))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_tables(found)


@app.command()
def codec(
    manifest: Annotated[Path, typer.Option(help="Speech to run the model on.")] = Path("data/demo/manifest.jsonl"),
    upstream: Annotated[str, typer.Option(help="The model.")] = "package:whisper-base",
    seconds: Annotated[float, typer.Option(min=10, help="Speech to measure on; twice as much calibrates.")] = 240.0,
    only: Annotated[str, typer.Option(help="Names of rows that begin so, comma separated; all if empty.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Size, error and speed of every codec on the same activations, which no calibration has seen."""
    from pipelines.bench.codec import compare, print_table

    result = compare(manifest, upstream, seconds, [name.strip() for name in only.split(",") if name.strip()])
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        print_table(result)


@app.command()
def faults(
    manifest: Annotated[Path, typer.Option(help="Speech to extract.")] = Path("data/demo/manifest.jsonl"),
    upstream: Annotated[str, typer.Option(help="The model.")] = "package:whisper-tiny.en",
    utterances: Annotated[int, typer.Option(min=4, help="Short utterances of a job.")] = 24,
    kills: Annotated[int, typer.Option(min=0, help="Jobs to kill and to go on with.")] = 50,
    flips: Annotated[int, typer.Option(min=0, help="Bytes to flip, one at a time.")] = 1000,
    long_seconds: Annotated[float, typer.Option(min=1, help="Length of the very long recording.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Draws the same times and bytes again.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Kill jobs, flip bytes, feed bad recordings; exit status 1 where anything is not survived."""
    from pipelines.bench.faults import Plan, run

    found = run(manifest, upstream, Plan(kills, flips, long_seconds, utterances, seed))
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:18} {value}")
    if any(value for name, value in found.items() if name.endswith("_failures")):
        raise typer.Exit(1)


@app.command()
def memory(
    manifest: Annotated[Path, typer.Option(help="Speech to take parts of.")] = Path("data/demo/manifest.jsonl"),
    upstream: Annotated[str, typer.Option(help="The model.")] = "package:whisper-tiny.en",
    utterances: Annotated[int, typer.Option(min=1, help="Short utterances of the first job.")] = 10_000,
    long_seconds: Annotated[float, typer.Option(min=1, help="Length of the second job's recording.")] = 10_800.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Size of a process over very many utterances and over a very long one; exit status 1 where it grows."""
    from pipelines.bench.memory import measure, print_table

    found = measure(manifest, upstream, utterances, long_seconds)
    if as_json:
        print(json.dumps(found, indent=2))
    else:
        print_table(found)
    if found["failures"]:
        raise typer.Exit(1)


def main() -> None:
    """A user's mistake is one line on standard error, and the exit status says whose it is."""
    try:
        app()
    except FeatcacheError as error:
        print(f"pipelines.bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
