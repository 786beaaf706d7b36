"""Commands that prove a cache whole and mend it: `verify`, `repair`, `gc`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featcache.cli_options import (
    CachePath,
    Device,
    DryRun,
    Json,
    Manifest,
    Scheduler,
    UpstreamId,
    Weights,
    Workers,
    named_model,
    reaches_s3,
)
from featcache.device import choose_device
from featcache.errors import UsageError

integrity_app = typer.Typer()


@integrity_app.command("verify")
@reaches_s3
def verify_command(
    cache: CachePath,
    workers: Workers = None,
    scheduler: Scheduler = None,
    recompute: Annotated[
        int | None, typer.Option(min=1, help="Also run the model over N random utterances.", show_default=False)
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(help="For --recompute: where the recordings are.", show_default=False)
    ] = None,
    upstream: UpstreamId = None,
    weights: Weights = None,
    device: Device = None,
    json: Json = False,
) -> None:
    """Check every file against the ledger and the seal. Exit status 1 where anything is wrong.

    For --recompute, --upstream and --weights say where the model is, if it was moved.
    """
    from featcache.cli_views import print_report
    from featcache.cluster import connect
    from featcache.progress import ByteProgress
    from featcache.verify import bytes_to_verify, verify

    if (recompute is None) != (manifest is None):
        raise UsageError("--recompute N needs --manifest MANIFEST for the recordings, and the other way round")
    if recompute is None and (upstream or weights):
        raise UsageError(
            "--upstream and --weights say where the model of --recompute N is: give that too, or leave them"
        )
    with connect(workers, scheduler) as client, ByteProgress("verifying", bytes_to_verify(cache)) as progress:
        report = verify(cache, progress.advance, client)
    if report.whole and recompute is not None and manifest is not None:
        from featcache.recompute import recompute as compare

        report.problems += compare(
            manifest, cache, recompute, choose_device(device), upstream=named_model(upstream, weights=weights)
        )
    print_report(report, cache, json)
    if not report.whole:
        raise typer.Exit(1)


@integrity_app.command("repair")
@reaches_s3
def repair_command(
    manifest: Manifest,
    cache: CachePath,
    upstream: UpstreamId = None,
    weights: Weights = None,
    device: Device = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="CACHE",
            help="Of a recoded cache: the one that it was recoded from, to make its shards of.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Compute again exactly what verify finds broken.

    --upstream and --weights say where the model is, if it was moved.
    """
    from featcache.repair import repair

    repaired = repair(manifest, cache, choose_device(device), named_model(upstream, weights=weights), source)
    for key in repaired:
        print(f"repaired {key}")
    if not repaired:
        print("nothing to repair")


@integrity_app.command("gc")
@reaches_s3
def gc_command(
    cache: CachePath,
    dry_run: DryRun = False,
) -> None:
    """Remove unfinished segments and files that no seal or ledger names."""
    from featcache.garbage import garbage

    for key in garbage(cache, delete=not dry_run):
        print(f"{'would remove' if dry_run else 'removed'} {key}")
