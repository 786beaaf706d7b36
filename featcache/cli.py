"""Command line `featcache`: parse, call one function, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from featcache import startup
from featcache.cli_integrity import integrity_app
from featcache.cli_manifest import manifest_app
from featcache.cli_options import (
    CachePath,
    Device,
    Json,
    Manifest,
    Scheduler,
    UpstreamId,
    Weights,
    Workers,
    named_model,
    reaches_s3,
)
from featcache.cli_remote import remote_app
from featcache.cli_sets import sets_app
from featcache.device import choose_device
from featcache.errors import FeatcacheError, Interrupted, JobError, UsageError
from featcache.interrupts import Commands, leave_when_interrupted
from featcache.memory import REMEDY, leave_when_a_thread_gets_none, ran_out

# Everything that loads a model or opens audio is imported in the command that needs it, numpy and torch too.
startup.sleep_while_waiting()

app = typer.Typer(
    name="featcache",
    cls=Commands,
    help="Run a frozen speech foundation model once and keep every layer's activations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(manifest_app, name="manifest")
app.add_typer(remote_app)
app.add_typer(integrity_app)
app.add_typer(sets_app)
startup.offer_version(app)


Limit = Annotated[int | None, typer.Option(min=1, help="Only the first N rows of the manifest.", show_default=False)]
Revision = Annotated[str | None, typer.Option(help="Commit or tag of a hub model.", show_default=False)]
Taps = Annotated[str | None, typer.Option(help="Taps to store: all, or names as in 0,4,8,final.", show_default=False)]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"] | None,
    typer.Option(help="Autocast dtype of the model.", show_default=False),
]
WindowPolicy = Annotated[
    Literal["crop", "pad"] | None,
    typer.Option("--window", help="Whisper: crop the 30 s window, or pad to it.", show_default=False),
]
Profile = Annotated[
    str | None,
    typer.Option(
        help="Codec profile of a new cache: residual:BITS (per value), int8 or fp16; int8 if not given.",
        show_default=False,
    ),
]
CalibrationSeconds = Annotated[
    float | None, typer.Option(min=1, help="Speech to calibrate a new cache on; 600 by default.", show_default=False)
]
BatchSeconds = Annotated[
    float | None,
    typer.Option(
        min=1,
        help=(
            "Audio of one forward pass, part of a new cache's plan: 60 where it is made on a CPU, else 10 for each GiB "
            "of the device's memory, from 60 to 960."
        ),
        show_default=False,
    ),
]


@app.command("init")
def init_command(
    manifest: Manifest,
    cache: CachePath,
    upstream: UpstreamId = None,
    revision: Revision = None,
    weights: Weights = None,
    taps: Taps = None,
    dtype: Dtype = None,
    window: WindowPolicy = None,
    profile: Profile = None,
    device: Device = None,
    batch_seconds: BatchSeconds = None,
    calibration_seconds: CalibrationSeconds = None,
) -> None:
    """Make an empty cache: run the model over a sample of the manifest and fix the codec's scales."""
    from featcache.cli_views import print_outlook
    from featcache.job import Job

    request = _request(upstream, revision, weights, taps, dtype, window, profile, batch_seconds, calibration_seconds)
    job = Job(manifest, cache, request, choose_device(device))
    _say_if_calibrated(job, calibration_seconds)
    job.init()
    print_outlook(job, as_json=False)


@app.command("plan")
def plan_command(
    manifest: Manifest, cache: CachePath, limit: Limit = None, device: Device = None, json: Json = False
) -> None:
    """Say what extract would do: utterances, bytes, shards, time. Changes nothing."""
    from featcache.cli_views import print_outlook
    from featcache.job import Job, Request

    print_outlook(Job(manifest, cache, Request(), choose_device(device), limit), json)


