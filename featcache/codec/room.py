"""Where arrays in work are: new memory, or the same for row after row, as getting it costs a tenth of coding a row."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

Take = Callable[[str, tuple[int, ...], Any], np.ndarray]
"""Gives an array of a shape and dtype by its name, of any content."""


def fresh(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """New memory, for results that are kept."""
    return np.empty(shape, dtype)


class Room:
    """A `Take` that gives each thread the same memory again: what had the name before is gone."""

    def __init__(self) -> None:
        self._local = threading.local()

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        arrays: dict[str, np.ndarray] = self._local.__dict__
        size = math.prod(shape)
        held = arrays.get(name)
        if held is None or held.size < size:
            held = arrays[name] = np.empty(size, dtype)
        return held[:size].reshape(shape)
