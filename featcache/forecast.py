"""What each profile would take for a manifest, from the activations that the calibration has seen.

`init` measures it once and keeps it with the cache's description, so that `plan` answers for every profile
without the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from featcache import codec as codecs
from featcache.block import render_rows
from featcache.codec.fitting import moments, split
from featcache.errors import UsageError
from featcache.spec import Forecast, Layout

# What `plan` compares, as users write it.
PROFILES = ("fp16", "int8", "residual:2.0", "residual:1.5", "residual:1.0")


def forecast(fits: codecs.Fits, arrangement: Layout) -> dict[str, Forecast]:
    """Size and error of every profile on some of the rows that it is fitted to.

    A profile that cannot be fitted to them is left out.
    """
    _, sample = split(fits.rows)
    taps, channels = sample[0].shape[1:]
    _, deviation = moments(fits.rows)
    found = {}
    for text in PROFILES:
        name, parameters = codecs.parse_profile(text)
        kind = codecs.profile_class(name)
        try:
            calibration = fits(kind, parameters, rough=True)
        except UsageError:
            continue
        codec = codecs.build(name, kind.version, taps, channels, parameters, calibration)
        encoded = [rest().planes for rest in codec.encode_rows(sample)]
        found[text] = Forecast(
            bits_per_value=round(_bits(codec, arrangement, encoded), 4),
            nmse=float(f"{_nmse(codec, sample, encoded, deviation):.3g}"),
        )
    return found


def bits_per_value(codec: codecs.Codec, arrangement: Layout, rows: Sequence[np.ndarray]) -> float:
    """Size of these rows as the store would hold them, in bits per value, chunk by chunk."""
    return _bits(codec, arrangement, [rest().planes for rest in codec.encode_rows(rows)])


def _bits(codec: codecs.Codec, arrangement: Layout, encoded: Sequence[codecs.Arrays]) -> float:
    frames = sum(len(row[codec.planes[0].name]) for row in encoded)
    size = sum(map(len, render_rows(codec.planes, arrangement, encoded).values()))
    return 8 * size / (frames * codec.taps * codec.channels)


def _nmse(
    codec: codecs.Codec, rows: Sequence[np.ndarray], encoded: Sequence[codecs.Arrays], deviation: np.ndarray
) -> float:
    """The worst tap's mean squared error, each channel in its deviations, as `residual:nmse=...` counts it."""
    total = np.zeros(len(deviation))
    for row, planes in zip(rows, encoded, strict=True):
        error = (row - codec.decode_row(planes, len(row))) / deviation
        total += np.square(error, dtype=np.float64).sum(axis=(0, 2))
    return float(total.max()) / (sum(map(len, rows)) * deviation.shape[1])
