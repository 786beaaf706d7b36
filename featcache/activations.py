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
from featcache.codec.base import Rest, bad_taps
from featcache.codec.host import begin_wait
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
        return _begin_on_device(codec, device, forward(), kept, spans)

    def end() -> list[Activations]:
        with spans.span("forward"):
            rows = forward()
        with spans.span("copy"):
            arrays = [row.cpu().numpy() for row in rows]
        features = [row[span] for row, span in zip(arrays, kept, strict=True)]
        # Nothing is done before it is asked for. Beside a device threads share a batch's rows: each is encoded by
        # itself, or every one of them would encode all that are encoded together.
        encodings: list[Rest] = (
            codec.encode_rows(features) if device.type == "cpu" else [partial(codec.encode, row) for row in features]
        )
        return [
            Activations(len(whole), partial(bad_taps, row), encode)
            for whole, row, encode in zip(arrays, features, encodings, strict=True)
        ]

    return end


def _begin_on_device(
    codec: Codec, device: torch.device, rows: Sequence[torch.Tensor], kept: Sequence[slice], spans: Spans
) -> Callable[[], list[Activations]]:
    """The rows take memory of the device until the end is called, and none after it."""
    lengths = [len(row) for row in rows]
    end_forward = begin_wait(device)
    end_encoding = codec.begin_encoding([row[span] for row, span in zip(rows, kept, strict=True)])

    def end() -> list[Activations]:
        with spans.span("forward"):
            end_forward()
        with spans.span("copy"):
            begun = end_encoding()
        return [Activations(frames, row.bad_taps, row.rest) for frames, row in zip(lengths, begun, strict=True)]

    return end
