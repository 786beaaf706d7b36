"""Codec profiles: how activations become bytes. `featcache.store` decides where those bytes lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featcache.codec.base import Arrays, Codec, EncodedRow, Fits, Plane
from featcache.codec.direct import Fp16, Int8
from featcache.codec.plain import BitRound, Blosc, PCodec
from featcache.codec.residual import Residual
from featcache.errors import CacheError, UsageError

PROFILES: dict[str, type[Codec]] = {codec.profile: codec for codec in (Fp16, Int8, Residual, Blosc, PCodec, BitRound)}
DEFAULT_PROFILE = Int8.profile


def profile_class(name: str) -> type[Codec]:
    """The codec of a profile name.

    Raises:
        UsageError: there is no such profile.
    """
    if name not in PROFILES:
        raise UsageError(f"there is no codec profile {name!r}: choose one of {', '.join(PROFILES)}")
    return PROFILES[name]


def parse_profile(text: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of a profile as users write it: `fp16`, `residual`, `residual:1.5`,
    `residual:nmse=0.05`, `blosc:step=0.5`, `bitround:3`. `featcache.spec.format_profile` is the inverse.

    Raises:
        UsageError: there is no such profile or parameter.
    """
    name, colon, rest = text.partition(":")
    kind = profile_class(name)
    return name, kind.parse(rest) if colon else {}


def build(
    name: str, version: int, taps: int, channels: int, parameters: Mapping[str, Any], calibration: Arrays
) -> Codec:
    """The codec that a cache names.

    Raises:
        CacheError: this installation does not know the profile or its version.
    """
    codec = PROFILES.get(name)
    if codec is None or codec.version != version:
        known = ", ".join(f"{p} version {c.version}" for p, c in PROFILES.items())
        raise CacheError(
            f"this cache needs codec profile {name} version {version}, and this installation knows {known}: "
            "install the version of speech-featcache that wrote it, or a newer one"
        )
    return codec(taps, channels, parameters, calibration)


__all__ = [
    "DEFAULT_PROFILE",
    "PROFILES",
    "Arrays",
    "Codec",
    "EncodedRow",
    "Fits",
    "Plane",
    "build",
    "parse_profile",
    "profile_class",
]
