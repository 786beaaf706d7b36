"""The inverse of profile `residual` with torch, on any device; the same integers as `featcache.codec.kernels`.

The recursion runs over diagonals `frame + tap`: all taps of a diagonal, all rows and all channels are
independent of one another and are computed at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import pad

from featcache.codec import packing

UNIT_BITS, RANGE, WEIGHT_BITS, SMOOTH_SHIFT = 6, 32767, 12, 8


class Decoder:
    """Calibration on one device."""

    def __init__(
        self, calibration: Mapping[str, np.ndarray], scale: np.ndarray, radix: int, plain: bool, device: torch.device
    ) -> None:
        def put(array: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.taps, self.channels = calibration["mean"].shape
        self.weights = put(calibration["weights"].astype(np.int32))
        self.centroid = put(calibration["centroid"].astype(np.int32))
        self.smoother = put(calibration["smoother"].astype(np.int32))
        self.scale = put(scale)
        self.mean = put(calibration["mean"])
        self.place = put(np.argsort(calibration["order"]).astype(np.int64))
        self.radix = radix
        self.plain = plain
        self.table = None if plain else put(packing.table(radix))

    def decode(self, block: torch.Tensor, depth: int, taps: Sequence[int]) -> torch.Tensor:
        """float32 `(frames, len(taps), channels)` of whole rows laid end to end, as they are stored."""
        first = (block[:, 0] & 1) != 0
        rec = self.reconstruct(self.codes(block)[:, :depth], first)
        return self.smooth(rec, first, taps)

    def codes(self, block: torch.Tensor) -> torch.Tensor:
        """int32 `(frames, taps, channels)`."""
        values = self.taps * self.channels
        if self.table is None:
            return block[:, 1:][:, self.place].int().view(-1, self.taps, self.channels)
        body = packing.packed_bytes(values, self.radix)
        packed = block[:, packing.HEADER : packing.HEADER + body].int()
        codes = self.table[packed].flatten(1)[:, self.place].int()
        tail = block[:, packing.HEADER + body :].int()
        tail = tail.view(len(block), tail.shape[1] // packing.ESCAPE, packing.ESCAPE)
        if tail.shape[1]:
            used = torch.arange(tail.shape[1], device=block.device) < block[:, 1, None]
            frame, entry = used.nonzero(as_tuple=True)
            six = tail[frame, entry]
            position = six[:, 0] | six[:, 1] << 8 | six[:, 2] << 16 | six[:, 3] << 24
            code = (six[:, 4] | six[:, 5] << 8) << 16 >> 16
            codes[frame, position.long()] = code
        return codes.view(-1, self.taps, self.channels)

    def reconstruct(self, codes: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """int32 `(frames, depth, channels)`."""
        frames, depth, channels = codes.shape
        starts = first.nonzero()[:, 0]
        lengths = torch.diff(starts, append=torch.tensor([frames], device=starts.device))
        longest = int(lengths.max()) if len(lengths) else 0
        row = torch.repeat_interleave(torch.arange(len(starts), device=codes.device), lengths)
        time = torch.arange(frames, device=codes.device) - starts[row]
        delta = self.centroid[:depth]
        # What a code adds to the prediction, and skewed so that a diagonal is one slice.
        added = (codes << UNIT_BITS) - torch.sign(codes) * delta
        skewed = codes.new_zeros((longest + depth, len(starts), depth, channels))
        tap = torch.arange(depth, device=codes.device)
        skewed[(time[:, None] + tap), row[:, None], tap] = added
        w0, w1, w2 = (self.weights[:depth, k] for k in range(3))
        half = 1 << (WEIGHT_BITS - 1)
        now = codes.new_zeros((len(starts), depth, channels))
        past = torch.zeros_like(now)
        out = torch.empty_like(skewed)
        for diagonal in range(longest + depth - 1):
            below, corner = (pad(rec[:, :-1], (0, 0, 1, 0)) for rec in (now, past))
            p = (w0 * now + w1 * below + w2 * corner + half) >> WEIGHT_BITS
            r = (p + skewed[diagonal]).clamp_(-RANGE, RANGE)
            # Taps whose row has not begun on this diagonal.
            if diagonal < depth - 1:
                r[:, diagonal + 1 :] = 0
            past, now = now, r
            out[diagonal] = r
        return out[(time[:, None] + tap), row[:, None], tap]

    def smooth(self, rec: torch.Tensor, first: torch.Tensor, taps: Sequence[int]) -> torch.Tensor:
        """float32 estimates at the taps wanted."""
        chosen = list(taps)
        known = rec.shape[1]
        begins = first[:, None, None]
        ends = torch.cat([first[1:], first.new_ones(min(1, len(first)))])[:, None, None]
        here = rec[:, chosen]
        before = torch.cat([torch.zeros_like(here[:1]), here[:-1]]).masked_fill(begins, 0)
        after = torch.cat([here[1:], torch.zeros_like(here[:1])]).masked_fill(ends, 0)
        around = pad(rec, (0, 0, 1, 1))
        below, above = around[:, chosen], around[:, [min(t, known - 1) + 2 for t in chosen]]
        a = self.smoother[chosen]
        total = a[:, 0] * here + a[:, 1] * before + a[:, 2] * after + a[:, 3] * below + a[:, 4] * above
        y = (total + (1 << (SMOOTH_SHIFT - 1))) >> SMOOTH_SHIFT
        return y.float() * self.scale[chosen] + self.mean[chosen]
