"""Commands `featcache manifest ...`: importers, views and the check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from featcache.cli_options import DryRun
from featcache.errors import UsageError

manifest_app = typer.Typer(help="Write and check manifests.", no_args_is_help=True)

Out = Annotated[Path, typer.Option("--out", "-o", help="Manifest to write.", show_default=False)]
Audio = Annotated[
    Path | None,
    typer.Option(help="Folder for this data set's recordings, its own; `audio` beside the manifest by default."),
]
Split = Annotated[str | None, typer.Option(help="The label `split` of all rows.", show_default=False)]
Manifest = Annotated[Path, typer.Argument(help="JSON Lines manifest.", show_default=False)]


@manifest_app.command("librispeech")
def manifest_librispeech(
    root: Annotated[Path, typer.Argument(help="Folder of LibriSpeech subsets.")], out: Out
) -> None:
    """From a LibriSpeech tree, with speaker, chapter and subset as labels."""
    from featcache.importers import librispeech

    _write_manifest(librispeech(root), out)


@manifest_app.command("kaldi")
def manifest_kaldi(
    folder: Annotated[Path, typer.Argument(help="Kaldi data folder: wav.scp, text, ...")],
    out: Out,
    split: Split = None,
) -> None:
    """From a Kaldi data folder."""
    from featcache.importers import kaldi

    _write_manifest(kaldi(folder, split=split), out)


@manifest_app.command("folder")
def manifest_folder(
    root: Annotated[Path, typer.Argument(help="Folder of recordings.", show_default=False)], out: Out
) -> None:
    """From all recordings below a folder, each with the text of its .txt and its folder as a label."""
    from featcache.importers import folder

    _write_manifest(folder(root), out)


@manifest_app.command("commonvoice")
def manifest_commonvoice(
    tsv: Annotated[Path, typer.Argument(help="A .tsv of Common Voice.")],
    out: Out,
    clips: Annotated[Path | None, typer.Option(help="Folder of the clips; beside the .tsv by default.")] = None,
) -> None:
    """From a Common Voice table."""
    from featcache.importers import commonvoice

    _write_manifest(commonvoice(tsv, clips), out)


@manifest_app.command("lhotse")
def manifest_lhotse(
    cuts: Annotated[Path, typer.Argument(help="A lhotse CutSet, .jsonl or .jsonl.gz.")], out: Out
) -> None:
    """From lhotse cuts (needs the package lhotse)."""
    from featcache.importers import lhotse

    _write_manifest(lhotse(cuts), out)


@manifest_app.command("huggingface")
def manifest_huggingface(
    source: Annotated[str, typer.Argument(help="A data set's name on the hub, its folder, or one of save_to_disk.")],
    out: Out,
    audio: Audio = None,
    config: Annotated[str | None, typer.Option(help="Of a data set that has several.", show_default=False)] = None,
    split: Annotated[str | None, typer.Option(help="Only this split.", show_default=False)] = None,
    text: Annotated[str, typer.Option(help="The column of the text; text, sentence, ... by default.")] = "",
) -> None:
    """From a data set of Hugging Face (needs the package datasets)."""
    from featcache.importers import huggingface

    _write_manifest(huggingface(source, audio or out.parent / "audio", config=config, split=split, text=text), out)


@manifest_app.command("webdataset")
def manifest_webdataset(
    shards: Annotated[str, typer.Argument(help="A tar file, a folder of them, or name-{000..009}.tar.")],
    out: Out,
    audio: Audio = None,
    split: Split = None,
) -> None:
    """From the tar files of a WebDataset (needs the package webdataset)."""
    from featcache.importers import webdataset

    _write_manifest(webdataset(shards, audio or out.parent / "audio", split=split), out)


@manifest_app.command("views")
def manifest_views(
    manifest: Manifest,
    out: Out,
    view: Annotated[
        list[str],
        typer.Option(help="speed=0.9, noise=15 (dB), reverb=0.4 (s), or several joined by ,", show_default=False),
    ],
    where: Annotated[
        list[str] | None, typer.Option(help="label=value; several of one label mean any of them.", show_default=False)
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Add augmented copies of recordings as rows: views, to be computed with the rest and drawn in training."""
    from featcache import manifest as manifests
    from featcache.inspect import parse_where
    from featcache.progress import speech_text
    from featcache.views import VIEW, rows_with_views

    rows = rows_with_views(manifests.read(manifest), view, parse_where(where or []))
    kinds: dict[Any, list[float]] = {}
    for row in rows:
        kinds.setdefault(row.labels.get(VIEW) or "originals", []).append(row.duration)
    for kind, seconds in kinds.items():
        line = f"{kind}: {len(seconds)} utterances, {speech_text(sum(seconds))}"
        print(line, file=sys.stdout if dry_run else sys.stderr)
    if not dry_run:
        _write_manifest(manifests.absolute(rows, manifest), out)


@manifest_app.command("check")
def manifest_check(
    manifest: Manifest,
    measure: Annotated[bool, typer.Option("--measure", help="Compare every duration with its recording.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --measure: write the rows with measured durations.")
    ] = None,
) -> None:
    """Say what is in a manifest, or which line is wrong and why; optionally measure its durations."""
    from featcache import manifest as manifests
    from featcache.progress import speech_text

    if out is not None and not measure:
        raise UsageError("--out writes measured durations: say --measure too")
    rows = manifests.read(manifest)
    labels = sorted({label for row in rows for label in row.labels})
    speech = speech_text(sum(row.duration for row in rows))
    print(f"{len(rows)} utterances, {speech}, labels: {', '.join(labels) or 'none'}")
    if measure:
        from featcache.reading import measured

        if out is not None:
            # What is written is absolute, so that is measured: a path out of the manifest's folder, which is refused
            # as it stands, would be written with a duration of 0, and its recording never be read.
            rows = manifests.absolute(rows, manifest)
        found = [measured(row, manifest) for row in rows]
        changed = [(old, new) for old, new in zip(rows, found, strict=True) if old.duration != new.duration]
        for old, new in changed[:20]:
            found_as = f"has {new.duration} s" if new.duration else "cannot be read"
            print(f"  {old.id}: the manifest says {old.duration} s, the recording {found_as}", file=sys.stderr)
        print(f"{len(changed)} durations differ")
        if changed and out is None:
            command = f"featcache manifest check {manifest} --measure -o FIXED.jsonl"
            print(f"`{command}` writes the true ones", file=sys.stderr)
        if out is not None:
            manifests.write(out, manifests.relative(found, out))
            print(out)


def _write_manifest(rows: Any, out: Path) -> None:
    from featcache import manifest as manifests
    from featcache.progress import speech_text

    found = list(rows)
    manifests.write(out, manifests.relative(found, out))
    print(f"{len(found)} utterances, {speech_text(sum(row.duration for row in found))}", file=sys.stderr)
    print(out)
