"""featcache: the activations of a frozen speech foundation model, computed once and kept.

    >>> cache = featcache.open("caches/demo")
    >>> cache.ids[0], cache.taps, cache.channels
    >>> cache.read(cache.ids[0]).shape        # (frames, taps, channels)

Reading a cache never loads a model: everything else is imported where it is needed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featcache.errors import FeatcacheError
    from featcache.store import Cache, Encoded

    open = Cache.open

__version__ = "0.1.0"
__all__ = ["Cache", "Encoded", "FeatcacheError", "open"]

_HOMES = {"Cache": "featcache.store", "Encoded": "featcache.store", "FeatcacheError": "featcache.errors"}


# To a type checker a module with `__getattr__` has every name, and `featcache.opne` would pass.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "open":
            return import_module("featcache.store").Cache.open
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), name)
        raise AttributeError(f"module 'featcache' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
