"""How many frames an upstream makes of how many samples: arithmetic only, no model, no torch.

A cache stores its `Geometry` as JSON, so that planning and reading never need the model itself.

Three rules cover every family:

- `conv`: a stack of unpadded convolutions (wav2vec 2.0, HuBERT, WavLM, data2vec; also the filter bank of
  w2v-BERT 2.0, whose 25 ms windows every 10 ms, joined in pairs, count like two convolutions);
- `whisper`: `samples // 160` mel frames, halved by a padded convolution of stride 2 (odd counts round up);
- `mel`: `samples // hop` frames of a centred spectrogram.
"""

from __future__ import annotations

from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

SAMPLE_RATE = 16_000  # Hz, of every waveform that reaches an upstream
PCM_RATE = 2 * SAMPLE_RATE  # bytes of a second of it as 16-bit audio
WHISPER_MEL_HOP = 160  # samples between mel frames: 10 ms
WHISPER_WINDOW = 30 * SAMPLE_RATE  # samples that the position table covers: 1500 frames of 320 samples
DEFAULT_WINDOW = 60 * SAMPLE_RATE  # longest input of one forward where the model itself sets no limit


class Geometry(BaseModel):
    """The time axis of an upstream.

    `layers` holds (kernel, stride) in samples or in frames of the layer below; `hop` is samples per frame;
    an input shorter than `min_samples` has no frame; an input longer than `window_samples` must be cut
    into windows first (`None`: no limit). `frame_rate` is frames per second.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: Literal["conv", "whisper", "mel"]
    layers: tuple[tuple[int, int], ...] = ()
    hop: int
    min_samples: int
    window_samples: int | None
    frame_rate: float

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.hop < 1 or self.min_samples < 1:
            raise ValueError("hop and min_samples are at least 1")
        if any(kernel < 1 or stride < 1 for kernel, stride in self.layers):
            raise ValueError("kernels and strides are at least 1")
        if (self.rule == "conv") != bool(self.layers):
            raise ValueError("layers belong to the conv rule, and to no other")
        if self.window_samples is not None and self.window_samples % self.hop:
            raise ValueError(f"window_samples {self.window_samples} is not a multiple of hop {self.hop}")
        if self.frame_rate != SAMPLE_RATE / self.hop:
            raise ValueError(f"frame_rate {self.frame_rate} is not {SAMPLE_RATE} / hop {self.hop}")
        if self.frames(self.min_samples) < 1 or self.frames(self.min_samples - 1) > 0:
            raise ValueError(f"min_samples {self.min_samples} is not the shortest input with a frame")
        return self

    def frames(self, samples: int) -> int:
        """Frames made of `samples` samples at 16 kHz; 0 where the input is too short for one."""
        if self.rule == "conv":
            length = samples
            for kernel, stride in self.layers:
                length = (length - kernel) // stride + 1
                if length <= 0:
                    return 0
            return length
        if self.rule == "whisper":
            return (max(samples, 0) // WHISPER_MEL_HOP + 1) // 2
        return max(samples, 0) // self.hop

    def frames_of(self, samples: np.ndarray) -> np.ndarray:
        """`frames` for many lengths at once: int64 of the same shape."""
        length = np.maximum(np.asarray(samples, np.int64), 0)
        if self.rule == "conv":
            for kernel, stride in self.layers:
                length = (length - kernel) // stride + 1
            return np.maximum(length, 0)
        if self.rule == "whisper":
            return (length // WHISPER_MEL_HOP + 1) // 2
        return length // self.hop

    @classmethod
    def conv(cls, layers: tuple[tuple[int, int], ...], window_samples: int | None = DEFAULT_WINDOW) -> Self:
        """The geometry of unpadded convolutions; the window is rounded down to whole hops."""
        hop, receptive = 1, 1
        for kernel, stride in layers:
            receptive += (kernel - 1) * hop
            hop *= stride
        if window_samples is not None:
            window_samples -= window_samples % hop
        return cls(
            rule="conv",
            layers=layers,
            hop=hop,
            min_samples=receptive,
            window_samples=window_samples,
            frame_rate=SAMPLE_RATE / hop,
        )

    @classmethod
    def whisper(cls, window_samples: int = WHISPER_WINDOW) -> Self:
        """The geometry of Whisper's encoder: 50 frames per second, windows of 30 s."""
        hop = 2 * WHISPER_MEL_HOP
        return cls(
            rule="whisper",
            hop=hop,
            min_samples=WHISPER_MEL_HOP,
            window_samples=window_samples,
            frame_rate=SAMPLE_RATE / hop,
        )

    @classmethod
    def mel(cls, hop: int, window_samples: int | None = DEFAULT_WINDOW) -> Self:
        """The geometry of a centred spectrogram without its last, half-empty frame."""
        if window_samples is not None:
            window_samples -= window_samples % hop
        return cls(
            rule="mel",
            hop=hop,
            min_samples=hop,
            window_samples=window_samples,
            frame_rate=SAMPLE_RATE / hop,
        )
