"""Raw audio to text: the frozen upstream, then a trained head, with no cache between them.

Recordings longer than the upstream's window go through it in overlapping windows, cut by the same rule as in
a cache (`featcache.plan.windows`), so that the head reads here what it would read there. The head then reads
at most ten minutes of features at once; a word on such an edge may be lost.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache import audio, upstreams
from featcache.errors import MismatchError, UsageError
from featcache.plan import windows
from featcache.spec import values_id
from fusion.run import Run

HEAD_SECONDS = 600.0


@dataclass(frozen=True)
class Transcript:
    """The text of one recording; `seconds` of audio took `wall_seconds`."""

    path: Path
    text: str
    seconds: float
    wall_seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "audio_filepath": str(self.path),
            "text": self.text,
            "duration": round(self.seconds, 3),
            "wall_seconds": round(self.wall_seconds, 3),
        }


class Transcriber:
    """An upstream and a head that was trained on its features. Make one with `Transcriber.load`."""

    def __init__(self, run: Run, upstream: upstreams.Upstream) -> None:
        self.run = run
        self.upstream = upstream
        self._taps = [upstream.taps.index(tap) for tap in run.spec.taps]

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: str = "auto",
        upstream: str | None = None,
        other_values: bool = False,
    ) -> Transcriber:
        """Open a run and the upstream that its head names.

        Args:
            run: the run's folder.
            device: `cpu`, `cuda`, or `auto`: a GPU where it gives the values that the head knows, else the CPU.
            upstream: the upstream's id where the same weights now lie elsewhere.
            other_values: take an upstream with another values id (another kind of device, say), whose
                features may differ from those that the head was trained on.

        Raises:
            UpstreamError: the upstream cannot be loaded.
            MismatchError: the upstream gives other features than the head was trained on.
        """
        if device not in ("auto", "cpu") and not device.startswith("cuda"):
            raise UsageError(f"device {device!r} is not allowed, use auto, cpu or cuda")
        spec = Run.read_spec(run)
        request = dict(spec.upstream) | ({"id": upstream} if upstream else {})
        config = upstreams.UpstreamConfig.model_validate(request)
        devices = ["cuda", "cpu"] if device == "auto" and torch.cuda.is_available() else [device]
        found = ""
        for choice in ("cpu" if name == "auto" else name for name in devices):
            model = upstreams.load(config, device=choice)
            found = values_id(model.identity, audio.AUDIO_RULES, model.taps)
            if found == spec.values_id or other_values:
                return cls(Run.open(run, choice), model)
        raise MismatchError(
            f"{config.id} gives features {found[:12]} here, and {run} was trained on {spec.values_id[:12]}: use "
            "the same weights and kind of device, or --other-values to take what it gives"
        )

    def transcribe(self, path: str | Path) -> Transcript:
        """The text of a recording of any length, rate and number of channels.

        Raises:
            AudioError: the recording is empty or cannot be decoded.
        """
        began = time.monotonic()
        pcm = audio.load(path)
        texts = self.run.transcribe(list(self._pieces(pcm)))
        text = " ".join(text for text in texts if text)
        return Transcript(Path(path), text, len(pcm) / audio.SAMPLE_RATE, time.monotonic() - began)

    def features(self, pcm: np.ndarray) -> np.ndarray:
        """float32 (frames, taps, channels), the taps that the head reads, of float32 (samples,) at 16 kHz."""
        return _join(list(self._windows(pcm)), len(self._taps), self.run.spec.channels)

    def _windows(self, pcm: np.ndarray) -> Iterator[np.ndarray]:
        for window in windows(len(pcm), self.upstream.geometry):
            if window.frames > 0:
                (features,) = self.upstream.forward([pcm[window.start : window.stop]])
                yield features[window.keep : window.keep + window.frames, self._taps]

    def _pieces(self, pcm: np.ndarray) -> Iterator[np.ndarray]:
        """The features in pieces that the head reads at once."""
        most = HEAD_SECONDS * self.run.spec.frame_rate
        piece: list[np.ndarray] = []
        for features in self._windows(pcm):
            if piece and sum(map(len, piece)) + len(features) > most:
                yield _join(piece, len(self._taps), self.run.spec.channels)
                piece = []
            piece.append(features)
        if piece:
            yield _join(piece, len(self._taps), self.run.spec.channels)


def _join(pieces: list[np.ndarray], taps: int, channels: int) -> np.ndarray:
    return np.concatenate(pieces) if pieces else np.zeros((0, taps, channels), np.float32)
