"""Commands that train many heads from one cache: rivals, fusers, layers, few-shot, views."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli_options import (
    DEMO_CACHE,
    DEMO_MANIFEST,
    DEMO_MEL,
    Json,
    Manifest,
    MelCache,
    Only,
    Overrides,
    Restart,
    Runs,
    Seeds,
    Steps,
    UpstreamCache,
    messages,
    seed_list,
    split_list,
)

Recipes = Annotated[str, typer.Option(help="Recipes, comma separated; those of all tasks if empty.")]


def fusers(
    cache: UpstreamCache = DEMO_CACHE,
    mel_cache: MelCache = DEMO_MEL,
    manifest: Manifest = DEMO_MANIFEST,
    recipe: Annotated[
        Path | None, typer.Option(help="The recipe that every row is made from; asr.toml if not given.")
    ] = None,
    only: Only = "",
    seeds: Seeds = "1",
    steps: Steps = 0,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    restart: Restart = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the rates too: a .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """The rivals at the recipe's own settings, on one task: no search, one table a measure."""
    from pipelines import figures, rivals
    from pipelines.rivals_table import print_tables

    if plot:
        figures.check_plot(plot)
    chosen = rivals.select(split_list(only))
    budget = rivals.Budget({}, tuple(seed_list(seeds)), tuple(overrides or ()), steps)
    if any(rival.features == "mel" for rival in chosen):
        rivals.prepare_mel(manifest, mel_cache, console=messages)
    base = recipe or rivals.RECIPES[0]
    field = rivals.Field(base, cache, mel_cache, "fusers", budget, runs, restart, messages)
    rows = rivals.compare(field, chosen)
    if plot:
        figures.save(figures.scores(rows), plot)
    if as_json:
        print(json.dumps([row.as_json() for row in rows], indent=2, ensure_ascii=False))
    else:
        print_tables(rows)


