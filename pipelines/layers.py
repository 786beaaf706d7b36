"""What the layers know: a probe a tap, how alike the taps are, and what trained heads make of them.

A probe is a linear decoder on one tap (fuser `tap`). All probes of all recipes with the same batches learn from
one pass over the cache (`fusion.train.fit_together`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from featcache.console import table_console
from featcache.errors import UsageError
from featcache.store import Cache
from fusion import labels
from fusion.distributed import World
from fusion.head import Head
from fusion.modules.hff import HFF, NodeStack
from fusion.modules.rivals import Ladder, WeightedSum
from fusion.predict import Reader, predict_together
from fusion.recipe import DecoderRecipe, Recipe
from fusion.run import Run
from pipelines import studies
from pipelines.studies import Score

RECIPES = tuple(Path(__file__).parent / "recipes" / f"{name}.toml" for name in ("asr", "lang"))
FRAMES = 8_000
"""Frames of the similarity between taps."""


@dataclass(frozen=True)
class Curve:
    """One measure of one recipe, by tap."""

    recipe: str
    measure: str
    title: str
    higher_is_better: bool
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Attention:
    """What a trained head makes of the taps that it reads.

    `weights` are the shares that its gates give to each tap, None where its fuser has none. `silenced` is its loss
    on dev with a tap held at its mean, minus that with all taps.
    """

    run: str
    fuser: str
    task: str
    taps: tuple[str, ...]
    weights: tuple[float, ...] | None
    loss: float
    silenced: tuple[float, ...]


@dataclass(frozen=True)
class Layers:
    """The whole analysis. `similarity` is linear CKA, (taps, taps)."""

    upstream: str
    taps: tuple[str, ...]
    curves: tuple[Curve, ...]
    similarity: tuple[tuple[float, ...], ...]
    frames: int
    attention: tuple[Attention, ...]

    def as_json(self) -> dict[str, Any]:
        curves = [{**vars(curve), "scores": [vars(score) for score in curve.scores]} for curve in self.curves]
        return {**vars(self), "curves": curves, "attention": [vars(one) for one in self.attention]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Layers:
        """
        Raises:
            UsageError: it is not what `as_json` made.
        """
        try:
            curves = tuple(
                Curve(**{**curve, "scores": tuple(Score(**score) for score in curve["scores"])})
                for curve in value["curves"]
            )
            attention = tuple(Attention(**one) for one in value["attention"])
            return cls(**{**value, "curves": curves, "attention": attention})
        except (KeyError, TypeError) as error:
            raise UsageError(f"this is not the JSON of `pipelines layers` ({error}); make it with --out") from error


def analyse(
    cache: Path,
    recipes: Sequence[Path],
    *,
    seeds: Sequence[int] = (1,),
    steps: int = 0,
    heads: Sequence[Path] = (),
    runs: Path = Path("runs"),
    overrides: Sequence[str] = (),
    console: Console,
) -> Layers:
    """Train the probes that are absent, and look at the taps and at trained heads.

    Args:
        heads: folders of finished runs on features of this cache, whose attention is shown.

    Raises:
        UsageError: a recipe does not fit the cache, or a folder is no finished run.
        MismatchError: a head was trained on other features than those of the cache.
    """
    opened = Cache.open(str(cache))
    studies.unique_stems(recipes)
    opened_heads = [Run.open(path) for path in heads]  # a mistake shows before the probes are trained
    for run in opened_heads:
        run.open_cache(opened)
    wanted = [
        probe(path, tap, cache, seed, steps, overrides) for path in recipes for tap in opened.taps for seed in seeds
    ]
    done = iter(studies.train(wanted, runs=runs, console=console))
    curves = []
    for path in recipes:
        by_tap = [[next(done) for _ in seeds] for _ in opened.taps]
        for measure in by_tap[0][0].measures:
            scores = tuple(studies.score(measure, [run.table for run in of_tap]) for of_tap in by_tap)
            curves.append(Curve(path.stem, measure.name, measure.title, measure.higher_is_better, scores))
    similarity, frames = taps_alike(opened, wanted[0], seeds[0])
    return Layers(
        upstream=opened.upstream,
        taps=tuple(opened.taps),
        curves=tuple(curves),
        similarity=tuple(tuple(map(float, row)) for row in similarity),
        frames=frames,
        attention=tuple(attention_of(run, opened) for run in opened_heads),
    )


def probe(path: Path, tap: str, cache: Path, seed: int, steps: int, overrides: Sequence[str]) -> Recipe:
    """A recipe with its fuser replaced by one tap, and its decoder by a linear layer."""
    settings = studies.read(path, f"layers/{path.stem}-tap-{tap}-seed{seed}", cache, seed, overrides, steps)
    kept = {key: value for key, value in settings.fuser.parameters.items() if key == "width"}
    stack = {key: value for key, value in settings.decoder.parameters.items() if key == "stack"}
    fuser = settings.fuser.replaced("tap", taps="all", tap=tap, **kept)
    decoder = DecoderRecipe(**{"kind": "linear", **stack})
    return settings.model_copy(update={"fuser": fuser, "decoder": decoder})


def taps_alike(cache: Cache, recipe: Recipe, seed: int, frames: int = FRAMES) -> tuple[np.ndarray, int]:
    """Linear CKA between taps, float64 (taps, taps), over frames of a seeded draw of training utterances.

    Channels are standardised over the frames first, as a head sees them: some are hundreds of times louder than
    the rest, and would be all that is compared.

    Returns:
        The similarities, and how many frames they are from.
    """
    rows = np.array([example.row for example in labels.select(cache, recipe).splits["train"]])
    drawn: list[np.ndarray] = []
    for row in np.random.default_rng(seed).permutation(rows).tolist():
        drawn.append(cache.read(row))
        if sum(map(len, drawn)) >= frames:
            break
    values = torch.from_numpy(np.concatenate(drawn)[:frames]).double()
    return linear_cka(values).numpy(), len(values)


def linear_cka(values: Tensor) -> Tensor:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019, arXiv 1905.00414) between taps.

    ||Y'X||^2 / (||X'X|| ||Y'Y||) in Frobenius norms, X and Y standardised: 1 for taps that are a rotation of each
    other, near 0 for unrelated ones.

    Args:
        values: float (frames, taps, channels); far more frames than channels, or all is alike.

    Returns:
        (taps, taps), in the dtype of the values.
    """
    centred = values - values.mean(0)
    deviation = centred.square().mean(0).sqrt()
    taps = (centred / torch.where(deviation > 0, deviation, 1.0)).transpose(0, 1)  # (taps, frames, channels)
    count = len(taps)
    products = torch.zeros(count, count, dtype=values.dtype)
    for i in range(count):
        for j in range(i, count):
            products[i, j] = products[j, i] = (taps[j].T @ taps[i]).square().sum()
    scale = products.diagonal().sqrt()
    return products / (scale.unsqueeze(0) * scale.unsqueeze(1))


