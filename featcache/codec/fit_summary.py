"""What a tap of the `residual` profile owes to the tap below: weights of each channel's own neighbours, and a summary.

All channels of the tap below say something of every channel, but in few directions that the same channel does not
say by itself (docs/decisions/0018-a-summary-of-the-tap-below.md): the summary is the projection on those.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Weights of a channel's own neighbours and of the summary are found in turns.
TURNS = 2
# Of the largest direction's power.
NOTHING = 1e-10


@dataclass(frozen=True)
class Moments:
    """Sums over frames of products of values.

    Attributes:
        gram: float64 `(2 * channels, 2 * channels)`, of the tap below in this frame and the one before.
        now, past: `(2 * channels, channels)`, of those with the tap's values, and with its values a frame before.
        lag, power: `(channels,)`, of a channel's value before with its value, and with itself.
    """

    gram: np.ndarray
    now: np.ndarray
    past: np.ndarray
    lag: np.ndarray
    power: np.ndarray

    def solve(self, rank: int, ridge: float, prior: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Weights of a channel's own neighbours `(3, channels)`: the frame before, the tap below now and before;
        what sums up the tap below `(2 * channels, rank)`, and what that says of each channel `(rank, channels)`;
        the square roots of the summary's own sums of squares `(rank,)`.
        """
        channels = len(self.lag)
        system = self.gram.copy()
        system.flat[:: len(system) + 1] += ridge + prior
        by_now, by_past = np.split(np.linalg.solve(system, np.concatenate([self.now, self.past], axis=1)), 2, axis=1)
        whole = np.zeros_like(self.now)
        inner = outer = np.zeros((0, 0))
        for _ in range(TURNS):
            near = self._near(whole, ridge)
            # What is left for all channels together when each has had its own neighbours.
            rest = by_now - by_past * near[0]
            rest[np.arange(channels), np.arange(channels)] -= near[1]
            rest[channels + np.arange(channels), np.arange(channels)] -= near[2]
            powers, vectors = np.linalg.eigh(rest.T @ self.gram @ rest)
            # Directions in which there is nothing are any directions.
            vectors[:, powers <= NOTHING * powers[-1]] = 0
            outer = np.ascontiguousarray(vectors[:, ::-1][:, :rank].T)
            inner = rest @ outer.T
            whole = inner @ outer
        spread = np.sqrt(np.maximum(np.einsum("ir,ir->r", inner, self.gram @ inner), 0))
        return self._near(whole, ridge), inner, outer, spread

    def _near(self, whole: np.ndarray, ridge: float) -> np.ndarray:
        """Of a channel's own neighbours, beside what `whole` `(2 * channels, channels)` makes of the tap below."""
        at = np.arange(len(self.lag))
        here, before = at, at + len(at)
        gram = np.empty((len(at), 3, 3))
        gram[:, 0, 0] = self.power
        gram[:, 0, 1] = gram[:, 1, 0] = self.past[here, at]
        gram[:, 0, 2] = gram[:, 2, 0] = self.past[before, at]
        gram[:, 1, 2] = gram[:, 2, 1] = self.gram[here, before]
        gram[:, 1, 1] = self.gram[here, here] + ridge
        gram[:, 2, 2] = self.gram[before, before] + ridge
        right = np.stack(
            [
                self.lag - np.einsum("ic,ic->c", self.past, whole),
                self.now[here, at] - np.einsum("ic,ic->c", self.gram[:, here], whole),
                self.now[before, at] - np.einsum("ic,ic->c", self.gram[:, before], whole),
            ],
            axis=1,
        )
        return np.linalg.solve(gram, right[..., None])[..., 0].T