def rivals(
    cache: UpstreamCache = DEMO_CACHE,
    mel_cache: MelCache = DEMO_MEL,
    manifest: Manifest = DEMO_MANIFEST,
    recipes: Recipes = "",
    only: Only = "",
    grid: Annotated[
        list[str] | None,
        typer.Option(
            help="What to search on dev, as in train.lr=1e-3,2e-3; may be repeated. Rates of learning and of dropout "
            "if not given."
        ),
    ] = None,
    seeds: Seeds = "1,2,3",
    steps: Steps = 0,
    search_steps: Annotated[int, typer.Option(min=0, help="Steps of a run of the search; 0 is those of the rest.")] = 0,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    restart: Restart = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the first task's values: a .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """HFF against its rivals on every task: the same search on dev for each, then test once a seed.

    What is trained already is kept, so that the same command goes on where it was stopped.
    """
    from pipelines import figures, search
    from pipelines import rivals as rivals_
    from pipelines.rivals_table import print_tables
    from pipelines.studies import unique_stems

    if plot:
        figures.check_plot(plot)
    chosen = rivals_.select(split_list(only))
    budget = rivals_.Budget(
        search.parse_grid(grid or (), steps or search_steps),
        tuple(seed_list(seeds)),
        tuple(overrides or ()),
        steps,
        search_steps,
    )
    given = [Path(path) for path in split_list(recipes)]
    unique_stems(given or rivals_.RECIPES)
    tasks = given or rivals_.usable(rivals_.RECIPES, messages)
    if any(rival.features == "mel" for rival in chosen):
        rivals_.prepare_mel(manifest, mel_cache, console=messages)
    rows = []
    for base in tasks:
        field = rivals_.Field(base, cache, mel_cache, f"rivals/{base.stem}", budget, runs, restart, messages)
        rows += rivals_.compare(field, chosen)
    found = rivals_.claims(rows)
    if plot:
        figures.save(figures.scores([row for row in rows if row.task == rows[0].task]), plot)
    if as_json:
        result = {"rows": [row.as_json() for row in rows], "claims": found, "budget": budget.as_json()}
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        print_tables(rows, found, measures=1)


def layers(
    cache: UpstreamCache = DEMO_CACHE,
    recipes: Annotated[str, typer.Option(help="Recipes, comma separated; asr and lang if empty.")] = "",
    heads: Annotated[
        list[Path] | None, typer.Option("--head", help="A finished run whose attention is shown; may be repeated.")
    ] = None,
    seeds: Seeds = "1",
    steps: Steps = 0,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder for layers.json and the plots.")] = None,
    as_json: Json = False,
) -> None:
    """What each tap knows: a linear probe a tap, how alike the taps are, what trained heads make of them."""
    from fusion import outputs
    from pipelines import figures
    from pipelines import layers as layers_

    if out:
        outputs.check_folder(out)
    found = layers_.analyse(
        cache,
        [Path(path) for path in split_list(recipes)] or layers_.RECIPES,
        seeds=seed_list(seeds),
        steps=steps,
        heads=heads or (),
        runs=runs,
        overrides=overrides or (),
        console=messages,
    )
    if out:
        figures.save(figures.by_tap(found), out / "by_tap.png")
        figures.save(figures.similarity(found), out / "similarity.png")
        if found.attention:
            figures.save(figures.attention(found), out / "attention.png")
        outputs.write(out / "layers.json", json.dumps(found.as_json(), indent=2, ensure_ascii=False).encode())
    if as_json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        layers_.print_tables(found)


def fewshot(
    cache: UpstreamCache = DEMO_CACHE,
    recipes: Annotated[str, typer.Option(help="Recipes, comma separated; asr and lang if empty.")] = "",
    minutes: Annotated[str, typer.Option(help="Amounts of training speech, comma separated.")] = "1,10,all",
    by: Annotated[str, typer.Option(help="The label whose values keep their shares in every subset.")] = "lang",
    seeds: Seeds = "1",
    steps: Steps = 0,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the curves too: a .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """How little training speech is enough: the same recipes on nested subsets of it."""
    from pipelines import fewshot as fewshot_
    from pipelines import figures
    from pipelines.layers import RECIPES

    if plot:
        figures.check_plot(plot)
    sizes = fewshot_.curves(
        cache,
        [Path(path) for path in split_list(recipes)] or RECIPES,
        minutes=split_list(minutes),
        seeds=seed_list(seeds),
        by=by,
        steps=steps,
        runs=runs,
        overrides=overrides or (),
        console=messages,
    )
    if plot:
        figures.save(figures.by_speech(sizes), plot)
    if as_json:
        print(json.dumps([size.as_json() for size in sizes], indent=2, ensure_ascii=False))
    else:
        fewshot_.print_table(sizes)


def views(
    cache: Annotated[Path, typer.Argument(help="A cache with views of its training speech.", show_default=False)],
    recipe: Annotated[Path | None, typer.Option(help="The recipe that is trained; asr.toml if not given.")] = None,
    share: Annotated[
        float, typer.Option(min=0.01, max=1, help="How often a view is drawn in place of its original.")
    ] = 0.5,
    seeds: Seeds = "1",
    steps: Steps = 0,
    runs: Runs = Path("runs"),
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the scores too: a .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """What views buy over masking alone: the same recipe with masking, with views, with both and with neither."""
    from pipelines import figures
    from pipelines import views as views_
    from pipelines.rivals import RECIPES

    if plot:
        figures.check_plot(plot)
    arms = views_.compare(
        cache,
        recipe or RECIPES[0],
        seeds=seed_list(seeds),
        share=share,
        steps=steps,
        runs=runs,
        overrides=overrides or (),
        console=messages,
    )
    if plot:
        figures.save(figures.scores(arms), plot)
    if as_json:
        print(json.dumps([arm.as_json() for arm in arms], indent=2, ensure_ascii=False))
    else:
        views_.print_table(arms)
