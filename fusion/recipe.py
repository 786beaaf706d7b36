"""A recipe: the TOML file that fixes a run.

Only `cache` has no default. `extends = "asr.toml"` takes all that another recipe says, found beside this one, and
changes what stands here. The resolved recipe, every default written out, is stored with the run, and is itself
a recipe that makes the same run again.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field, field_validator

from featcache.errors import UsageError
from fusion import toml

Scalar = str | int | float | bool
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
EXTENDS = "extends"
# Sections whose parameters depend on their `kind`.
_KINDS = ("fuser", "decoder")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class TaskRecipe(_Section):
    """What is learned, from which label, and which rows take part."""

    kind: str = "ctc"
    """`ctc` (transcription), `classify` (one class an utterance) or `tag` (one class a frame)."""
    label: str = "text"
    """The column of the label: text for `ctc`, anything for `classify`, for `tag` a JSON list of
    [name, start, end] in seconds."""
    normalise: Literal["none", "basic"] = "basic"
    """Of the text, for `ctc`; so are the next two."""
    tokens: Literal["char", "sentencepiece"] = "char"
    vocabulary: Annotated[int, Field(ge=8)] = 500
    """Pieces of a SentencePiece model; characters count themselves."""
    labels_file: str = ""
    """CSV or JSON Lines keyed by `id`, from the working directory as `cache` is; its columns go before the cache's."""
    where: dict[str, Scalar | tuple[Scalar, ...]] = {}
    """Only rows whose column has this value, or one of these values."""


class SplitRecipe(_Section):
    """Which column says in which split a row is, and what the splits are called there."""

    column: str = "split"
    train: str = "train"
    dev: str = "dev"
    test: str = "test"

    def value(self, split: str) -> str:
        return {"train": self.train, "dev": self.dev, "test": self.test}[split]


