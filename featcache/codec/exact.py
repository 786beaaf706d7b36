"""Values that are kept as they are: those that their codes do not say well enough.

They are float32 in a plane of the features' shape, whose other values have all bits zero; a zero that is kept has its
sign bit set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from featcache.codec.base import Arrays
from featcache.errors import CorruptCacheError

LOST = (
    "values that were to be kept exactly are not where they belong, as `featcache subset`, `merge` and `forget` of an "
    "earlier version left them: run the command again on its source, or `featcache forget` such utterances and extract "
    "them again"
)


@dataclass(frozen=True)
class Kept:
    """What is kept of a row: the plane, float32 `(frames, taps, channels)`, and the frames that have any."""

    plane: np.ndarray
    frames: np.ndarray


class Keeper:
    """Finds what is to be kept of a row.

    Args:
        calibration: of `residual`.
        scale: of its reconstructions, float32 `(taps, channels)`.
        bound: float32 `(taps, channels)`; values farther than that from the truth are kept.
        nmse: of each tap of a row, at most; if given, its worst frames are kept until the rest is within it.
    """

    def __init__(self, calibration: Arrays, scale: np.ndarray, bound: np.ndarray, nmse: float | None) -> None:
        self.smoother, self.mean, self.deviation = (calibration[name] for name in ("smoother", "mean", "deviation"))
        self.scale = scale
        self.bound = bound
        self.nmse = nmse

    def find(self, features: np.ndarray, rec: np.ndarray, begin: int) -> Kept | None:
        """What of a row is kept; None if nothing is.

        Args:
            features: float32 `(frames, taps, channels)`.
            rec: framed reconstructions of several rows. `begin`: the row's first frame in them.
        """
        frames = self._suspects(features, rec, begin)
        if not len(frames):
            return None
        values, marked = self._worse(features[frames], self._estimates(rec, begin, frames))
        frames = frames[marked]
        if not len(frames):
            return None
        plane = np.zeros(features.shape, np.float32)
        plane[frames] = values[marked]
        return Kept(plane, frames)

    def _suspects(self, features: np.ndarray, rec: np.ndarray, begin: int) -> np.ndarray:
        """The frames that have to be looked at: all of them where a mean over them is bounded."""
        from featcache.codec import kernels

        if self.nmse is not None:
            return np.arange(len(features))
        missed = kernels.beyond(rec, begin, self.smoother, self.scale, self.mean, features, self.bound)
        return np.flatnonzero(missed)

    def _estimates(self, rec: np.ndarray, begin: int, frames: np.ndarray) -> np.ndarray:
        """What decoding makes of some frames of a row, at least one, float32 `(len(frames), taps, channels)`."""
        from featcache.codec import kernels

        taps, channels = self.mean.shape
        out = np.empty((len(frames), taps, channels), np.float32)
        at = 0
        for run in np.split(frames, np.flatnonzero(np.diff(frames) > 1) + 1):
            part = out[at : at + len(run)]
            kernels.smooth(rec, begin + run[0], self.smoother, self.scale, self.mean, np.arange(taps), part)
            at += len(run)
        return out

    def _worse(self, features: np.ndarray, decoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The values of these frames that are kept, all bits zero elsewhere; bool `(frames,)`, where there are any."""
        from featcache.codec import kernels_pack

        whole = np.zeros(features.shape[:2], np.bool_)
        if self.nmse is not None:
            _mark_worst(kernels_pack.squares(features, decoded, self.bound, self.deviation), self.nmse, whole)
        out = np.zeros(features.shape, np.float32)
        return out, kernels_pack.keep_exact(features, decoded, self.bound, whole, out)


def _mark_worst(squares: np.ndarray, nmse: float, keep: np.ndarray) -> None:
    """Mark frames of a tap, the worst first, until what is left is within the bound.

    Args:
        squares: mean squared relative errors, float64 `(frames, taps)`.
        keep: bool `(frames, taps)`, the marks.
    """
    allowed = nmse * len(squares)
    for tap in range(squares.shape[1]):
        worst = np.argsort(-squares[:, tap], kind="stable")
        # Sums from the smallest up, so that what remains after n frames is the n-th from the end.
        remaining = np.cumsum(squares[worst[::-1], tap])[::-1]
        keep[worst[: int((remaining > allowed).sum())], tap] = True


def gather(shape: tuple[int, int, int], at: np.ndarray, values: np.ndarray) -> Kept | None:
    """What is kept of a row of this shape, from its places and values; None if nothing is.

    Args:
        at: int64 `(values, 3)`: frame, tap and channel of each.
        values: float32 `(values,)`.
    """
    if not len(at):
        return None
    plane = np.zeros(shape, np.float32)
    plane[tuple(at.T)] = np.where(values == 0, np.float32(-0.0), values)
    return Kept(plane, np.unique(at[:, 0]))


def needed(marked: np.ndarray) -> range:
    """The frames of the plane to read for a row whose frames are marked, bool `(frames,)`."""
    places = np.flatnonzero(marked)
    return range(int(places[0]), int(places[-1]) + 1) if len(places) else range(0)


def overlay(out: Sequence[torch.Tensor], plane: torch.Tensor, marked: np.ndarray, taps: Sequence[int]) -> None:
    """Put kept values in their places.

    Args:
        out: rows `(frames, len(taps), channels)`.
        plane: all frames of the rows, or of each row those `needed`, end to end; all taps.
        marked: bool, of all frames of the rows, end to end.

    Raises:
        CorruptCacheError: nothing is kept of a marked frame.
    """
    whole = len(plane) == len(marked)
    start = at = 0
    for row in out:
        here = marked[start : start + len(row)]
        held = range(len(row)) if whole else needed(here)
        frames = torch.from_numpy(np.flatnonzero(here)).to(plane.device)
        if len(frames):
            kept = plane[at - held.start + frames]
            # Checksums do not say so: `subset`, `merge` and `forget` once wrote the plane's frames to other places.
            if not bool((kept.view(torch.int32) != 0).flatten(1).any(dim=1).all()):
                raise CorruptCacheError(LOST)
            kept = kept[:, list(taps)]
            frame, tap, channel = torch.nonzero(kept.view(torch.int32), as_tuple=True)
            row[frames[frame], tap, channel] = kept[frame, tap, channel]
        start += len(row)
        at += len(held)
