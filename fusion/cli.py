"""The command `fusion`: train heads, evaluate a run, compare runs, align texts, search with a beam."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from featcache import startup
from featcache.errors import FeatcacheError, UsageError
from featcache.interrupts import Commands, leave_when_interrupted
from fusion.cli_align import align
from fusion.cli_decode import decode
from fusion.cli_options import AsJson, Limit, Overrides, Restart, RunFolder, Runs
from fusion.cli_sweep import sweep
from fusion.console import plain_console

# What imports torch is imported in the command that needs it.
startup.sleep_while_waiting()


class _Group(Commands):
    """Prints a user's mistake in one line and leaves with its exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FeatcacheError as error:
            if os.environ.get("RANK", "0") == "0":
                message = Text.assemble(("error:", "bold red"), f" {error}")
                plain_console(stderr=True).print(message, highlight=False, soft_wrap=True)
            raise typer.Exit(error.exit_code) from None


app = typer.Typer(
    cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
    help="Train small heads on cached activations of a frozen speech model.",
)  # fmt: skip
app.command()(align)
app.command()(decode)
app.command()(sweep)
startup.offer_version(app)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="TOML file that fixes the run.", show_default=False)],
    set_: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Only go on with a run that was begun.")] = False,
    restart: Restart = False,
    limit: Limit = 0,
    runs: Runs = Path("runs"),
    profile_trace: Annotated[
        Path | None,
        typer.Option(help="Trace some steps into this .json, and print where their time went.", show_default=False),
    ] = None,
) -> None:
    """Train a head, evaluate it on test once, print its scores and, last, its folder.

    Without --resume or --restart an unfinished run of the same recipe goes on, and a finished one stays.
    Several GPUs: torchrun --nproc-per-node N -m fusion.cli train RECIPE.
    """
    from fusion import recipe as recipes
    from fusion.train import fit

    if resume and restart:
        raise UsageError("--resume and --restart exclude each other; use one")
    wanted = recipes.read(recipe, set_ or ())
    if limit:
        wanted = wanted.limited(limit)
    run = fit(wanted, runs=runs, mode="resume" if resume else "restart" if restart else "auto", trace=profile_trace)
    if os.environ.get("RANK", "0") == "0":
        _print_metrics(run.metrics())
        print(run.path)


@app.command("eval")
def evaluate(
    run: RunFolder,
    split: Annotated[str, typer.Option(help="train, dev or test.")] = "test",
    cache: Annotated[
        str,
        typer.Option(
            help="Another encoding of the same features; its scores are printed, not stored.",
            show_default=False,
        ),
    ] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a run's best checkpoint. The scores of test are stored, where the run is finished."""
    from fusion import checkpoint
    from fusion.distributed import pick_device
    from fusion.run import Run

    opened = Run.open(run, pick_device(device, key="--device"))
    evaluation = opened.evaluate(split, cache or None)
    if split == "test" and not cache:
        if opened.files.finished:
            opened.write(evaluation)
        else:
            text = f"these scores are not stored, as run {run} is not finished: {Run.way_on(run)}"
            plain_console(stderr=True).print(text, highlight=False, soft_wrap=True)
    if as_json:
        print(json.dumps(checkpoint.defined(evaluation.metrics), ensure_ascii=False))
    else:
        _print_metrics(evaluation.metrics)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Folders of finished runs. Runs of several seeds, joined by commas, count as their mean.",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Show runs side by side, with the paired difference of each to the first."""
    from fusion import checkpoint, comparison

    rows = comparison.compare([run if Path(run).is_dir() else run.split(",") for run in runs])
    if as_json:
        print(json.dumps(checkpoint.defined(rows), ensure_ascii=False))
        return
    plain_console().print(*comparison.tables(rows))
    print(comparison.NOTE)


def _print_metrics(metrics: dict[str, Any]) -> None:
    """The scores of a run as a table, with all that is needed to quote them."""
    from fusion import comparison, intervals

    table = Table(
        "measure",
        "value",
        "95 % interval",
        title=f"{metrics['name']} on {metrics['split']}",
        title_justify="left",
    )
    for measure in comparison.measures_of(metrics):
        value, ends = metrics[measure.name], metrics[f"{measure.name}_ci95"]
        table.add_row(measure.title, intervals.figure(value, ".4f"), intervals.span(ends, ".4f", " to "))
    for name in (
        "utterances",
        "of_unseen_classes",
        "words",
        "characters",
        "frames",
        "hours",
        "normalise",
        "fusion_parameters",
        "decoder_parameters",
    ):
        if name in metrics:
            value = metrics[name]
            table.add_row(_LABELS.get(name, name), f"{value:,}" if isinstance(value, int) else str(value), "")
    for reason, count in metrics.get("skipped", {}).items():
        table.add_row(f"skipped, any split: {reason}", str(count), "")
    plain_console().print(table)


_LABELS = {
    "of_unseen_classes": "of classes that train lacks",
    "normalise": "text normalisation",
    "fusion_parameters": "parameters of the fuser",
    "decoder_parameters": "parameters of the decoder",
}


def main() -> None:
    """The console script."""
    leave_when_interrupted("fusion")
    startup.collect_rarely()
    app(prog_name="fusion")


if __name__ == "__main__":
    main()