@app.command("extract")
def extract_command(
    manifest: Manifest,
    cache: CachePath,
    upstream: UpstreamId = None,
    revision: Revision = None,
    weights: Weights = None,
    taps: Taps = None,
    dtype: Dtype = None,
    window: WindowPolicy = None,
    profile: Profile = None,
    device: Device = None,
    batch_seconds: BatchSeconds = None,
    calibration_seconds: CalibrationSeconds = None,
    limit: Limit = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first utterance that cannot be used.")] = False,
    workers: Workers = None,
    scheduler: Scheduler = None,
    part: Annotated[
        str | None, typer.Option(metavar="I/N", help="Only the I-th of N shares of the shards.", show_default=False)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    profile_trace: Annotated[
        Path | None,
        typer.Option(help="Trace the work into this .json, and print where the time went.", show_default=False),
    ] = None,
) -> None:
    """Compute what the cache lacks of the manifest. Goes on where an earlier run stopped."""
    from featcache.cli_views import note, print_done, print_info, print_outlook
    from featcache.cluster import connect
    from featcache.cluster_job import ClusterJob
    from featcache.job import Job
    from featcache.plan import Part

    request = _request(upstream, revision, weights, taps, dtype, window, profile, batch_seconds, calibration_seconds)
    share = Part.parse(part) if part is not None else None
    if profile_trace is not None and (workers is not None or scheduler is not None):
        raise UsageError(
            "--profile-trace shows one process: leave out --workers and --scheduler, or look at the cluster's dashboard"
        )
    if dry_run:
        job = Job(manifest, cache, request, choose_device(device), limit)
        if not job.exists:
            raise UsageError(
                f"there is no cache at {cache} yet, and its plan needs the calibration: "
                f"run `featcache init {manifest} {cache} --upstream ...` first"
            )
        job.check_request()
        print_outlook(job, as_json=False)
        return
    try:
        with connect(workers, scheduler) as client:
            if client is None:
                job = Job(manifest, cache, request, choose_device(device), limit)
                job.trace = profile_trace
            else:
                note(f"dashboard of the cluster: {client.dashboard_link}")
                job = ClusterJob(manifest, cache, request, client, device, limit)
            _say_if_calibrated(job, calibration_seconds)
            done = job.extract(strict=strict, part=share)
    except KeyboardInterrupt:
        raise Interrupted("interrupted: finished shards are safe; run the same command again to go on") from None
    print_done(done, job, cache)
    if done is not None and done.left_to_others:
        note(f"part {part} is done; {done.left_to_others} shards of other parts are not: the last part seals")
    print_info(job.cache, as_json=False)
    print(cache)


@app.command("info")
@reaches_s3
def info_command(cache: CachePath, json: Json = False) -> None:
    """What a cache is: model, taps, profile, ids, size."""
    from featcache.cli_views import print_info
    from featcache.store import Cache

    print_info(Cache.open(cache), json)


@app.command("ls")
@reaches_s3
def ls_command(
    cache: CachePath,
    where: Annotated[list[str] | None, typer.Option(help="label=value; several of one label mean any of them.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Print at most N.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """List utterances with their labels; --json prints JSON Lines."""
    from featcache.cli_views import print_utterances
    from featcache.inspect import parse_where, utterances
    from featcache.store import Cache

    print_utterances(utterances(Cache.open(cache), parse_where(where or [])), limit, json)


@app.command("show")
@reaches_s3
def show_command(
    cache: CachePath,
    utterance: Annotated[str, typer.Argument(metavar="ID", help="Id of an utterance.", show_default=False)],
    png: Annotated[Path | None, typer.Option(help="Also draw a heat map of all taps.", show_default=False)] = None,
    json: Json = False,
) -> None:
    """One utterance: shape, labels, statistics and course of every tap."""
    from featcache.cli_views import note, print_utterance
    from featcache.inspect import heat_map, show
    from featcache.store import Cache

    opened = Cache.open(cache)
    print_utterance(show(opened, utterance), json)
    if png is not None:
        heat_map(opened, utterance, png)
        note(f"heat map in {png}")


@app.command("stats")
@reaches_s3
def stats_command(
    cache: CachePath,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use N utterances spread over the cache.", show_default=False)
    ] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    json: Json = False,
) -> None:
    """Per tap: mean, deviation, kurtosis, outlier channels; and the similarity of taps."""
    from featcache.cli_views import print_statistics
    from featcache.cluster import absolute, connect
    from featcache.progress import AudioProgress
    from featcache.stats import compute
    from featcache.store import Cache

    opened = Cache.open(absolute(cache))
    frames = int(opened.lengths.sum())
    with connect(workers, scheduler) as client, AudioProgress("reading", frames / opened.frame_rate) as progress:
        found = compute(opened, limit, lambda n: progress.advance(n / opened.frame_rate), client)
    print_statistics(found, opened.taps, json)


@app.command("status")
@reaches_s3
def status_command(cache: CachePath, json: Json = False) -> None:
    """How far extraction is, and which utterances were left out and why."""
    from featcache.cli_views import print_status
    from featcache.inspect import status

    print_status(status(cache), json)


@app.command("recode")
def recode_command(
    source: Annotated[str, typer.Argument(metavar="CACHE", help="Folder of a complete cache.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="Folder of the smaller one.", show_default=False)],
    profile: Annotated[
        str,
        typer.Option(
            help="As in residual:1.0, int8, blosc:step=0.5 or bitround:3.",
            show_default=False,
        ),
    ],
) -> None:
    """Write a cache in a smaller profile, without the model. Goes on where an earlier run stopped."""
    from featcache.cli_views import print_info
    from featcache.progress import AudioProgress
    from featcache.recode import recode
    from featcache.store import Cache

    with AudioProgress("recoding", float(Cache.open(source).seconds.sum())) as progress:
        recode(source, target, profile, progress.advance)
    print_info(Cache.open(target), as_json=False)
    print(target)


def _say_if_calibrated(job: Any, calibration_seconds: float | None) -> None:
    """No error: a command that was stopped is run again as it is."""
    from featcache.cli_views import note

    if calibration_seconds is not None and job.exists:
        note(f"{job.storage} is calibrated already: --calibration-seconds changes nothing")


def _request(
    upstream: str | None,
    revision: str | None,
    weights: str | None,
    taps: str | None,
    dtype: str | None,
    window: str | None,
    profile: str | None,
    batch_seconds: float | None,
    calibration_seconds: float | None,
) -> Any:
    """The options of `init` and `extract` as a request; what is not given stays unset."""
    from featcache.calibrate import SECONDS
    from featcache.codec import parse_profile
    from featcache.job import Request
    from featcache.spec import Layout

    chosen: Any = taps
    if taps is not None and taps != "all":
        chosen = tuple(tap.strip() for tap in taps.split(",") if tap.strip())
    parameters: dict[str, Any] | None = None
    if profile is not None:
        profile, parameters = parse_profile(profile)
    return Request(
        upstream=named_model(upstream, revision=revision, weights=weights, dtype=dtype, window=window, taps=chosen),
        profile=profile,
        parameters=parameters,
        layout=Layout() if batch_seconds is None else Layout(batch_seconds=batch_seconds),
        calibration_seconds=SECONDS if calibration_seconds is None else calibration_seconds,
    )


def main() -> None:
    """Run the command line; a user's mistake is one line and an exit status, never a traceback."""
    leave_when_a_thread_gets_none()
    leave_when_interrupted("featcache")
    startup.collect_rarely()
    try:
        app(prog_name="featcache")
    except FeatcacheError as error:
        print(f"featcache: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except Exception as error:
        if not ran_out(error):
            raise
        print(f"featcache: out of memory: {REMEDY}", file=sys.stderr)
        sys.exit(JobError.exit_code)


if __name__ == "__main__":
    main()
