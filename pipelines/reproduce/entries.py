"""The rows of the table, and the budgets that they are trained with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from featcache.errors import UsageError

BASE_RECIPE = Path(__file__).parents[1] / "recipes" / "reproduce.toml"


@dataclass(frozen=True)
class Entry:
    """One row: a fuser, and what of the upstream is trained with it.

    Attributes:
        method: of `pipelines.reproduce.methods`; empty where the row learns from the cache.
        settings: of the method.
        rate: of the upstream's weights, as a share of the recipe's rate. Weights that are there already bear less
            than those that start from nothing.
        warm: name of the row whose head this one starts from.
        times: the budget's steps, where a row is to have more of them than others.
    """

    name: str
    title: str
    fuser: str
    method: str = ""
    settings: Mapping[str, int] = field(default_factory=dict)
    rate: float = 1.0
    warm: str = ""
    times: int = 1

    @property
    def live(self) -> bool:
        return bool(self.method)


ENTRIES = (
    Entry("hff", "HFF (cached)", "hff"),
    # a step of BitFit, LoRA or Adapters takes as long on a CPU as seven from the cache
    Entry("hff_longer", "HFF (cached), 7 x steps", "hff", times=7),
    Entry("weighted_sum", "weighted sum (cached)", "weighted_sum"),
    Entry("last_tap", "last tap (cached)", "last"),
    Entry("full", "full fine-tuning", "last", "full", rate=0.025),
    Entry("top_layer", "top layer only", "last", "top_layer", rate=0.1),
    Entry("bitfit", "BitFit", "last", "bitfit", rate=0.5),
    Entry("lora", "LoRA", "last", "lora", {"rank": 8}, rate=0.5),
    Entry("adapters", "Adapters", "last", "adapters", {"width": 64}, rate=0.1),
    # narrower ones: HFF and they together are to be less than 3 % of Whisper base
    Entry("hff_adapters", "HFF + Adapters", "hff", "adapters", {"width": 16}, rate=0.5, warm="hff"),
    # what of that row's lead is the tree's, and not the trained head's that it starts from
    Entry("last_tap_adapters", "last tap + Adapters", "last", "adapters", {"width": 16}, rate=0.5, warm="last_tap"),
)
"""In the order in which they are trained; rows that train little of the upstream stay close to the cached ones."""


@dataclass(frozen=True)
class Scale:
    """A budget, the same for every row: keys of the recipe.

    `judges` says whether error rates after it are worth a verdict. Sizes, memory and speed are at any budget.
    """

    name: str
    text: str
    overrides: tuple[str, ...]
    judges: bool
    needs_gpu: bool = False


SCALES = {
    scale.name: scale
    for scale in (
        Scale(
            "smoke",
            "within an hour on 2 cores",
            ("train.steps=300", "train.warmup=50", "train.eval_every=100"),
            judges=False,
        ),
        Scale(
            "overnight",
            "a night on 2 cores",
            ("train.steps=4000", "train.warmup=100", "train.eval_every=400"),
            judges=True,
        ),
        Scale(
            "full",
            "a GPU, in bfloat16 where it has that",
            ("train.steps=20000", "train.batch_seconds=80", "train.eval_every=500", "train.patience=10"),
            judges=True,
            needs_gpu=True,
        ),
    )
}


def select(only: Sequence[str]) -> list[Entry]:
    """The rows of these names in the order of training; all where empty.

    Raises:
        UsageError: there is no such row, or one starts from another that is left out.
    """
    known = [entry.name for entry in ENTRIES]
    unknown = [name for name in only if name not in known]
    if unknown:
        raise UsageError(f"no row {', '.join(unknown)} in the table: choose from {', '.join(known)}")
    chosen = [entry for entry in ENTRIES if not only or entry.name in only]
    for entry in chosen:
        if entry.warm and entry.warm not in {other.name for other in chosen}:
            raise UsageError(f"row {entry.name} starts from the head of row {entry.warm}: name that one too")
    return chosen


def scale_of(name: str) -> Scale:
    """
    Raises:
        UsageError: there is no such budget.
    """
    if name not in SCALES:
        raise UsageError(f"scale {name!r} is not known: choose from {', '.join(SCALES)}")
    return SCALES[name]
