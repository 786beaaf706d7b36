"""`python -m pipelines.bench`: parse, call one function, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featcache import startup
from featcache.errors import FeatcacheError

app = typer.Typer(name="pipelines.bench", no_args_is_help=True, pretty_exceptions_enable=False)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Dtype = Annotated[Literal["float32", "bfloat16", "float16"], typer.Option(help="Autocast dtype of the model.")]


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
    as_json: Json = False,
) -> None:
    """Push and pull against s5cmd alone; reading and training from S3 against the local disk."""
    from pipelines.bench.s3 import Plan, print_tables, run

    _print(run(cache, where or [], url, recipe, Plan(repeats, utterances, steps)), as_json, print_tables)


@app.command()
def codec(
    manifest: Annotated[Path, typer.Option(help="Speech to run the model on.")] = Path("data/demo/manifest.jsonl"),
    upstream: Annotated[str, typer.Option(help="The model.")] = "package:whisper-base",
    seconds: Annotated[float, typer.Option(min=10, help="Speech to measure on; twice as much calibrates.")] = 240.0,
    only: Annotated[str, typer.Option(help="Names of rows that begin so, comma separated; all if empty.")] = "",
    as_json: Json = False,
) -> None:
    """Size, error and speed of every codec on the same activations, which no calibration has seen."""
    from pipelines.bench.codec import compare, print_table

    names = [name.strip() for name in only.split(",") if name.strip()]
    _print(compare(manifest, upstream, seconds, names), as_json, print_table)


@app.command()
def faults(
    manifest: Annotated[Path, typer.Option(help="Speech to extract.")] = Path("data/demo/manifest.jsonl"),
    upstream: Annotated[str, typer.Option(help="The model.")] = "package:whisper-tiny.en",
    utterances: Annotated[int, typer.Option(min=4, help="Short utterances of a job.")] = 24,
    kills: Annotated[int, typer.Option(min=0, help="Jobs to kill and to go on with.")] = 50,
    flips: Annotated[int, typer.Option(min=0, help="Bytes to flip, one at a time.")] = 1000,
    long_seconds: Annotated[float, typer.Option(min=1, help="Length of the very long recording.")] = 600.0,
    seed: Annotated[int, typer.Option(help="Draws the same times and bytes again.")] = 1,
    as_json: Json = False,
) -> None:
    """Kill jobs, flip bytes, feed bad recordings; exit status 1 where anything is not survived."""
    from pipelines.bench.faults import Plan, run

    def print_lines(found: dict[str, Any]) -> None:
        for name, value in found.items():
            print(f"{name:18} {value}")

    found = run(manifest, upstream, Plan(kills, flips, long_seconds, utterances, seed))
    _print(found, as_json, print_lines)
    if any(value for name, value in found.items() if name.endswith("_failures")):
        raise typer.Exit(1)


@app.command()
def memory(
    manifest: Annotated[Path, typer.Option(help="Speech to take parts of.")] = Path("data/demo/manifest.jsonl"),
    upstream: Annotated[str, typer.Option(help="The model.")] = "package:whisper-tiny.en",
    utterances: Annotated[int, typer.Option(min=1, help="Short utterances of the first job.")] = 10_000,
    long_seconds: Annotated[float, typer.Option(min=1, help="Length of the second job's recording.")] = 10_800.0,
    as_json: Json = False,
) -> None:
    """Size of a process over very many utterances and over a very long one; exit status 1 where it grows."""
    from pipelines.bench.memory import measure, print_table

    found = measure(manifest, upstream, utterances, long_seconds)
    _print(found, as_json, print_table)
    if found["failures"]:
        raise typer.Exit(1)


@app.command()
def scale(
    sizes: Annotated[str, typer.Option(help="Utterances of each cache, comma separated.")] = ",".join(
        str(10**n) for n in range(4, 8)
    ),
    upstream: Annotated[str, typer.Option(help="The model.")] = "package:whisper-tiny.en",
    as_json: Json = False,
) -> None:
    """Opening, an epoch's order, adding and planning, for caches of up to ten million utterances."""
    from pipelines.bench.scale import measure, print_table

    _print(measure([int(size) for size in sizes.split(",")], upstream), as_json, print_table)


