"""Fusers and decoders by name, behind one interface each.

fuser = build_fuser("hff", taps=8, channels=512)                 # (batch, frames, taps, channels)
decoder = build_decoder("blstm", fuser.width, outputs=40)        # -> (batch, frames, width) -> logits, lengths
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from featcache.errors import UsageError
from fusion.modules.decoders import BLSTM, ConformerDecoder, Decoder, LinearDecoder
from fusion.modules.hff import HFF
from fusion.modules.masking import mask_features
from fusion.modules.parameters import count_parameters, parameter_groups
from fusion.modules.pooling import AttentivePooling
from fusion.modules.rivals import Concat, HConv, Ladder, LastTap, OneTap, WeightedSum

FUSERS: dict[str, type[nn.Module]] = {
    "hff": HFF,
    "last": LastTap,
    "tap": OneTap,
    "weighted_sum": WeightedSum,
    "concat": Concat,
    "hconv": HConv,
    "ladder": Ladder,
}
DECODERS: dict[str, type[Decoder]] = {
    "blstm": BLSTM,
    "conformer": ConformerDecoder,
    "linear": LinearDecoder,
    "attentive": AttentivePooling,
}


def build_fuser(name: str, taps: int, channels: int, **params: Any) -> nn.Module:
    """A fuser of FUSERS: `forward(features (batch, frames, taps, channels), lengths)` -> (batch, frames, width).

    Raises:
        UsageError: for an unknown name or parameter, with what is known.
    """
    return _build("fuser", FUSERS, name, {"taps": taps, "channels": channels}, params)


def build_decoder(name: str, width: int, outputs: int, **params: Any) -> Decoder:
    """A decoder of DECODERS: `forward(x (batch, frames, width), lengths)` -> logits and their lengths.

    Raises:
        UsageError: for an unknown name or parameter, with what is known.
    """
    decoder = _build("decoder", DECODERS, name, {"width": width, "outputs": outputs}, params)
    assert isinstance(decoder, Decoder)
    return decoder


def parameters_of(kind: type[nn.Module]) -> tuple[str, ...]:
    """The names that a recipe may set for a class of FUSERS or DECODERS."""
    names = tuple(inspect.signature(kind).parameters)
    return names[2:]  # without taps, channels or width, outputs


def _build(what: str, registry: dict[str, Any], name: str, fixed: dict[str, int], params: dict[str, Any]) -> nn.Module:
    if name not in registry:
        raise UsageError(f"{what} {name!r} is not known; use one of {', '.join(sorted(registry))}")
    known = parameters_of(registry[name])
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise UsageError(f"{what} {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(known)}")
    module: nn.Module = registry[name](**fixed, **params)
    return module


__all__ = [
    "DECODERS",
    "FUSERS",
    "Decoder",
    "build_decoder",
    "build_fuser",
    "count_parameters",
    "mask_features",
    "parameter_groups",
    "parameters_of",
]
