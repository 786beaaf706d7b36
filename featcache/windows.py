"""How an utterance longer than the model's window is cut: what goes in, and which frames that come out are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from featcache.errors import UpstreamError
from featcache.geometry import SAMPLE_RATE, Geometry
from featcache.spec import WINDOW_RULE


@dataclass(frozen=True)
class Window:
    """A piece of an utterance that goes through the model in one forward pass.

    Samples `start .. stop` of the utterance go in; of the frames that come out, `frames` are kept from
    frame `keep` on.
    """

    start: int
    stop: int
    keep: int
    frames: int


def windows(samples: int, geometry: Geometry) -> list[Window]:
    """Cut an utterance to the model's window.

    Up to `geometry.window_samples` it is one window. Beyond, windows of that length start every
    `window - overlap` samples (overlap: 2 s) and each keeps its frames but for one second at an inner
    edge; the kept frames abut, so that the utterance has exactly `geometry.frames(samples)` of them.

    Raises:
        UpstreamError: the utterance is longer than the window, and the window is no longer than the overlap.
    """
    size = geometry.window_samples
    cut = []
    start = 0
    while size is not None and start + size < samples:
        cut.append(_inner(start, size, geometry))
        start += _stride(size, geometry)
    return [*cut, _last(start, samples, geometry)]


def stream_windows(blocks: Iterable[np.ndarray], geometry: Geometry) -> Iterator[tuple[Window, np.ndarray]]:
    """The windows of `windows` with their samples, of an utterance that comes in blocks (samples,).

    No more than one window and one block are held. Raises as `windows` does.
    """
    size = geometry.window_samples
    held: list[np.ndarray] = []
    start = there = 0
    for block in blocks:
        held.append(block)
        there += len(block)
        while size is not None and start + size < there:
            samples = np.concatenate(held)
            yield _inner(start, size, geometry), samples[:size]
            start += _stride(size, geometry)
            held = [samples[_stride(size, geometry) :].copy()]
    samples = np.concatenate(held) if held else np.zeros(0, np.float32)
    yield _last(start, there, geometry), samples


def _margin(geometry: Geometry) -> int:
    """Frames at an inner edge that a window does not keep."""
    return -(-int(WINDOW_RULE["overlap_seconds"] * SAMPLE_RATE) // (2 * geometry.hop))


def _stride(size: int, geometry: Geometry) -> int:
    """Samples between the beginnings of windows."""
    stride = size - 2 * _margin(geometry) * geometry.hop
    if stride <= 0:
        overlap = WINDOW_RULE["overlap_seconds"]
        raise UpstreamError(
            f"the model's window is {size / SAMPLE_RATE:g} s, and windows overlap by {overlap:g} s, so that a longer "
            "recording cannot be cut for it: use a model with a longer window, or a manifest without longer recordings"
        )
    return stride


def _inner(start: int, size: int, geometry: Geometry) -> Window:
    """A window behind which the utterance goes on."""
    margin = _margin(geometry)
    keep = margin if start else 0
    end = (start + _stride(size, geometry)) // geometry.hop + margin
    return Window(start, start + size, keep, end - start // geometry.hop - keep)


def _last(start: int, samples: int, geometry: Geometry) -> Window:
    keep = _margin(geometry) if start else 0
    return Window(start, samples, keep, geometry.frames(samples) - start // geometry.hop - keep)
