"""`fusion align`: when each character and word was said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fusion.cli_options import AsJson, DryRun, RunFolder
from fusion.console import plain_console


def align(
    run: RunFolder,
    out: Annotated[Path, typer.Option("--out", "-o", help="JSON Lines to write.", show_default=False)],
    pause: Annotated[float, typer.Option(min=0, help="Seconds without a word that end a stretch of speech.")] = 0.3,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    r"""Align the texts of a transcription run's rows with its head, from the cache alone.

    The file is keyed by id and has the columns tokens, words and speech, each a list of \[name, start, end] in
    seconds: labels for task.kind = "tag", with task.labels_file naming the file.
    """
    from fusion import align as alignment
    from fusion.distributed import pick_device
    from fusion.labels import count_reasons
    from fusion.run import Run

    aligned, skipped = alignment.write(
        Run.open(run, pick_device(device, key="--device")), out, pause=pause, dry_run=dry_run
    )
    reasons = count_reasons(skipped)
    if as_json:
        summary = {"aligned": aligned, "skipped": reasons, "path": str(out), "dry_run": dry_run}
        print(json.dumps(summary, ensure_ascii=False))
        return
    messages = plain_console(stderr=True)
    for reason, count in reasons.items():
        messages.print(f"skipped {count}: {reason}", highlight=False, soft_wrap=True)
    if dry_run:
        replaced = ", replacing what is there" if out.exists() else ""
        print(f"would align {aligned} utterances into {out}{replaced}")
        return
    messages.print(f"aligned {aligned} utterances", highlight=False)
    print(out)
