"""From packages to manifests: what `pipelines demo data` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from featcache import manifest
from featcache.console import table_console
from featcache.errors import UsageError
from pipelines.demo import fillets, prompts
from pipelines.demo.fetch import FILLETS, PROMPTS, fetch


def fetch_prompts(languages: Sequence[str], *, console: Console) -> Path:
    """Fetch what is absent of the prompts; returns the `usr/share` folder that holds them."""
    if not languages:
        raise UsageError(f"no language given: choose from {','.join(PROMPTS)}")
    unknown = [lang for lang in languages if lang not in PROMPTS]
    if unknown:
        raise UsageError(f"no prompts in {', '.join(unknown)}: choose from {','.join(PROMPTS)}")
    return fetch([package for lang in languages for package in PROMPTS[lang]], console=console)


def fetch_dialogues(*, console: Console) -> Path:
    """Fetch the Dutch dialogues where they are absent; returns the `usr/share` folder that holds them."""
    return fetch(FILLETS, console=console)


def write_prompts(share: Path, out: Path, languages: Sequence[str], *, console: Console) -> list[manifest.Row]:
    """Write `out/manifest.jsonl` for the prompts, with a link `out/audio` to the recordings."""
    rows = prompts.rows(share, languages, console=console)
    prompts.link_audio(share / "asterisk" / "sounds", out / "audio")
    manifest.write(out / "manifest.jsonl", rows)
    return rows


def write_dialogues(share: Path, out: Path, *, console: Console) -> list[manifest.Row]:
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


def print_summary(found: dict[str, Any]) -> None:
    """A summary as a table, and its path after it."""
    table = Table(title=f"{found['utterances']} utterances, {found['hours']:.2f} h")
    table.add_column("language")
    splits = ("train", "dev", "test")
    for split in splits:
        table.add_column(split, justify="right")
    for lang, by_split in found["languages"].items():
        cells = [by_split.get(split, {"utterances": 0, "minutes": 0.0}) for split in splits]
        table.add_row(lang, *(f"{cell['utterances']:.0f} ({cell['minutes']:.1f} min)" for cell in cells))
    table_console().print(table)
    print(found["manifest"])
