"""The rivals of HFF behind one interface: same data, decoder, schedule and search, paired differences to HFF.

Every row is a recipe with a few keys changed, so that nothing but the fuser differs, and what the search on dev
chose (`pipelines.search`). The log-mel row reads another cache: features without any model. Where a rival has a
size to set, it gets about as many parameters as HFF (`pipelines.sizes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from featcache.errors import UsageError
from featcache.store import Cache
from fusion import checkpoint
from fusion import recipe as recipes_
from fusion.recipe import Recipe
from fusion.tasks import Measure
from pipelines import search, studies
from pipelines.search import Point
from pipelines.sizes import counter, matched
from pipelines.studies import Finished, Score

RECIPES = tuple(Path(__file__).parent / "recipes" / f"{name}.toml" for name in ("asr", "lang", "vad"))
REFERENCE = "hff"


@dataclass(frozen=True)
class Rival:
    """One row of the table: a fuser with its own parameters, on the cache `features`.

    `match` is the key of the size that makes it as large as HFF; `searches_tap` says that the best tap is chosen
    on dev first.
    """

    name: str
    title: str
    kind: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    features: str = "upstream"
    match: str = ""
    searches_tap: bool = False


RIVALS = (
    Rival("mel", "log-mel, no model", "last", {"norm": "layer"}, features="mel"),
    Rival("last", "last tap", "last"),
    Rival("best_tap", "best tap on dev", "tap", searches_tap=True),
    Rival("weighted_sum", "weighted sum", "weighted_sum"),
    Rival("weighted_sum_norm", "weighted sum, normed", "weighted_sum", {"norm": "layer"}),
    Rival("weighted_sum_large", "weighted sum, larger", "weighted_sum", match="decoder.hidden"),
    Rival("concat", "concatenation", "concat", match="fuser.width"),
    Rival("hconv", "convolution over taps", "hconv", match="fuser.width"),
    Rival("ladder", "ladder", "ladder", match="fuser.hidden"),
    Rival("hff", "HFF", "hff"),
)
#: What every fuser has, and so takes from the base recipe.
SHARED_PARAMETERS = ("width",)


@dataclass(frozen=True)
class Budget:
    """What each rival of each task may spend; `grid` is empty where nothing is searched."""

    grid: Mapping[str, Sequence[str]]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    steps: int = 0
    search_steps: int = 0

    def as_json(self) -> dict[str, Any]:
        return {"grid": {key: list(values) for key, values in self.grid.items()}, **{
            key: value for key, value in vars(self).items() if key != "grid"
        }}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One rival on one task. `scores` are keyed by the task's measures, the first of which is the main one."""

    rival: Rival
    task: str
    """The recipe's name."""
    seeds: tuple[int, ...]
    chosen: Point
    tap: str | None
    dev: Mapping[str, float]
    """What the search saw, by point of the grid; NaN where training diverged."""
    fusion_parameters: int
    decoder_parameters: int
    utterances: int
    seconds: float
    """Of training, the mean over seeds; each trained alone."""
    measures: tuple[Measure, ...]
    scores: Mapping[str, Score]
    runs: tuple[str, ...]

    @property
    def title(self) -> str:
        return self.rival.title

    @property
    def marked(self) -> bool:
        return self.rival.kind == "hff"

    def as_json(self) -> dict[str, Any]:
        plain = ("task", "seeds", "chosen", "tap", "fusion_parameters", "decoder_parameters", "utterances", "seconds")
        values: dict[str, Any] = {"name": self.rival.name, "title": self.rival.title}
        values |= {key: getattr(self, key) for key in plain} | {
            "dev": checkpoint.defined(self.dev),
            "runs": list(self.runs),
        }
        for name, score in self.scores.items():
            values |= score.as_json(name)
        return values


@dataclass(frozen=True)
class Field:
    """The rivals of one task, ready to train.

    Args:
        base: the recipe that all are made from.
        cache, mel_cache: features of the upstream, and without any model.
        folder: of the runs, below `runs`.
    """

    base: Path
    cache: Path
    mel_cache: Path
    folder: str
    budget: Budget
    runs: Path
    restart: bool
    console: Console

    def recipe(self, rival: Rival, place: str, seed: int, point: Point = (), tap: str = "", steps: int = 0) -> Recipe:
        """The recipe of one run. Features of another frame rate are stacked to the same rate in the decoder."""
        own = self.mel_cache if rival.features == "mel" else self.cache
        name = f"{self.folder}/{rival.name}{place}"
        settings = studies.read(
            self.base, name, own, seed, [*self.budget.overrides, *point], steps or self.budget.steps
        )
        parameters = settings.fuser.parameters
        if settings.fuser.kind != rival.kind:
            parameters = {key: value for key, value in parameters.items() if key in SHARED_PARAMETERS}
        fixed = {**parameters, **rival.parameters, **({"tap": tap} if tap else {})}
        taps = settings.fuser.taps
        if rival.features == "mel":
            ratio = Cache.open(str(own)).frame_rate / Cache.open(str(self.cache)).frame_rate
            stack = max(1, round(_stack(settings) * ratio))
            decoder = recipes_.DecoderRecipe(**{**settings.decoder.model_dump(), "stack": stack})
            settings, taps = settings.model_copy(update={"decoder": decoder}), "all"
        fuser = settings.fuser.replaced(rival.kind, taps=taps, **fixed)
        settings = settings.model_copy(update={"fuser": fuser})
        if rival.match:
            cache = Cache.open(str(self.cache))
            reference = self.recipe(by_name(REFERENCE), "", seed, point)
            count = counter(cache, reference)
            settings = matched(settings, rival.match, count(reference), count)
        return settings

    def train(self, recipes: Sequence[Recipe]) -> list[Finished]:
        return studies.train(recipes, runs=self.runs, restart=self.restart, console=self.console)

    def tap_of(self, rival: Rival) -> str | None:
        """The best tap on dev at the recipe's own settings, for a rival that searches one."""
        if not rival.searches_tap:
            return None
        seed, steps = self.budget.seeds[0], self.budget.search_steps
        taps = Cache.open(str(self.cache)).taps
        candidates = {tap: self.recipe(rival, f"/dev-tap-{tap}", seed, (), tap, steps) for tap in taps}
        return search.choose(candidates, self.train, self.console)[0]

    def point_of(self, rival: Rival, tap: str | None) -> tuple[Point, dict[str, float]]:
        """The best point of the grid on dev, and what each scored; where there is one point, nothing is trained."""
        grid = search.points(self.budget.grid)
        if len(grid) == 1:
            return grid[0], {}
        seed, steps = self.budget.seeds[0], self.budget.search_steps
        by_slug = {_slug(point, tap): point for point in grid}
        candidates = {
            slug: self.recipe(rival, f"/dev-{slug}", seed, point, tap or "", steps) for slug, point in by_slug.items()
        }
        chosen, scores = search.choose(candidates, self.train, self.console)
        return by_slug[chosen], scores


