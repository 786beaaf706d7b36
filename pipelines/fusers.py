"""The table of fusers: each with the same decoder, data and schedule, and its paired difference to HFF.

Every row is the same recipe with a few keys changed, so that nothing but the fuser differs (the log-mel row
reads another cache: features without any model). A row's figures are means over seeds; its interval and its
difference are bootstrapped over utterances, with an utterance's errors averaged over the seeds first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from featcache.errors import JobError, UsageError
from featcache.store import Cache
from fusion import evaluate, recipe
from fusion.run import Run
from fusion.train import fit

BASE_RECIPE = Path(__file__).parent / "recipes" / "asr.toml"
REFERENCE = "hff"


@dataclass(frozen=True)
class Entry:
    """One row of the table: a fuser with its own parameters, on the cache `features`."""

    name: str
    title: str
    kind: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    features: str = "upstream"


ENTRIES = (
    Entry("mel", "log-mel, no model", "last", {"norm": "layer"}, features="mel"),
    Entry("last", "last tap", "last"),
    Entry("weighted_sum", "weighted sum", "weighted_sum"),
    Entry("concat", "concatenation", "concat", {"norm": "layer"}),
    Entry("hff", "HFF", "hff"),
)
#: What every fuser has, and so takes from the base recipe.
SHARED_PARAMETERS = ("width",)


@dataclass(frozen=True)
class Errors:
    """Of a row's test utterances: errors (seeds, utterances), words and characters (utterances,)."""

    ids: tuple[str, ...]
    word_errors: np.ndarray
    words: np.ndarray
    character_errors: np.ndarray
    characters: np.ndarray


@dataclass(frozen=True)
class Row:
    """One row of the table. Rates are fractions; `difference` is this row's rate minus HFF's."""

    entry: Entry
    seeds: tuple[int, ...]
    fusion_parameters: int
    decoder_parameters: int
    utterances: int
    wer: float
    wer_ci95: tuple[float, float]
    cer: float
    cer_ci95: tuple[float, float]
    wer_by_seed: tuple[float, ...]
    cer_by_seed: tuple[float, ...]
    wer_difference: tuple[float, float, float] | None
    cer_difference: tuple[float, float, float] | None
    runs: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        values = {key: value for key, value in vars(self).items() if key != "entry"}
        return {"name": self.entry.name, "title": self.entry.title, **values}


def prepare_mel(manifest: Path, cache: Path, *, console: Console) -> None:
    """Extract log-mel features of the manifest's utterances, where they are not there yet."""
    from featcache.job import Job, Request
    from featcache.upstreams import UpstreamConfig

    job = Job(manifest, cache, Request(upstream=UpstreamConfig(id="mel:80"), profile="fp16"))
    job.init()
    if job.new_rows:
        console.print(f"log-mel features of {len(job.new_rows)} utterances -> {cache}", highlight=False)
        job.extract()


def compare(
    cache: Path,
    mel_cache: Path,
    *,
    base: Path = BASE_RECIPE,
    only: Sequence[str] = (),
    seeds: Sequence[int] = (1,),
    runs: Path = Path("runs"),
    overrides: Sequence[str] = (),
    restart: bool = False,
    console: Console | None = None,
) -> list[Row]:
    """Train every row for every seed and measure it. A finished run of the same recipe is not repeated.

    Args:
        only: names of rows; all where empty. Differences are to HFF, and absent without it.
        overrides: recipe keys for every row, as in `train.steps=100`.

    Raises:
        UsageError: an unknown row, no seed, or overrides that a recipe does not take.
    """
    console = console or Console(stderr=True)
    entries = select(only)
    if not seeds:
        raise UsageError("no seed given: use --seeds 1 or --seeds 1,2,3")
    finished = {}
    for entry in entries:
        for seed in seeds:
            settings = settings_of(entry, seed, cache, mel_cache, base, overrides)
            console.print(f"{entry.title}, seed {seed}: {runs / settings.name}", highlight=False, soft_wrap=True)
            mode = "restart" if restart else "auto"
            finished[entry.name, seed] = fit(settings, runs=runs, mode=mode, console=console).path
    paths = {entry.name: [finished[entry.name, seed] for seed in seeds] for entry in entries}
    errors = {name: read_errors(of_name) for name, of_name in paths.items()}
    reference = errors.get(REFERENCE)
    return [row_of(entry, seeds, paths[entry.name], errors[entry.name], reference) for entry in entries]


def select(only: Sequence[str]) -> list[Entry]:
    """The rows of these names, in the table's order."""
    known = [entry.name for entry in ENTRIES]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f"no row {', '.join(unknown)} in the table: choose from {', '.join(known)}")
    return [entry for entry in ENTRIES if not only or entry.name in only]


