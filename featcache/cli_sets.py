"""Commands on whole caches: `diff`, `subset`, `merge`, `forget`."""

from __future__ import annotations

from typing import Annotated

import typer

from featcache.cli_options import CachePath, DryRun, Json, reaches_s3
from featcache.errors import Interrupted

sets_app = typer.Typer()

First = Annotated[
    str, typer.Argument(metavar="A", help="Folder of a cache, or s3://bucket/prefix.", show_default=False)
]
Second = Annotated[
    str, typer.Argument(metavar="B", help="Folder of another, or s3://bucket/prefix.", show_default=False)
]
Target = Annotated[
    str, typer.Argument(metavar="OUT", help="Folder of the new cache, or s3://bucket/prefix.", show_default=False)
]
Where = Annotated[
    list[str], typer.Option(help="label=value, or id=ID; several of one label mean any of them.", show_default=False)
]


@sets_app.command("diff")
@reaches_s3
def diff_command(
    first: First,
    second: Second,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Compare the values of N utterances, not of all.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """What differs: recipe, taps, utterances, labels, values. Exit status 1 where anything does."""
    from featcache.cli_views import print_differences
    from featcache.diff import diff

    found = diff(first, second, limit)
    print_differences(found, json)
    if not found.same:
        raise typer.Exit(1)


@sets_app.command("subset")
@reaches_s3
def subset_command(cache: CachePath, target: Target, where: Where, dry_run: DryRun = False) -> None:
    """Write the utterances with these labels as a cache of their own, without the model."""
    from featcache.inspect import parse_where
    from featcache.select import subset

    made = subset(cache, target, parse_where(where), dry_run)
    _say(made.utterances, made.seconds, target, dry_run)


@sets_app.command("merge")
@reaches_s3
def merge_command(first: First, second: Second, target: Target, dry_run: DryRun = False) -> None:
    """Write the utterances of two caches of one encoding as one cache."""
    from featcache.cli_views import note
    from featcache.select import merge

    made = merge(first, second, target, dry_run)
    if made.left_out:
        note(f"{made.left_out} utterances are in both and were taken once")
    _say(made.utterances, made.seconds, target, dry_run)


@sets_app.command("forget")
@reaches_s3
def forget_command(cache: CachePath, where: Where, dry_run: DryRun = False) -> None:
    """Take recordings out of every shard, index, label and ledger record."""
    from featcache.cli_views import note
    from featcache.forget import forget
    from featcache.inspect import parse_where

    try:
        gone = forget(cache, parse_where(where), dry_run)
    except KeyboardInterrupt:
        raise Interrupted("interrupted: run the same command again to finish") from None
    for utterance_id in gone.ids:
        print(f"{'would forget' if dry_run else 'forgot'} {utterance_id}")
    if not gone.ids:
        note("finished the removal that was interrupted; nothing else is meant")
    if gone.ids and not dry_run:
        note(f"{len(gone.segments)} segments written anew; take these rows out of the manifest and of copies as well")


def _say(utterances: int, seconds: float, target: str, dry_run: bool) -> None:
    from featcache.progress import speech_text

    print(f"{utterances:,} utterances, {speech_text(seconds)}{' would go into' if dry_run else ' in'} {target}")
