"""The samples of a view, from those of its recording. A rule here is never changed under its name; see `views`.

Chance is seeded by the row's id and the view's text, through SHA-256: the same row gives the same samples in any
order, batch, process and on any machine, up to the last bits of its arithmetic.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np

from featcache import audio
from featcache.geometry import SAMPLE_RATE
from featcache.views import View

PINK = ([0.049922035, -0.095993537, 0.050612699, -0.004408786], [1.0, -2.494956002, 2.017265875, -0.522189400])
"""Zeros and poles of a filter that makes white noise fall by 3 dB an octave, as speech does more or less.

J. O. Smith, Spectral Audio Signal Processing, "Synthesis of 1/F Noise (Pink Noise)"."""
SETTLING = 1430
"""Samples after which that filter has forgotten how it began (by 60 dB; from the same page)."""


def augment(pcm: audio.Pcm, view: View, planned: int, row_id: str, start: int = 0) -> audio.Pcm:
    """What a view makes of a recording, or of one window of it.

    Args:
        pcm: float32 `(view.source(planned),)`, finite, 16 kHz.
        planned: samples of the result.
        row_id: of the view, which seeds its chance.
        start: first sample of the window in the view: each has noise of its own, and all stand in one room.

    Returns:
        float32 `(planned,)`, finite; scaled down as a whole where it would go beyond 1.

    Raises:
        AudioError: too short for its speed.
    """
    made = pcm.astype(np.float64)
    for name, value in view.steps if len(pcm) else ():
        if name == "speed":
            slow = audio.resample(made.astype(np.float32), view.rate)
            made = audio.fit_length(slow, planned).astype(np.float64)  # two roundings: one sample at most
        elif name == "noise":
            made = _with_noise(made, value, _chance(row_id, name, value, start))
        else:
            made = _reverberated(made, value, _chance(row_id, name, value))
    peak = np.abs(made).max(initial=0.0)
    return (made / max(peak, 1.0)).astype(np.float32)


def _chance(*what: object) -> np.random.RandomState:
    """Seeded by what it is for. `RandomState`, since numpy keeps its numbers the same for ever."""
    digest = hashlib.sha256("\n".join(map(str, what)).encode()).digest()
    return np.random.RandomState(np.frombuffer(digest, "<u4"))


def _with_noise(speech: np.ndarray, decibels: float, chance: np.random.RandomState) -> np.ndarray:
    """Pink noise with `10 log10(power of speech / power of noise) = decibels`; none where there is no sound."""
    from scipy.signal import lfilter

    noise = lfilter(*PINK, chance.standard_normal(SETTLING + len(speech)))[SETTLING:]
    level = _root_mean_square(speech) * 10 ** (-decibels / 20)
    return speech + noise * (level / _root_mean_square(noise))


def _reverberated(speech: np.ndarray, seconds: float, chance: np.random.RandomState) -> np.ndarray:
    """Convolved with a made room; what rings on behind the end is cut.

    The direct sound comes first; behind it is noise under an exponential decay by 60 dB in `seconds` (J.-D. Polack,
    La transmission de l'énergie sonore dans les salles, 1988), with as much energy. Both together have energy 1.
    """
    from scipy.signal import oaconvolve

    time = np.arange(1, math.ceil(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    tail = chance.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    room = np.concatenate([[1.0], tail / np.linalg.norm(tail)]) / math.sqrt(2)
    heard: np.ndarray = oaconvolve(speech, room)[: len(speech)]
    return heard


def _root_mean_square(samples: np.ndarray) -> float:
    return math.sqrt(float(np.mean(np.square(samples))))