class FuserRecipe(_Section):
    """A fuser and its parameters; which parameters there are depends on `kind` (see `fusion.modules`)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = "hff"
    taps: Literal["all"] | tuple[str, ...] = "all"
    """Names of the taps that are read; the others stay on disk."""
    pool: Annotated[int, Field(ge=1, le=64)] = 1
    """How many consecutive frames go into the fuser as their mean."""

    @field_validator("taps", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [str(tap) for tap in value] if isinstance(value, list | tuple) else value

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    def replaced(self, kind: str, **values: Any) -> FuserRecipe:
        """Another fuser with these parameters; keys that every fuser has stay as they are, unless they are given."""
        shared = {name: getattr(self, name) for name in type(self).model_fields}
        return FuserRecipe.model_validate({**shared, "kind": kind, **values})


class DecoderRecipe(_Section):
    """A decoder and its parameters; which parameters there are depends on `kind` (see `fusion.modules`)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: str = "blstm"

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TrainRecipe(_Section):
    steps: Positive = 1500
    batch_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Frames of a batch, padding included, in seconds; per process."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 100
    """Steps of linear rise to `lr`."""
    decay: Literal["cosine", "linear", "none"] = "cosine"
    final_lr: Share = 0.01
    """What is left of `lr` at the last step, as a share."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip: Annotated[float, Field(ge=0)] = 5.0
    """Largest norm of the gradient; 0 leaves it alone."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on a GPU that has it, float32 elsewhere."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:1`."""
    eval_every: Positive = 100
    """Steps between two looks at dev; the state is saved then."""
    patience: Annotated[int, Field(ge=0)] = 10
    """Looks at dev with neither a better score nor less loss before training stops; 0 never stops early."""
    metric: str = ""
    """What the best checkpoint is best in on dev; empty is the task's own."""
    mask_time: Share = 0.0
    """Share of the frames that are masked in training."""
    mask_channels: Share = 0.0
    mask_taps: Share = 0.0
    views: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The probability that an utterance which has views in the cache (`featcache manifest views`) is replaced by
    one of them, drawn anew each epoch; 0 trains on the recordings alone."""
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    """Threads of a head's arithmetic on a CPU; 0 is what OMP_NUM_THREADS says, or else one less than the cores, which
    leaves one to the readers, and where heads are swept together, what each gets of the cores."""
    workers: Annotated[int, Field(ge=0, le=64)] | Literal["auto"] = "auto"
    """Threads that read ahead; 0 reads in the training thread, "auto" is 2 beside a CPU, and beside a GPU half of the
    cores, 8 at most."""


class Recipe(_Section):
    """All that fixes a run."""

    cache: str
    """Path or URL of the cache, from the working directory."""
    name: str = ""
    """The run's folder under `runs/`; empty is the kind of the fuser."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    limit: Annotated[int, Field(ge=0)] = 0
    """At most this many utterances of each split, spread over its rows; 0 takes all."""
    task: TaskRecipe = TaskRecipe()
    split: SplitRecipe = SplitRecipe()
    fuser: FuserRecipe = FuserRecipe()
    decoder: DecoderRecipe = DecoderRecipe()
    train: TrainRecipe = TrainRecipe()

    @field_validator("name")
    @classmethod
    def _folder_name(cls, value: str) -> str:
        if value and (not re.fullmatch(r"[\w.+=-]+(/[\w.+=-]+)*", value) or {".", ".."} & set(value.split("/"))):
            raise ValueError("letters, digits and . _ + = - only, with / between folders, none of them . or ..")
        return value

    @property
    def run_name(self) -> str:
        return self.name or self.fuser.kind

    def limited(self, limit: int) -> Recipe:
        """A quick trial on a handful: few utterances, at most 50 steps, a name of its own."""
        steps = min(self.train.steps, 50)
        train = self.train.model_copy(
            update={
                "steps": steps,
                "eval_every": min(self.train.eval_every, 25),
                "warmup": min(self.train.warmup, 10),
            }
        )
        return self.model_copy(update={"limit": limit, "name": f"{self.run_name}-limit{limit}", "train": train})

    def to_toml(self) -> str:
        return toml.dump(self.model_dump(mode="json"))


def read(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """A recipe from a TOML file, with overrides such as `train.steps=100`.

    Raises:
        UsageError: no such file, not TOML, an unknown key, or a value that a key does not take.
    """
    return _validated(_load(Path(path)), overrides, str(path))


def parse(text: str, overrides: Iterable[str] = (), source: str = "recipe") -> Recipe:
    """A recipe from TOML text, which cannot extend another; see `read`."""
    return _validated(_from_toml(text, source), overrides, source)


def _validated(values: dict[str, Any], overrides: Iterable[str], source: str) -> Recipe:
    written = {section: dict(values[section]) for section in _KINDS if isinstance(values.get(section), dict)}
    asked = {_apply(values, override) for override in overrides}
    for section, before in written.items():
        if f"{section}.kind" in asked and values[section]["kind"] != before.get("kind"):
            own = {key for key in before if f"{section}.{key}" not in asked}
            values[section] = _without_foreign(section, values[section], own)
    try:
        return Recipe.model_validate(values)
    except pydantic.ValidationError as error:
        raise UsageError(f"{source}: {_explain(error)}") from error


def _without_foreign(section: str, values: dict[str, Any], written: set[str]) -> dict[str, Any]:
    """Parameters of a fuser or decoder without those that were `written` for another kind, and this one has not."""
    from fusion import modules

    registry: Mapping[str, type] = modules.FUSERS if section == "fuser" else modules.DECODERS
    kind = registry.get(values["kind"])
    if kind is None:
        return values
    known = (*FuserRecipe.model_fields, *modules.parameters_of(kind))
    return {key: value for key, value in values.items() if key in known or key not in written}


def _load(path: Path, below: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A file's values on top of those of the recipe that it extends."""
    named = f"recipe {path}" + (f", which {below[-1]} extends," if below else "")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{named} cannot be read: {error.strerror}; give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{named} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    values = _from_toml(text, str(path))
    base = values.pop(EXTENDS, None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UsageError(f"{path}: key {EXTENDS}: {base!r} is not allowed, use the path of a recipe")
    above = (path.parent / base).resolve()
    chain = (*below, path)
    if above in [known.resolve() for known in chain]:
        raise UsageError(f"{path} extends {base}, which extends it in turn; take one of the two lines out")
    return _merged(_load(above, chain), values)


def _from_toml(text: str, source: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not TOML: {error}") from error


def _merged(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Section by section; one of another `kind` has other parameters, and so takes nothing from the base's."""
    values = dict(base)
    for key, value in own.items():
        before = values.get(key)
        if isinstance(value, dict) and isinstance(before, dict) and value.get("kind") in (None, before.get("kind")):
            value = {**before, **value}
        values[key] = value
    return values


def differences(old: Recipe, new: Recipe, ignore: Iterable[str] = ()) -> list[str]:
    """Dotted keys in which two recipes differ."""
    a, b = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    return [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key) and key not in set(ignore)]


def as_text(value: Scalar) -> str:
    """A value as labels are stored: text as it is, all else as its JSON text."""
    return value if isinstance(value, str) else json.dumps(value)


def _apply(values: dict[str, Any], override: str) -> str:
    """Set one key, which is returned."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set {override!r} is not KEY=VALUE; write for example --set train.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is text
    target = values
    for part in parts[:-1]:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise UsageError(f"--set {key}: {part} is a value, not a section")
    target[parts[-1]] = value
    return ".".join(parts)


def _explain(error: pydantic.ValidationError) -> str:
    """The first problem of a recipe in one line: the key, what is wrong, what is allowed."""
    problem = error.errors()[0]
    # pydantic adds the branch of a union to the place; only what the user wrote is named
    place = [str(part) for part in problem["loc"]]
    names = _keys(Recipe)
    while (
        problem["type"] != "extra_forbidden"
        and len(place) > 1
        and ".".join(place) not in names
        and ".".join(place[:-1]) in names
    ):
        place.pop()
    key = ".".join(place)
    more = "" if error.error_count() == 1 else f" ({error.error_count()} problems in all)"
    if problem["type"] == "extra_forbidden":
        section = ".".join(place[:-1])
        known = [name[len(section) + 1 if section else 0 :] for name in names if name.rpartition(".")[0] == section]
        return f"unknown key {key}; known here: {', '.join(known)}{more}"
    if problem["type"] == "missing":
        return f"key {key} is missing{more}"
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    given = "" if isinstance(problem["input"], dict) else f" {problem['input']!r}"
    return f"key {key}:{given} is not allowed, use {message}{more}"


def _keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        names.append(prefix + name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names += _keys(field.annotation, f"{prefix}{name}.")
    return names


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
