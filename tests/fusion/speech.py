"""A toy language for tests of training: each letter is a few frames of its own pattern, with noise."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from tests.helpers import make_cache

LETTERS = "abcd "


def utterances(
    count: int, seed: int = 0, taps: int = 3, channels: int = 8
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, str]]]:
    """Features float32 (frames, taps, channels) and labels by id; a tenth each is dev and test."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).standard_normal((len(LETTERS), taps, channels))
    features, labels = {}, {}
    for i in range(count):
        # no letter follows itself: nothing in the features would tell two from a long one
        word = "".join(letter for letter, _ in itertools.groupby(rng.choice(list("abcd"), rng.integers(3, 7))))
        text = f"{word[:2]} {word[2:]}".strip()
        frames = [np.repeat(patterns[LETTERS.index(letter)][None], rng.integers(3, 6), 0) for letter in text]
        values = np.concatenate(frames)
        features[f"u{i:04d}"] = (values + 0.1 * rng.standard_normal(values.shape)).astype(np.float32)
        labels[f"u{i:04d}"] = {
            "text": text,
            "split": "dev" if i % 10 == 8 else "test" if i % 10 == 9 else "train",
        }
    return features, labels


def toy_cache(path: Path, count: int = 60, profile: str = "fp16", taps: int = 3) -> Path:
    features, labels = utterances(count, taps=taps)
    labels["u0001"]["text"] = "a" * 200  # more labels than frames
    labels["u0002"]["text"] = "..."  # nothing after normalisation
    labels["u0009"]["text"] = "b" * 20  # more than its frames, but in test: it is scored all the same
    return make_cache(path, features, labels, profile, quarantine={"u0003": "NaN at tap 1"})


RECIPE = """
cache = "{cache}"
name = "toy"
[fuser]
width = 16
[decoder]
kind = "{decoder}"
{parameters}
[train]
steps = {steps}
batch_seconds = 6.0
lr = 1e-2
warmup = 5
eval_every = 10
mask_time = 0.1
mask_taps = 0.1
workers = 2
threads = 1
device = "cpu"
"""


def toy_recipe(cache: Path, steps: int = 30, decoder: str = "blstm") -> str:
    parameters = "hidden = 16\nlayers = 1" if decoder == "blstm" else ""
    return RECIPE.format(cache=cache, steps=steps, decoder=decoder, parameters=parameters)
