"""Whisper's encoder, from whatever source: its log-mel frontend, and the blocks driven with masks.

The encoder of transformers accepts 30 s of mel frames and no attention mask. Here the same modules are
driven one by one, so that a row of a batch is what it is alone: mel frames beyond a row's end are zero
before each convolution (the zeros that the convolution would pad with), and no frame attends beyond them.

Two window policies. "crop" runs the blocks on the utterance's own frames, with the first rows of the
position table; the floor of the log-mel (8 below the maximum, in log10) is taken over those frames alone.
"pad" is the original: audio padded with zeros to 30 s, the floor over the whole of it, all 1500 frames run,
and those of the utterance kept. At 30 s the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu
from torch.nn.functional import pad as pad_last
from transformers.audio_utils import mel_filter_bank

from featcache.geometry import SAMPLE_RATE, WHISPER_MEL_HOP, Geometry
from featcache.upstreams.base import Network, Upstream, UpstreamConfig
from featcache.upstreams.padding import Padded, frame_mask
from featcache.upstreams.taps import FINAL, TapRecorder, all_taps, blocks_needed, choose

N_FFT = 400  # samples: 25 ms


class LogMel:
    """Whisper's log-mel spectrogram, the numbers of `WhisperFeatureExtractor`, per row of a batch."""

    def __init__(self, bins: int, window_samples: int, device: torch.device) -> None:
        self.window_samples = window_samples
        self.window = torch.hann_window(N_FFT, device=device)
        # the original's filters, made in float64: torchaudio's, made in float32, move a mel value by 2e-5
        filters = mel_filter_bank(
            N_FFT // 2 + 1, bins, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
        )
        self.filters = torch.from_numpy(filters.T).float().contiguous().to(device)  # (bins, frequencies)

    def __call__(self, waves_bs: Tensor, frames: Sequence[int]) -> Tensor:
        """Float32 `(batch, bins, max(frames))`; row i has `frames[i]` frames of its own, then zeros.

        A frame is centred on its sample. The audio is taken as followed by zeros up to 30 s, and mirrored
        at both ends of that, as the original does; 400 zeros are enough, since the last frame that counts
        reaches 40 samples beyond the utterance.
        """
        tail = max(0, min(N_FFT, self.window_samples - waves_bs.shape[1]))
        spectrum = torch.stft(
            pad_last(waves_bs, (0, tail)), N_FFT, WHISPER_MEL_HOP, window=self.window, return_complex=True
        )
        longest = max(frames)
        power = (spectrum[..., :longest].abs() ** 2).contiguous()
        log_bft = (self.filters @ power).clamp(min=1e-10).log10()
        own = frame_mask(frames, longest, log_bft.device).unsqueeze(1)
        peak = log_bft.masked_fill(~own, -torch.inf).amax((1, 2), keepdim=True)
        return ((torch.maximum(log_bft, peak - 8.0) + 4.0) / 4.0).masked_fill(~own, 0.0)


class WhisperUpstream(Upstream):
    """Features of a Whisper encoder.

    `encoder` is transformers' `WhisperEncoder` in float32; `digests` (`weights_sha256` at least) are its
    part of the identity.
    """

    can_pad = True

    def __init__(self, config: UpstreamConfig, device: str, encoder: Any, **digests: str) -> None:
        super().__init__(config, device)
        available = all_taps(len(encoder.layers), closing=True)
        self.taps = choose(config.taps, available)
        del encoder.layers[blocks_needed(self.taps, len(encoder.layers)) :]
        self.encoder = encoder.eval().requires_grad_(False).to(self.device)
        self.channels = encoder.config.d_model
        window = encoder.embed_positions.num_embeddings * 2 * WHISPER_MEL_HOP
        self.geometry = Geometry.whisper(window)
        self.window_policy = config.window or "crop"
        bins = encoder.config.num_mel_bins
        self.log_mel = LogMel(bins, window, self.device)
        self.recorder = TapRecorder(encoder.layers, encoder.layer_norm, self.taps)
        self.identity = self._identify(
            family="whisper",
            **digests,
            window=self.window_policy,
            frontend={
                "kind": "whisper log-mel",
                "bins": bins,
                "n_fft": N_FFT,
                "hop": WHISPER_MEL_HOP,
                "floor": "8 below the maximum in log10, per utterance, over "
                + ("its own frames" if self.window_policy == "crop" else "the 30 s window"),
            },
            attention=encoder.config._attn_implementation,
        )

    def network(self) -> Network:
        return Network(self.encoder, self.encoder.layers, self.encoder.layer_norm)

    def _features(self, inputs: Padded) -> Tensor:
        samples, waves_bs = inputs.lengths, inputs.to(self.device)
        if self.window_policy == "pad":
            window = self.log_mel.window_samples
            waves_bs = pad_last(waves_bs, (0, window - waves_bs.shape[1]))
            samples = [window] * len(samples)
        mel_frames = [count // WHISPER_MEL_HOP for count in samples]
        frames = [self.frames(count) for count in samples]
        mel_bft = self.log_mel(waves_bs, mel_frames)
        self.recorder.start()
        with self._autocast():
            self._encode(mel_bft, mel_frames, frames)
        return self.recorder.take()

    def _encode(self, mel_bft: Tensor, mel_frames: list[int], frames: list[int]) -> None:
        """The encoder on mel frames; the recorder's hooks see every tap."""
        encoder, equal = self.encoder, min(mel_frames) == max(mel_frames)
        x = gelu(encoder.conv1(mel_bft))
        if not equal:
            x = x * frame_mask(mel_frames, x.shape[-1], x.device).unsqueeze(1)
        x = gelu(encoder.conv2(x)).transpose(1, 2)
        x = x + encoder.embed_positions.weight[: x.shape[1]]
        # bool (batch, 1, 1, frames), true where a key may be attended to
        mask = None if equal else frame_mask(frames, x.shape[1], x.device)[:, None, None, :]
        for block in encoder.layers:
            x = block(x, mask)
        if FINAL in self.taps:
            encoder.layer_norm(x)
