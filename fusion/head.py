"""A head: a fuser and a decoder, and the description that rebuilds both without the recipe or the cache."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from featcache.errors import UsageError
from featcache.products import used_on
from fusion import modules, tasks
from fusion.modules.decoders import shortened
from fusion.recipe import Recipe

if TYPE_CHECKING:
    from featcache.store import Cache
    from fusion.labels import Example
    from fusion.tasks.base import Task

FORMAT = 1


class HeadSpec(BaseModel):
    """What `head.json` holds: enough to read text off an upstream's activations, given `best.safetensors`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    fuser: dict[str, Any]
    """`kind` and all parameters."""
    pool: int = 1
    """Frames whose mean is one frame for the fuser."""
    decoder: dict[str, Any]
    task: dict[str, Any]
    """What `fusion.tasks.from_json` takes: for CTC the tokeniser and the text normalisation."""
    outputs: int
    taps: tuple[str, ...]
    """Names of the taps that the head reads, in this order."""
    channels: int
    frame_rate: float
    """Frames a second that go into the head."""
    upstream: dict[str, Any]
    """The request for the upstream, as the cache holds it; `id` at least."""
    values_id: str
    """Features of this id are what the head was trained on."""
    encoding_id: str
    profile: str

    @property
    def stride(self) -> int:
        """Frames of the features for one of the logits."""
        return self.pool * int(self.decoder["stack"])