def settings_of(
    entry: Entry, seed: int, cache: Path, mel_cache: Path, base: Path, overrides: Sequence[str]
) -> recipe.Recipe:
    """The recipe of one run. Features of another frame rate are stacked to the same rate in the decoder."""
    own = mel_cache if entry.features == "mel" else cache
    place = [f"cache={json.dumps(str(own))}", f"seed={seed}", f"name=fusers/{entry.name}-seed{seed}"]
    settings = recipe.read(base, [*overrides, *place])
    parameters = settings.fuser.parameters
    if settings.fuser.kind != entry.kind:
        parameters = {key: value for key, value in parameters.items() if key in SHARED_PARAMETERS}
    fuser = recipe.FuserRecipe(kind=entry.kind, taps=settings.fuser.taps, **{**parameters, **entry.parameters})
    settings = settings.model_copy(update={"fuser": fuser})
    if own != cache:
        ratio = Cache.open(str(own)).frame_rate / Cache.open(str(cache)).frame_rate
        stack = max(1, round(int(settings.decoder.parameters.get("stack", 2)) * ratio))
        decoder = recipe.DecoderRecipe(**{**settings.decoder.model_dump(), "stack": stack})
        settings = settings.model_copy(update={"decoder": decoder, "fuser": fuser.model_copy(update={"taps": "all"})})
    return settings


def read_errors(runs: Sequence[Path]) -> Errors:
    """The tables of test utterances of one row's runs, one run a seed."""
    tables = [Run.read_table(run) for run in runs]
    ids = tuple(sorted(tables[0]))
    if any(tuple(sorted(table)) != ids for table in tables):
        names = ", ".join(map(str, runs))
        raise JobError(f"{names} were tested on different utterances: train them again with --restart")

    def column(name: str) -> np.ndarray:
        return np.array([[table[key][name] for key in ids] for table in tables], dtype=np.float64)

    return Errors(ids, column("word_errors"), column("words")[0], column("character_errors"), column("characters")[0])


def row_of(entry: Entry, seeds: Sequence[int], runs: Sequence[Path], errors: Errors, reference: Errors | None) -> Row:
    """Means, intervals and the paired difference to the reference."""
    metrics = Run.read_metrics(runs[0])
    wer = errors.word_errors.sum(1) / errors.words.sum()
    cer = errors.character_errors.sum(1) / errors.characters.sum()
    word_gap = character_gap = None
    if reference is not None and entry.name != REFERENCE:
        # Only utterances that both were tested on: too few frames make a row unusable.
        at = {key: i for i, key in enumerate(reference.ids)}
        mine = [i for i, key in enumerate(errors.ids) if key in at]
        theirs = [at[errors.ids[i]] for i in mine]
        word_gap = evaluate.paired_difference(
            errors.word_errors[:, mine], reference.word_errors[:, theirs], errors.words[mine]
        )
        character_gap = evaluate.paired_difference(
            errors.character_errors[:, mine], reference.character_errors[:, theirs], errors.characters[mine]
        )
    return Row(
        entry=entry,
        seeds=tuple(seeds),
        fusion_parameters=int(metrics["fusion_parameters"]),
        decoder_parameters=int(metrics["decoder_parameters"]),
        utterances=len(errors.ids),
        wer=float(wer.mean()),
        wer_ci95=evaluate.bootstrap(errors.word_errors.mean(0), errors.words),
        cer=float(cer.mean()),
        cer_ci95=evaluate.bootstrap(errors.character_errors.mean(0), errors.characters),
        wer_by_seed=tuple(map(float, wer)),
        cer_by_seed=tuple(map(float, cer)),
        wer_difference=word_gap,
        cer_difference=character_gap,
        runs=tuple(map(str, runs)),
    )


def print_table(rows: Sequence[Row]) -> None:
    """One table a measure on standard output, and what its figures mean below."""
    console = Console()
    for measure in ("wer", "cer"):
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("features, fuser")
        for column in ("fuser", measure.upper(), "95 %", "- HFF", "95 %"):
            table.add_column(column, justify="right")
        for row in rows:
            low, high = getattr(row, f"{measure}_ci95")
            gap = getattr(row, f"{measure}_difference")
            table.add_row(
                row.entry.title,
                f"{row.fusion_parameters / 1e3:.0f} k",
                f"{getattr(row, measure):.3f}",
                f"{low:.3f}, {high:.3f}",
                *(("", "") if gap is None else (f"{gap[0]:+.3f}", f"{gap[1]:+.3f}, {gap[2]:+.3f}")),
            )
        console.print(table)
    seeds = rows[0].seeds
    console.print(
        f"Parameters of the decoders: {', '.join(f'{row.entry.title} {row.decoder_parameters:,}' for row in rows)}. "
        f"Test utterances: {rows[0].utterances}. Seeds: {', '.join(map(str, seeds))} (rates are means over them). "
        "Intervals: bootstrap over utterances. '- HFF': the row's rate minus HFF's on the same utterances, with "
        "the interval of the paired difference; above zero, HFF is better.",
        highlight=False,
    )
