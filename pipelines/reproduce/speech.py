"""Recordings in the place of a cache's features: the same rows, labels and batches, but waveforms in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from featcache import manifest
from featcache.errors import AudioError, JobError, UsageError
from featcache.reading import load_part, row_samples
from featcache.store import Cache, Encoded


class Speech(Cache):
    """A cache that gives the recordings its features were made from.

    Where a cache's batch is features `(batch, frames, taps, channels)`, this one's is float32 waveforms
    `(batch, samples)` on the CPU, with NaN behind each row's end (a recording has none), which is how the model
    that reads it tells the lengths. Lengths stay those of the features, in frames.
    """

    def __init__(self, cache: Cache, place: Path) -> None:
        super().__init__(cache.storage, cache.spec, cache.calibration, cache.origin)
        self.segments, self.unsealed = cache.segments, cache.unsealed
        self.features = cache
        self.manifest = place
        self._rows = {row.id: row for row in manifest.read(place)}

    def read_encoded(self, rows: Sequence[int], taps: Sequence[str] | None = None) -> Encoded:
        """The samples of some utterances.

        Raises:
            UsageError: the manifest does not hold one. JobError: a recording cannot be read any more.
        """
        waves = [self._read(self.ids[row]) for row in rows]
        planes = {"samples": np.concatenate(waves), "ends": np.cumsum([len(wave) for wave in waves])}
        return Encoded(planes, self.lengths[list(rows)], ())

    def decode(
        self, encoded: Encoded, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Waveforms `(batch, samples)` on the CPU, and the lengths `(batch,)` in frames on the device."""
        samples, ends = (torch.as_tensor(encoded.planes[name]) for name in ("samples", "ends"))
        waves = torch.tensor_split(samples, ends[:-1].tolist())
        padded = torch.nn.utils.rnn.pad_sequence(list(waves), batch_first=True, padding_value=torch.nan)
        return padded, torch.from_numpy(encoded.lengths).to(device)

    def _read(self, id_: str) -> np.ndarray:
        row = self._rows.get(id_)
        if row is None:
            raise UsageError(
                f"{self.manifest} has no utterance {id_!r}: give the manifest that {self.path} was made of"
            )
        try:
            return load_part(row, self.manifest, 0, row_samples(row))
        except AudioError as error:
            raise JobError(f"{id_}: {error.reason}, though {self.path} holds its features: restore it") from error


def split_waves(waves: Tensor) -> list[Tensor]:
    """The rows `(samples,)` of a batch of `Speech`."""
    samples = waves.isfinite().sum(1).tolist()
    return [wave[:count] for wave, count in zip(waves, samples, strict=True)]
