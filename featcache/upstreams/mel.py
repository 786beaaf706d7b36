"""`mel:80`: log-mel energies through torchaudio, cached like any model's activations, as the baseline."""

from __future__ import annotations

import warnings

import torchaudio
from torch import Tensor

from featcache.errors import UpstreamError
from featcache.geometry import SAMPLE_RATE, Geometry
from featcache.upstreams.base import Upstream, UpstreamConfig, refuse_options
from featcache.upstreams.padding import Padded
from featcache.upstreams.taps import choose

N_FFT = 512
WINDOW = 400  # samples: 25 ms, Hann
HOP = 160  # samples: 100 frames per second
FLOOR = 1e-8  # of the mel power, below the quantisation noise of 16-bit audio


class MelUpstream(Upstream):
    """The natural logarithm of mel power, one tap `0` of `bins` channels.

    Frame t is centred on sample 160 t, with zeros before and after the audio: the zeros of a padded batch
    are those that a row has alone.
    """

    can_pad = True
    linear_layers = False

    def __init__(self, config: UpstreamConfig, device: str, bins: int) -> None:
        super().__init__(config, device)
        self.taps = choose(config.taps, ("0",))
        self.channels = bins
        self.geometry = Geometry.mel(HOP)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # torchaudio only warns of a filter without a frequency
                mel = torchaudio.transforms.MelSpectrogram(
                    SAMPLE_RATE,
                    n_fft=N_FFT,
                    win_length=WINDOW,
                    hop_length=HOP,
                    n_mels=bins,
                    pad_mode="constant",
                )
        except UserWarning:
            raise UpstreamError(
                f"{config.id}: a filter of {bins} holds no frequency of a {N_FFT}-point spectrum; ask for fewer"
            ) from None
        self.mel = mel.to(self.device)
        self.identity = self._identify(
            family="mel",
            frontend={
                "kind": "natural log of mel power",
                "bins": bins,
                "n_fft": N_FFT,
                "window": WINDOW,
                "hop": HOP,
                "scale": "htk",
                "floor": FLOOR,
                "edges": "zeros",
            },
        )

    def _features(self, inputs: Padded) -> Tensor:
        mel_bft: Tensor = self.mel(inputs.to(self.device))
        return mel_bft[..., :-1].clamp(min=FLOOR).log().transpose(1, 2).unsqueeze(2).contiguous()


def load(config: UpstreamConfig, device: str) -> MelUpstream:
    """The log-mel upstream of `mel:BINS`. Raises `UpstreamError` for a number of bins that cannot be."""
    refuse_options(config, "weights", "revision", "window")
    if config.dtype != "float32":
        raise UpstreamError(f"{config.id}: a spectrogram is computed in float32; leave dtype out")
    bins = config.id.partition(":")[2]
    if not bins.isdecimal() or not 1 <= int(bins) <= N_FFT // 2:
        raise UpstreamError(f"{config.id}: write mel:BINS with 1 to {N_FFT // 2} bins, such as mel:80")
    return MelUpstream(config, device, int(bins))
