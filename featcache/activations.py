"""What the model gave for a row, on its way to being stored: on the host, or on a device where most of the work is.

On a GPU activations stay where they are: whether they are finite and what their codes are is found out there, and
what crosses to the host is what the rest of the work needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from featcache.codec import Codec, EncodedRow
from featcache.codec.host import begin_copy
from featcache.spans import Spans

# Kinds of device that find the codes of what they compute.
ENCODING_DEVICES = ("cuda",)


@dataclass(frozen=True)
class Activations:
    """One row of a batch.

    Attributes:
        frames: how many the model gave, kept or not.
        bad_taps: gives the positions of taps whose kept values are not all finite.
        encode: gives the codes of the kept frames; only where there are no bad taps.
    """

    frames: int
    bad_taps: Callable[[], np.ndarray]
    encode: Callable[[], EncodedRow]


def begin_rows(
    codec: Codec,
    device: torch.device,
    forward: Callable[[], list[torch.Tensor]],
    kept: Sequence[slice],
    spans: Spans,
) -> Callable[[], list[Activations]]:
    """Begin what is the device's to do with rows; the call that is returned waits for it.

    Args:
        device: what the rows are on.
        forward: ends a forward pass that was begun: rows, float32 `(frames, taps, channels)` each.
        kept: the frames of each row that are stored.
        spans: gets what the call waited for: the forward pass, then copies.
    """
    if device.type in ENCODING_DEVICES:
        return _begin_on_device(codec, forward(), kept, spans)

    def end() -> list[Activations]:
        with spans.span("forward"):
            rows = forward()
        with spans.span("copy"):
            arrays = [row.cpu().numpy() for row in rows]
        features = [row[span] for row, span in zip(arrays, kept, strict=True)]
        # Nothing is done before it is asked for.
        return [
            Activations(len(whole), partial(_bad_taps, row), encode)
            for whole, row, encode in zip(arrays, features, codec.encode_rows(features), strict=True)
        ]

    return end


def _bad_taps(features: np.ndarray) -> np.ndarray:
    return np.flatnonzero(~np.isfinite(features).all(axis=(0, 2)))


def _begin_on_device(
    codec: Codec, rows: Sequence[torch.Tensor], kept: Sequence[slice], spans: Spans
) -> Callable[[], list[Activations]]:
    """The rows take memory of the device until the end is called, and none after it."""
    lengths = [len(row) for row in rows]
    features = [row[span] for row, span in zip(rows, kept, strict=True)]
    finite = [row.isfinite().all(dim=2).all(dim=0) for row in features]
    end_finite = begin_copy(torch.stack(finite)) if finite else list
    end_encoding = codec.begin_encoding(features)

    def end() -> list[Activations]:
        # Whether values are finite is known when the forward pass ends; codes come after it.
        with spans.span("forward"):
            bad = [partial(np.flatnonzero, ~taps) for taps in end_finite()]
        with spans.span("copy"):
            encoded = end_encoding()
        return [Activations(*row) for row in zip(lengths, bad, encoded, strict=True)]

    return end
