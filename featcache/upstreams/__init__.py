"""The frozen models of stage one, one small file per family behind one protocol.

`load(UpstreamConfig(id="package:whisper-base"))` gives an `Upstream`; a family's libraries are imported
only when a model of it is loaded.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from featcache.cores import hold_torch_to_them
from featcache.errors import UpstreamError
from featcache.upstreams.base import Upstream, UpstreamConfig

__all__ = ["Upstream", "UpstreamConfig", "UpstreamError", "load"]

FAMILIES = {"torchaudio": "torchaudio_", "hf": "hf", "package": "whisper_package", "mel": "mel"}


def load(config: UpstreamConfig, device: str = "cpu") -> Upstream:
    """The upstream of a configuration, in evaluation mode on `device`.

    Raises `UpstreamError`, one line, where the id names no model, or its weights are absent, altered or
    unreadable.
    """
    family, colon, name = config.id.partition(":")
    if not colon or not name or family not in FAMILIES:
        raise UpstreamError(
            f"'{config.id}' is no upstream: write torchaudio:WAV2VEC2_BASE, hf:org/name@revision, hf:FOLDER, "
            "package:whisper-base or mel:80"
        )
    module = import_module(f"featcache.upstreams.{FAMILIES[family]}")
    hold_torch_to_them()
    return cast(Upstream, module.load(config, device))
