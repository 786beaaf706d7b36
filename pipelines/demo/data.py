"""From packages to manifests: what `pipelines demo data` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from featcache import manifest
from featcache.errors import UsageError
from pipelines.demo import fillets, prompts
from pipelines.demo.fetch import FILLETS, PROMPTS, fetch


def fetch_speech(languages: Sequence[str], *, with_fillets: bool = False, console: Console) -> Path:
    """Fetch what is absent; returns the `usr/share` folder that holds the speech."""
    if not languages:
        raise UsageError(f"no language given: choose from {','.join(PROMPTS)}")
    unknown = [lang for lang in languages if lang not in PROMPTS]
    if unknown:
        raise UsageError(f"no prompts in {', '.join(unknown)}: choose from {','.join(PROMPTS)}")
    packages = [package for lang in languages for package in PROMPTS[lang]]
    return fetch(packages + (FILLETS if with_fillets else []), console=console)


def write_prompts(share: Path, out: Path, languages: Sequence[str], *, console: Console) -> list[manifest.Row]:
    """Write `out/manifest.jsonl` for the prompts, with a link `out/audio` to the recordings."""
    rows = prompts.rows(share, languages, console=console)
    prompts.link_audio(share / "asterisk" / "sounds", out / "audio")
    manifest.write(out / "manifest.jsonl", rows)
    return rows


def write_fillets(share: Path, out: Path, *, console: Console) -> list[manifest.Row]:
    """Write `out/manifest.jsonl` for the Dutch dialogues, with a link `out/audio` to the recordings."""
    rows = fillets.rows(share, console=console)
    prompts.link_audio(share / "games" / "fillets-ng" / "sound", out / "audio")
    manifest.write(out / "manifest.jsonl", rows)
    return rows


def summary(path: Path, rows: Sequence[manifest.Row]) -> dict[str, Any]:
    """Utterances and minutes of a manifest, by language and split."""
    cells: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        by_split = cells.setdefault(str(row.labels["lang"]), {})
        cell = by_split.setdefault(str(row.labels["split"]), {"utterances": 0, "minutes": 0.0})
        cell["utterances"] += 1
        cell["minutes"] += row.duration / 60
    return {
        "manifest": os.fspath(path),
        "utterances": len(rows),
        "hours": sum(row.duration for row in rows) / 3600,
        "languages": cells,
    }


def print_summary(summaries: Sequence[dict[str, Any]]) -> None:
    """One table a manifest, its path last."""
    console = Console()
    for entry in summaries:
        table = Table(title=f"{entry['utterances']} utterances, {entry['hours']:.2f} h")
        table.add_column("language")
        splits = ("train", "dev", "test")
        for split in splits:
            table.add_column(split, justify="right")
        for lang, by_split in entry["languages"].items():
            cells = [by_split.get(split, {"utterances": 0, "minutes": 0.0}) for split in splits]
            table.add_row(lang, *(f"{cell['utterances']:.0f} ({cell['minutes']:.1f} min)" for cell in cells))
        console.print(table)
        print(entry["manifest"])