def compare(field_: Field, rivals: Sequence[Rival]) -> list[Row]:
    """Search, train and measure every rival on one task. A finished run of the same recipe is not repeated.

    Raises:
        UsageError: the recipe does not fit the cache, or its overrides are unknown.
    """
    budget = field_.budget
    rows: list[tuple[Row, list[Finished]]] = []
    for rival in rivals:
        field_.console.print(f"{rival.title} on {field_.base.stem}", highlight=False)
        tap = field_.tap_of(rival)
        point, dev = field_.point_of(rival, tap)
        folder = f"/{_slug(point, tap)}" if budget.grid else ""
        done: list[Finished] = []
        for seed in budget.seeds:  # one by one, so that the seconds are those of one head
            done += field_.train([field_.recipe(rival, f"{folder}-seed{seed}", seed, point, tap or "")])
        metrics = done[0].metrics
        row = Row(
            rival=rival,
            task=field_.base.stem,
            seeds=budget.seeds,
            chosen=point,
            tap=tap,
            dev=dev,
            fusion_parameters=int(metrics["fusion_parameters"]),
            decoder_parameters=int(metrics["decoder_parameters"]),
            utterances=len(done[0].table),
            seconds=sum(float(run.metrics["seconds"]) for run in done) / len(done),
            measures=done[0].measures,
            scores={},
            runs=tuple(str(run.path) for run in done),
        )
        rows.append((row, done))
    return scored(rows)


def scored(rows: Sequence[tuple[Row, Sequence[Finished]]]) -> list[Row]:
    """The rows with their scores, and their differences to HFF where it is among them."""
    tables = {row.rival.name: [run.table for run in done] for row, done in rows}
    reference = tables.get(REFERENCE)
    return [
        replace(
            row,
            scores={
                measure.name: studies.score(measure, tables[row.rival.name], reference) for measure in row.measures
            },
        )
        for row, _ in rows
    ]


def claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """HFF against each rival on its task's main measure, answered yes or no; `figure` is the paired difference."""
    found = []
    for row in rows:
        measure = row.measures[0]
        difference = row.scores[measure.name].difference
        if difference is None:
            continue
        low, high = sorted(measure.cost(end) for end in difference[1:])
        figure = {"measure": measure.name, "difference": list(difference), "task": row.task, "rival": row.rival.name}
        against = f"{row.rival.title} on {row.task}"
        found.append({"claim": f"HFF is not worse than {against}", "holds": high >= 0, "figure": figure})
        if row.rival.kind == "weighted_sum" and row.task == "asr":
            found.append({"claim": f"HFF is better than {against}", "holds": low > 0, "figure": figure})
    return found


def by_name(name: str) -> Rival:
    return next(rival for rival in RIVALS if rival.name == name)


def select(only: Sequence[str], known: Sequence[Rival] = RIVALS) -> list[Rival]:
    """The rivals of these names, in the table's order; all where none is named.

    Raises:
        UsageError: there is none of a name.
    """
    names = [rival.name for rival in known]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise UsageError(f"no row {', '.join(unknown)} in the table: choose from {', '.join(names)}")
    return [rival for rival in known if not only or rival.name in only]


def prepare_mel(manifest: Path, cache: Path, *, console: Console) -> None:
    """Extract log-mel features of the manifest's utterances, where they are not there yet."""
    from featcache.job import Job, Request
    from featcache.upstreams import UpstreamConfig

    job = Job(manifest, cache, Request(upstream=UpstreamConfig(id="mel:80"), profile="fp16"))
    job.init()
    if job.new_rows:
        console.print(f"log-mel features of {len(job.new_rows)} utterances -> {cache}", highlight=False)
        job.extract()


def usable(recipes: Sequence[Path], console: Console) -> list[Path]:
    """The recipes whose file of labels is there, or that need none; the others are named with what is missing."""
    found = []
    for path in recipes:
        needed = recipes_.read(path).task.labels_file
        if needed and not Path(needed).exists():
            console.print(
                f"{path.stem} is left out: {needed} is not there; {path} says how to make it", highlight=False
            )
        else:
            found.append(path)
    return found


def _slug(point: Point, tap: str | None) -> str:
    return (f"tap-{tap}-" if tap is not None else "") + search.slug(point)


def _stack(settings: Recipe) -> int:
    from fusion import head

    return int(head.resolve(settings).decoder.parameters["stack"])
