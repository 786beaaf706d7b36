"""Commands `push` and `pull`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from featcache.cli_options import DryRun, Json, reaches_s3
from featcache.transfer import JOBS

if TYPE_CHECKING:
    from featcache.remote import Transfer

remote_app = typer.Typer()

Jobs = Annotated[int, typer.Option(min=1, help="Files in flight.")]
Url = Annotated[str, typer.Argument(metavar="URL", help="s3://bucket/prefix", show_default=False)]
Place = Annotated[str, typer.Argument(metavar="CACHE", help="Folder of the cache.", show_default=False)]


@remote_app.command("push")
@reaches_s3
def push_command(
    cache: Place,
    target: Url,
    jobs: Jobs = JOBS,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Copy a cache to S3. Goes on where an earlier run stopped; what proves the cache comes last."""
    from featcache.push import push

    _print(push(cache, target, jobs=jobs, dry_run=dry_run), dry_run, json)


@remote_app.command("pull")
@reaches_s3
def pull_command(
    source: Url,
    cache: Place,
    where: Annotated[
        list[str] | None, typer.Option(help="label=value, or id=ID: only the shards that hold matching utterances.")
    ] = None,
    jobs: Jobs = JOBS,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Copy a cache from S3, or a part of it. Goes on where an earlier run stopped."""
    from featcache.pull import pull

    _print(pull(source, cache, where or [], jobs=jobs, dry_run=dry_run), dry_run, json)


def _print(result: Transfer, dry_run: bool, as_json: bool) -> None:
    from featcache.cli_views import note, print_json
    from featcache.progress import size_text

    for name in result.unsealed:
        note(f"{name} is not finished and is left out")
    if result.unguarded:
        note(f"no other command was kept from {result.target} meanwhile ({result.unguarded})")
    if as_json:
        return print_json({**asdict(result), "dry_run": dry_run})
    did = "would copy" if dry_run else "copied"
    part = f"; {result.not_pulled:,} shard files left out" if result.not_pulled else ""
    print(
        f"{did} {result.files:,} files, {size_text(result.bytes)}; "
        f"{result.present_files:,} files, {size_text(result.present_bytes)} were there{part}"
    )
    return print(result.target)