@app.command()
def extract(
    manifest: Annotated[Path, typer.Option(help="Speech to extract.")] = Path("data/demo/manifest.jsonl"),
    upstream: Annotated[str, typer.Option(help="The model.")] = "package:whisper-base",
    seconds: Annotated[float, typer.Option(min=10, help="How much speech.")] = 240.0,
    profile: Annotated[str, typer.Option(help="Codec profile.")] = "int8",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Dtype = "float32",
    batch_seconds: Annotated[
        float | None,
        typer.Option(min=1, help="Audio of one forward pass; as `featcache extract` chooses if left out."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Extraction against the model's forward alone, and against the loops that people write instead."""
    from featcache.upstreams import UpstreamConfig
    from pipelines.bench.extract import measure, print_table

    config = UpstreamConfig(id=upstream, dtype=dtype)
    _print(measure(manifest, config, seconds, profile, device, batch_seconds), as_json, print_table)


@app.command()
def device(
    manifest: Annotated[Path, typer.Option(help="Speech to run the model on.")] = Path("data/demo/manifest.jsonl"),
    upstream: Annotated[str, typer.Option(help="The model.")] = "package:whisper-base",
    seconds: Annotated[float, typer.Option(min=1, help="Speech in a batch.")] = 60.0,
    profile: Annotated[str, typer.Option(help="Codec profile.")] = "residual:1.0",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    dtype: Dtype = "float32",
    turns: Annotated[int, typer.Option(min=1, help="How often each is run.")] = 5,
    as_json: Json = False,
) -> None:
    """The forward, the codec where the model runs, both together, and whether bytes are those of the CPU."""
    from featcache.upstreams import UpstreamConfig
    from pipelines.bench.device import measure, print_table

    config = UpstreamConfig(id=upstream, dtype=dtype)
    _print(measure(manifest, config, seconds, profile, device, turns), as_json, print_table)


@app.command("read")
def read_command(
    cache: Annotated[Path, typer.Option(help="Where the features come from.")] = Path("caches/demo"),
    utterances: Annotated[int, typer.Option(min=10, help="How many to read.")] = 200,
    passes: Annotated[int, typer.Option(min=1, help="Passes with everything in memory.")] = 3,
    s3: Annotated[bool, typer.Option(help="Also read from an S3 endpoint on loopback.")] = True,
    as_json: Json = False,
) -> None:
    """Utterances a second from our store and from others that hold the same features."""
    from pipelines.bench.read import measure, print_table

    _print(measure(cache, utterances, passes, s3), as_json, print_table)


@app.command()
def head(
    frames: Annotated[int, typer.Option(min=1, help="Frames of a batch: 20 s at the demo's rate.")] = 1000,
    taps: Annotated[int, typer.Option(min=2, help="As Whisper base has.")] = 8,
    channels: Annotated[int, typer.Option(min=1, help="As Whisper base has.")] = 512,
    width: Annotated[int, typer.Option(min=1, help="Of the tree.")] = 128,
    turns: Annotated[int, typer.Option(min=1, help="How often both are run.")] = 30,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Threads of the arithmetic on a CPU.")] = 1,
    as_json: Json = False,
) -> None:
    """HFF forward and backward against a loop over taps and nodes with the same weights."""
    import torch

    from pipelines.bench.head import measure, print_table

    torch.set_num_threads(threads)
    _print(measure(frames, taps, channels, width, turns, device, dtype), as_json, print_table)


@app.command()
def train(
    cache: Annotated[str, typer.Option(help="What is learned from.")] = "caches/demo",
    manifest: Annotated[Path, typer.Option(help="Its recordings.")] = Path("data/demo/manifest.jsonl"),
    utterances: Annotated[int, typer.Option(min=20, help="Of training, in memory for comparison.")] = 200,
    turns: Annotated[int, typer.Option(min=1, help="How often each way is measured.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Threads that read ahead.", show_default="auto")] = None,
    decode: Annotated[
        Literal["auto", "host", "device"], typer.Option(help="Where a GPU's codes are decoded.")
    ] = "auto",
    recipe: Annotated[Path, typer.Option(help="What is trained.")] = Path("pipelines/recipes/asr.toml"),
    as_json: Json = False,
) -> None:
    """Training from the cache against training from memory, and against running the model each time."""
    from pipelines.bench.train import measure, print_table

    _print(measure(cache, manifest, utterances, turns, device, workers, decode, recipe), as_json, print_table)


@app.command()
def sweep(
    cache: Annotated[str, typer.Option(help="What is learned from.")] = "caches/demo",
    heads: Annotated[int, typer.Option(min=2, help="Heads of each kind.")] = 8,
    steps: Annotated[int, typer.Option(min=1, help="Steps of every head.")] = 30,
    utterances: Annotated[int, typer.Option(min=20, help="Of each split.")] = 100,
    turns: Annotated[int, typer.Option(min=1, help="How often both ways are run.")] = 3,
    as_json: Json = False,
) -> None:
    """Many heads from one pass over the cache against one after the other."""
    from pipelines.bench.sweep import measure, print_table

    _print(measure(cache, heads, steps, utterances, turns), as_json, print_table)


def _print(result: dict[str, Any], as_json: bool, table: Callable[[dict[str, Any]], None]) -> None:
    if as_json:
        print(json.dumps(result, indent=2))
    else:
        table(result)


def main() -> None:
    """A user's mistake is one line on standard error, and the exit status says whose it is."""
    startup.collect_rarely()
    try:
        app()
    except FeatcacheError as error:
        print(f"pipelines.bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
