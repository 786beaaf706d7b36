"""The inverse of profile `residual` on any device; the same integers as `featcache.codec.kernels`.

On CUDA Triton's kernels do it (`featcache.codec.gpu`). With torch alone products across channels are two matrix
products a tap; what is left is a recursion over frames (`featcache.codec.scan`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import pad

from featcache.codec import gpu, packing, trial
from featcache.codec.arithmetic import UNIT_BITS
from featcache.codec.neighbours import Neighbours
from featcache.codec.scan import scan


class Decoder(Neighbours):
    """Calibration on one device."""

    def __init__(
        self, calibration: Mapping[str, np.ndarray], scale: np.ndarray, radix: int, device: torch.device
    ) -> None:
        super().__init__(calibration, scale, device)
        self.place = self.put(np.argsort(calibration["order"]).astype(np.int64))
        self.radix = radix
        self.table = self.put(packing.table(radix))
        self._kernels: gpu.Decoding | None = None
        if gpu.usable(device):
            kernels = gpu.Decoding(self, calibration["order"], radix)
            if trial.agrees("decoding", lambda: self._agree(kernels, calibration["order"])):
                self._kernels = kernels

    def _agree(self, kernels: gpu.Decoding, order: np.ndarray) -> bool:
        """Whether kernels give the floats that torch alone gives."""
        stored = trial.blocks(order, self.taps, self.radix)
        block = self.put(stored.reshape(len(stored), -1).view(np.uint8))
        taps = range(self.taps)
        out = torch.empty((len(block), self.taps, self.channels), device=self.device)
        with torch.cuda.device_of(block):
            kernels(block, self.taps, taps, list(out.split(trial.LENGTHS)))
        return torch.equal(out, self._by_torch(block, self.taps, taps))

    def decode_into(self, block: torch.Tensor, depth: int, taps: Sequence[int], out: Sequence[torch.Tensor]) -> None:
        """Decode whole rows laid end to end.

        Args:
            block: int64 `(frames, piece, word)`.
            depth: how many of the lowest taps it takes.
            taps: which are wanted.
            out: float32 `(length, len(taps), channels)` each, one or more of the rows.
        """
        block = block.flatten(1).view(torch.uint8)
        if self._kernels is not None and all(row.is_contiguous() for row in out):
            # Triton launches on the device that is current.
            with torch.cuda.device_of(block):
                self._kernels(block, depth, taps, out)
            return
        found = self._by_torch(block, depth, taps)
        for row, part in zip(out, found.split([len(row) for row in out]), strict=True):
            row.copy_(part)

    def _by_torch(self, block: torch.Tensor, depth: int, taps: Sequence[int]) -> torch.Tensor:
        """float32 `(frames, len(taps), channels)`."""
        first = (block[:, 0] & packing.FIRST) != 0
        return self.smooth(self.reconstruct(self.codes(block)[:, :depth], first), first, taps)

    def codes(self, block: torch.Tensor) -> torch.Tensor:
        """int32 `(frames, taps, channels)` from `(frames, bytes)`."""
        values = self.taps * self.channels
        body = packing.packed_bytes(values, self.radix)
        packed = block[:, packing.HEADER : packing.HEADER + body].int()
        codes = self.table[packed].flatten(1)[:, :values].int()
        frame, place = (codes.abs() == packing.limit_of(self.radix)).nonzero(as_tuple=True)
        if len(frame):
            codes[frame, place] += codes[frame, place].sign() * self._beyond(block[:, packing.HEADER + body :], frame)
        return codes[:, self.place].view(-1, self.taps, self.channels)

    @staticmethod
    def _beyond(tail: torch.Tensor, frame: torch.Tensor) -> torch.Tensor:
        """How far each code at the limit lies beyond it, int32; `frame` is where they are, in their order."""
        count = torch.bincount(frame, minlength=len(tail))
        number = torch.arange(len(frame), device=tail.device) - (count.cumsum(0) - count)[frame]
        size = (tail[frame, number >> 2].int() >> (2 * (number & 3)).int()) & 3
        large = (size == 3).nonzero()[:, 0]
        within = frame[large]
        share = torch.bincount(within, minlength=len(tail))
        at = torch.arange(len(large), device=tail.device) - (share.cumsum(0) - share)[within]
        at = (count[within] + 3) // 4 + 2 * at
        size[large] += tail[within, at].int() | tail[within, at + 1].int() << 8
        return size

    def reconstruct(self, codes: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """int32 `(frames, depth, channels)`."""
        frames, depth, _ = codes.shape
        starts = first.nonzero()[:, 0]
        lengths = torch.diff(starts, append=torch.tensor([frames], device=starts.device))
        out = torch.zeros_like(codes)
        for tap in range(depth):
            code = codes[:, tap]
            moved = (code << UNIT_BITS) - torch.sign(code) * self.centroid[tap]
            added, summary = self.from_below(out, first, tap)
            # Codes of all groups are known, and none says anything of those that were coded before it.
            added = added + self.mixed(self.inputs(summary, code, tap), tap)
            out[:, tap] = scan(moved + added, self.near[tap, 0], starts, lengths)
        return out

    def smooth(self, rec: torch.Tensor, first: torch.Tensor, taps: Sequence[int]) -> torch.Tensor:
        """float32 estimates `(frames, len(taps), channels)`."""
        chosen = list(taps)
        known = rec.shape[1]
        beside = pad(rec, (0, 0, 1, 1))
        below, above = beside[:, chosen], beside[:, [min(t, known - 1) + 2 for t in chosen]]
        return self.estimate(rec[:, chosen], first, below, above, chosen)
