"""The caches that recipes and runs name: opened, or said to be missing."""

from __future__ import annotations

from pathlib import Path

from featcache.errors import CacheError, UsageError
from featcache.store import Cache


def is_there(cache: str) -> bool:
    """Whether there may be a cache at a path or URL; of a URL, only opening it tells."""
    return "://" in cache or Path(cache).exists()


def open_cache(path: str) -> Cache:
    """The cache of a recipe; what is not there is a wrong recipe."""
    try:
        return Cache.open(path)
    except CacheError as error:
        if is_there(path):
            raise
        raise UsageError(f"key cache: there is no cache at {path}; `featcache extract` makes one") from error


def moved(cache: str, run: Path, recipe: Path) -> str:
    """What to do where the cache of a run is not in its place, in words."""
    return (
        f"the cache of run {run} is not at {cache}: work in the folder where it is, or write its new place as `cache` "
        f"into {recipe}"
    )