class Head(nn.Module):
    """The mean of every `pool` frames, a fuser, then a decoder.

    Features (batch, frames, taps, channels), zero beyond their lengths (batch,), give logits (batch, frames',
    outputs) and their lengths. Features are first standardised by `centre` and `deviation`, (taps, channels), which
    `standardise_by` sets: some channels of a foundation model are hundreds of times louder than the rest,
    and a head that has to find that out learns ten times more slowly (docs/decisions/0004-standardised-input.md).
    """

    centre: Tensor
    deviation: Tensor

    def __init__(self, fuser: nn.Module, decoder: nn.Module, taps: int, channels: int, pool: int = 1) -> None:
        super().__init__()
        self.pool = pool
        self.fuser = fuser
        self.decoder = decoder
        self.register_buffer("centre", torch.zeros(taps, channels))
        self.register_buffer("deviation", torch.ones(taps, channels))

    def standardise_by(self, centre: Tensor, deviation: Tensor) -> None:
        """Set mean and deviation, (taps, channels); a channel that does not vary is left at its own scale."""
        self.centre.copy_(centre)
        self.deviation.copy_(torch.where(deviation > 0, deviation, 1.0))

    def forward(self, features: Tensor, lengths: Tensor, prepared: bool = False) -> tuple[Tensor, Tensor]:
        """
        Args:
            prepared: both are what `prepare` gave.
        """
        if not prepared:
            features, lengths = self.prepare(features, lengths)
        logits, out_lengths = self.decoder(self.fuser(features, lengths), lengths)
        return logits, out_lengths

    def prepare(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What needs no weights: the mean of every `pool` frames, standardised, and how many there are."""
        if self.pool > 1:
            features, lengths = pool_frames(features, lengths, self.pool)
        scale = self.deviation.reciprocal()
        return torch.addcmul(-self.centre * scale, features, scale, out=_by_taps(features)), lengths

    def output_frames(self, examples: Sequence[Example]) -> list[int]:
        """Frames of logits that each example gets."""
        decoder: Any = self.decoder
        return [decoder.output_lengths(shortened(example.frames, self.pool)) for example in examples]


def _by_taps(features: Tensor) -> Tensor | None:
    """Memory for features of this shape, each tap in one piece as `featcache.products` wants it; None where not."""
    live = features.requires_grad and torch.is_grad_enabled()
    if live or torch.compiler.is_exporting() or not used_on(features.device):
        return None
    batch, frames, taps, channels = features.shape
    return features.new_empty(taps, batch, frames, channels).permute(1, 2, 0, 3)


def pool_frames(features: Tensor, lengths: Tensor, pool: int) -> tuple[Tensor, Tensor]:
    """The mean of every `pool` frames of (batch, frames, taps, channels), and how many there are (batch,).

    The last of an utterance may be of fewer. Features are zero beyond their lengths, and stay so.
    """
    batch, frames, taps, channels = features.shape
    features = nn.functional.pad(features, (0, 0, 0, 0, 0, -frames % pool))
    sums = features.reshape(batch, -1, pool, taps, channels).sum(2)
    starts = pool * torch.arange(sums.shape[1], device=features.device)
    count = (lengths.unsqueeze(1) - starts).clamp(1, pool)
    return sums / count[..., None, None], shortened(lengths, pool)


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every parameter of its fuser and decoder written out.

    Raises:
        UsageError: an unknown fuser, decoder or parameter, or a value of another type.
    """
    fuser = _resolve("fuser", modules.FUSERS, recipe.fuser.kind, recipe.fuser.parameters)
    decoder = _resolve("decoder", modules.DECODERS, recipe.decoder.kind, recipe.decoder.parameters)
    if tasks.of_kind(recipe.task.kind).per_frame and not modules.DECODERS[recipe.decoder.kind].per_frame:
        suitable = " or ".join(kind for kind, decoder in modules.DECODERS.items() if decoder.per_frame)
        raise UsageError(
            f"key decoder.kind: {recipe.decoder.kind!r} pools over time, and task {recipe.task.kind!r} needs every "
            f"frame; use {suitable}"
        )
    return recipe.model_copy(
        update={
            "name": recipe.run_name,
            "fuser": recipe.fuser.replaced(recipe.fuser.kind, **fuser),
            "decoder": type(recipe.decoder)(kind=recipe.decoder.kind, **decoder),
        }
    )


def describe(recipe: Recipe, cache: Cache, task: Task) -> HeadSpec:
    """The head that a recipe asks for on this cache.

    Raises:
        UsageError: a tap that the cache does not hold.
    """
    taps, fuser = _taps(recipe, cache)
    return HeadSpec(
        fuser=fuser,
        pool=recipe.fuser.pool,
        decoder={"kind": recipe.decoder.kind} | recipe.decoder.parameters,
        task=task.describe(),
        outputs=task.outputs,
        taps=taps,
        channels=cache.channels,
        frame_rate=cache.frame_rate,
        upstream=dict(cache.spec.upstream),
        values_id=cache.values_id,
        encoding_id=cache.encoding_id,
        profile=cache.profile,
    )


def logit_rate(recipe: Recipe, frame_rate: float) -> float:
    """Logits a second of a resolved recipe's head over features of this frame rate."""
    return frame_rate / (recipe.fuser.pool * int(recipe.decoder.parameters["stack"]))


def build(spec: HeadSpec) -> Head:
    """A head with fresh weights, drawn from torch's global generator."""
    fuser_parameters = {key: value for key, value in spec.fuser.items() if key != "kind"}
    decoder_parameters = {key: value for key, value in spec.decoder.items() if key != "kind"}
    fuser: Any = modules.build_fuser(spec.fuser["kind"], len(spec.taps), spec.channels, **fuser_parameters)
    decoder = modules.build_decoder(spec.decoder["kind"], fuser.width, spec.outputs, **decoder_parameters)
    return Head(fuser, decoder, len(spec.taps), spec.channels, spec.pool)


def _taps(recipe: Recipe, cache: Cache) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The taps to read and the fuser's description. A fuser of one tap reads no other from disk."""
    taps = cache.taps if recipe.fuser.taps == "all" else recipe.fuser.taps
    unknown = [tap for tap in taps if tap not in cache.taps]
    if unknown or not taps:
        held = ", ".join(cache.taps)
        raise UsageError(f"key fuser.taps: {', '.join(unknown) or 'none'} is not in the cache, which holds {held}")
    fuser = {"kind": recipe.fuser.kind} | recipe.fuser.parameters
    if recipe.fuser.kind == "last":
        return taps[-1:], fuser
    if recipe.fuser.kind == "tap":
        tap = str(fuser.get("tap", ""))
        if tap not in taps:
            raise UsageError(f"key fuser.tap: {tap!r} is not allowed, use {' or '.join(taps)}")
        return (tap,), fuser | {"tap": 0}
    return taps, fuser


def _resolve(section: str, registry: Mapping[str, type[nn.Module]], kind: str, given: dict[str, Any]) -> dict[str, Any]:
    if kind not in registry:
        raise UsageError(f"key {section}.kind: {kind!r} is not allowed, use {' or '.join(registry)}")
    signature = inspect.signature(registry[kind]).parameters
    known = {name: signature[name].default for name in modules.parameters_of(registry[kind])}
    resolved = dict(known)
    for name, value in given.items():
        if name not in known:
            raise UsageError(f"unknown key {section}.{name}; {section} {kind!r} has: {', '.join(known)}")
        if (section, kind, name) == ("fuser", "tap", "tap"):
            resolved[name] = str(value)  # the name of a tap, not its position
        else:
            resolved[name] = _typed(f"{section}.{name}", value, known[name])
    if (section, kind) == ("fuser", "tap") and "tap" not in given:
        raise UsageError("key fuser.tap is missing; it is the name of the tap to read")
    return resolved


def _typed(key: str, value: Any, default: Any) -> Any:
    """The value in the type of the parameter's default. Whole numbers are sizes: of a layer, or how many there are."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default):
        names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        wanted = names.get(type(default), type(default).__name__)
        raise UsageError(f"key {key}: {value!r} is not allowed, use {wanted} (the default is {default!r})")
    if type(value) is int and value < 1:
        raise UsageError(f"key {key}: {value} is not allowed, use 1 or more (the default is {default!r})")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"key {key}: {value} is not allowed, use a finite number (the default is {default!r})")
    return value
