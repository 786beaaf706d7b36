"""PCodec, where it is installed."""

from __future__ import annotations

from typing import Any

from featcache.errors import UsageError


def coder(level: int, page: int) -> Any:
    """A numcodecs PCodec.

    Raises:
        UsageError: the package `pcodec` is not installed.
    """
    try:
        from numcodecs.pcodec import PCodec
    except ImportError:
        raise UsageError(
            "packing=pcodec needs the package pcodec: run `pip install pcodec`, or use packing=zstd"
        ) from None
    return PCodec(level=level, equal_pages_up_to=page)