@torch.no_grad()
def attention_of(run: Run, cache: Cache) -> Attention:
    """What a finished run's head makes of each tap that it reads.

    Raises:
        MismatchError: it was trained on other features than those of the cache.
        UsageError: its dev split is empty.
    """
    opened = run.open_cache(cache)
    examples = labels.select(opened, run.recipe).splits["dev"]
    split = labels.prepare(examples, "dev", run.task, run.head.output_frames(examples), learn=True)
    readers = [run.reader(split)]
    for tap in range(len(run.spec.taps)):
        head = cast(Head, _Silenced(run.head, tap))
        readers.append(Reader(head, run.task, split, run.spec.taps, run.recipe.train.precision))
    settings = run.recipe.train
    whole, *without = predict_together(
        readers, opened, World(0, 1, run.device), batch_seconds=settings.batch_seconds, workers=settings.workers
    )
    shares = weights_of(run.head.fuser)
    return Attention(
        run=str(run.path),
        fuser=run.spec.fuser["kind"],
        task=run.task.kind,
        taps=run.spec.taps,
        weights=None if shares is None else tuple(map(float, shares)),
        loss=whole.loss,
        silenced=tuple(one.loss - whole.loss for one in without),
    )


@torch.no_grad()
def weights_of(fuser: nn.Module) -> Tensor | None:
    """The share of each tap in the gated mean that a fuser computes, (taps,), summing to 1; None without gates.

    Of a tree the product of the gates on the way from a leaf to the root, of a ladder the same along its rungs.
    What the nodes add to the mean is not in it.
    """
    if isinstance(fuser, WeightedSum):
        return fuser.mixture.softmax(0)
    if isinstance(fuser, Ladder):
        gates = torch.cat([torch.ones(1), fuser.mixture.sigmoid()])
        later = torch.flip(torch.cumprod(torch.flip(torch.cat([1 - gates[1:], torch.ones(1)]), [0]), 0), [0])
        return gates * later
    if isinstance(fuser, HFF):
        shares = torch.ones(1)
        for level in reversed(list(fuser.levels)):
            stacks = [cast(NodeStack, stack) for stack in cast(nn.ModuleList, level)]
            if not all(stack.residual for stack in stacks):
                return None
            of_nodes = [gate for stack in stacks for gate in stack.gate.softmax(1)]
            shares = torch.cat([share * gate for share, gate in zip(shares, of_nodes, strict=True)])
        return shares
    return None


class _Silenced(nn.Module):
    """A head that is given one of its taps at its mean."""

    def __init__(self, head: Head, tap: int) -> None:
        super().__init__()
        self.head, self.tap = head, tap
        self.train(head.training)  # whoever evaluates this puts back what it found, and with it the head

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        features = features.clone()
        own = torch.arange(features.shape[1], device=features.device) < lengths.unsqueeze(1)
        features[:, :, self.tap] = own.unsqueeze(2) * self.head.centre[self.tap]
        logits, out_lengths = self.head(features, lengths)
        return logits, out_lengths


def print_tables(found: Layers) -> None:
    """One line a tap: what its probes score, how like the tap below it is, what the heads make of it."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("tap")
    for curve in found.curves:
        table.add_column(f"{curve.recipe} {curve.title}", justify="right")
    table.add_column("CKA, below", justify="right")
    for i, tap in enumerate(found.taps):
        cells = [f"{curve.scores[i].value:.3f}" for curve in found.curves]
        table.add_row(tap, *cells, f"{found.similarity[i][i - 1]:.3f}" if i else "")
    console = table_console()
    console.print(table)
    for one in found.attention:
        heads = Table(box=box.SIMPLE_HEAD, title=f"{one.run} ({one.fuser}, loss {one.loss:.3f})", title_justify="left")
        heads.add_column("tap")
        for column in ("share by its gates", "loss without it"):
            heads.add_column(column, justify="right")
        for i, tap in enumerate(one.taps):
            heads.add_row(tap, "" if one.weights is None else f"{one.weights[i]:.3f}", f"{one.silenced[i]:+.3f}")
        console.print(heads)
    console.print(
        f"Probes: one tap and a linear layer. CKA, below: linear CKA with the tap below, {found.frames:,} frames, "
        "channels standardised. Loss without it: on dev with the tap held at its mean, minus that with all.",
        highlight=False,
    )
