"""Options and arguments that several commands take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from featcache.errors import UsageError
from featcache.s3 import S3Settings, using

Manifest = Annotated[Path, typer.Argument(help="JSON Lines manifest.", show_default=False)]
CachePath = Annotated[
    str, typer.Argument(metavar="CACHE", help="Folder of the cache, or s3://bucket/prefix.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; a GPU where there is one.", show_default=False)]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes of this machine to share the work.", show_default=False)
]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a dask cluster to do the work, as tcp://HOST:8786.", show_default=False)
]
UpstreamId = Annotated[
    str | None,
    typer.Option(
        "--upstream",
        "-u",
        help="package:NAME, hf:ORG/NAME, hf:FOLDER, torchaudio:BUNDLE or mel:80.",
        show_default=False,
    ),
]
Weights = Annotated[str | None, typer.Option(help="Local checkpoint of a torchaudio bundle.", show_default=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]

_S3_OPTIONS = {
    "endpoint_url": typer.Option(
        "--endpoint-url", help="S3 server, if not AWS's own; else AWS_ENDPOINT_URL.", show_default=False
    ),
    "profile": typer.Option("--profile", help="Profile of AWS's files; else AWS_PROFILE.", show_default=False),
    "region": typer.Option("--region", help="Region of the bucket; else AWS_REGION.", show_default=False),
}


def named_model(upstream: str | None, **given: Any) -> Any:
    """The model that options name, as its configuration; None where they name none. What is None stays unset.

    Raises:
        UsageError: something is said of a model, and not which.
    """
    from featcache.upstreams import UpstreamConfig

    settings = {name: value for name, value in given.items() if value is not None}
    if upstream is not None:
        return UpstreamConfig(id=upstream, **settings)
    if settings:
        raise UsageError(f"--{next(iter(settings))} describes a model: name it with --upstream")
    return None


def reaches_s3(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say how to reach S3, which are in force while it runs.

    `init`, `extract`, `plan` and `recode` do without: the codec is what `--profile` says there. They go by the
    environment.
    """

    @functools.wraps(command)
    def run(
        *, endpoint_url: str | None = None, profile: str | None = None, region: str | None = None, **options: Any
    ) -> None:
        with using(S3Settings(endpoint_url, profile, region)):
            command(**options)

    # Typer reads the signature: types are resolved here, where the command's own module is at hand.
    hints = get_type_hints(command, include_extras=True)
    parameters = [p.replace(annotation=hints[name]) for name, p in inspect.signature(command).parameters.items()]
    for name, option in _S3_OPTIONS.items():
        kind = Annotated[str | None, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind))
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
