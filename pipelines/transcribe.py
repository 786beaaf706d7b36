"""Raw audio to text: the frozen upstream, then a trained head, with no cache between them.

A recording streams through: samples go through the upstream in overlapping windows, cut by the same rule as in a
cache (`featcache.windows`), so that the head reads here what it would read there. The head in its turn reads
windows of features, each giving its logits but for two seconds at an inner edge. Their text is read off in
stretches that end in a pause. So memory does not grow with the length of the recording.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featcache import audio, upstreams
from featcache.errors import AudioError, MismatchError, UpstreamError
from featcache.geometry import SAMPLE_RATE
from featcache.spec import values_id
from featcache.upstreams import places
from featcache.windows import stream_windows
from fusion import checkpoint, decode
from fusion.align import Word, align_tokens, words_of
from fusion.distributed import pick_device
from fusion.run import Run
from fusion.tasks import CtcTask
from fusion.text import BLANK, space_token
from pipelines.recordings import Recording
from pipelines.subtitles import srt

HEAD_SECONDS = 120.0
"""Of features that the head reads at once."""
HEAD_MARGIN = 2.0
"""Seconds at an inner edge of them whose logits are not kept."""
STRETCH = 20.0
"""Seconds after which the next pause ends a stretch of text; shorter recordings are read as one."""
LONGEST_STRETCH = 60.0
"""Seconds after which a stretch ends, pause or not."""
PAUSE = 0.4
"""Seconds without a token that are a pause."""


@dataclass(frozen=True)
class Transcript:
    """The text of one recording; `seconds` of audio took `wall_seconds`. Times are from where it begins."""

    recording: Recording
    text: str
    words: tuple[Word, ...]
    seconds: float
    wall_seconds: float

    def as_json(self) -> dict[str, Any]:
        return self.recording.as_json() | {
            "text": self.text,
            "duration": round(self.seconds, 3),
            "wall_seconds": round(self.wall_seconds, 3),
            "words": [asdict(word) | {"confidence": round(word.confidence, 4)} for word in self.words],
        }


class Transcriber:
    """An upstream and a head that was trained on its features. Make one with `Transcriber.load`."""

    def __init__(self, run: Run, upstream: upstreams.Upstream, decoder: str = decode.GREEDY) -> None:
        self.run = run
        self.upstream = upstream
        self._taps = [upstream.taps.index(tap) for tap in run.spec.taps]
        self._tokens: Callable[[Tensor], Sequence[int]] = decode.best_tokens
        if decoder != decode.GREEDY:
            search = decode.load(run, decoder)
            self._tokens = lambda log_probs: search(log_probs).tokens

    @classmethod
    def load(
        cls,
        run: str | Path,
        *,
        device: str = "auto",
        upstream: str | None = None,
        weights: str | None = None,
        other_values: bool = False,
        decoder: str = decode.GREEDY,
    ) -> Transcriber:
        """Open a run and the upstream that its head names.

        Args:
            run: the run's folder.
            device: `cpu`, `cuda`, `cuda:N`, or `auto`: a GPU where it gives the values that the head knows, else
                the CPU.
            upstream: the upstream's id where the same weights now lie elsewhere.
            weights: the checkpoint of a torchaudio bundle where it now lies elsewhere.
            other_values: take an upstream with another values id (another kind of device, say), whose
                features may differ from those that the head was trained on.
            decoder: `greedy`, or a beam search that `fusion decode` has tuned for this run (`fusion.decode.load`).

        Raises:
            UpstreamError: the upstream cannot be loaded.
            MismatchError: the upstream gives other features than the head was trained on.
            UsageError: there is no such decoder or device.
        """
        if device != "auto":
            pick_device(device, key="--device")
        spec = Run.read_spec(run)
        moved = {"id": upstream, "weights": weights}
        request = dict(spec.upstream) | {key: value for key, value in moved.items() if value}
        config = upstreams.UpstreamConfig.model_validate(request)
        lost = places.missing(config)
        if lost:
            raise UpstreamError(f"{run}: {lost}")
        devices = ["cuda", "cpu"] if device == "auto" and torch.cuda.is_available() else [device]
        found = ""
        for choice in ("cpu" if name == "auto" else name for name in devices):
            model = upstreams.load(config, device=choice)
            found = values_id(model.identity, audio.AUDIO_RULES, model.taps)
            if found == spec.values_id or other_values:
                return cls(Run.open(run, choice), model, decoder)
        raise MismatchError(
            f"{config.id} gives features {found[:12]} here, and {run} was trained on {spec.values_id[:12]}: use "
            "the same weights and kind of device, or --other-values to take what it gives"
        )

    def transcribe(self, recording: Recording | str | Path) -> Transcript:
        """The text of a recording of any length, rate and number of channels.

        Raises:
            AudioError: the recording is empty or cannot be decoded, or the model makes no numbers of it.
        """
        if not isinstance(recording, Recording):
            recording = Recording.of(recording)
        began = time.monotonic()
        samples = 0

        def blocks() -> Iterator[np.ndarray]:
            nonlocal samples
            for block in audio.stream(recording.path, offset=recording.offset, duration=recording.duration):
                samples += len(block)
                yield block

        text, words = self._read(self._windows(blocks()))
        return Transcript(recording, text, words, samples / SAMPLE_RATE, time.monotonic() - began)

    def features(self, pcm: np.ndarray) -> np.ndarray:
        """float32 (frames, taps, channels), the taps that the head reads, of float32 (samples,) at 16 kHz."""
        pieces = list(self._windows([pcm]))
        return np.concatenate(pieces) if pieces else self._nothing()

    def _nothing(self) -> np.ndarray:
        return np.zeros((0, len(self._taps), self.run.spec.channels), np.float32)

    def _windows(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        for window, pcm in stream_windows(blocks, self.upstream.geometry):
            if window.frames > 0:
                (features,) = self.upstream.forward([pcm])
                features = features[window.keep : window.keep + window.frames]
                # As in extraction: the text of what is no number would be empty, as of silence.
                bad = np.flatnonzero(~np.isfinite(features).all(axis=(0, 2)))
                if len(bad):
                    raise AudioError(f"the model's activations are not finite from tap {self.upstream.taps[bad[0]]} on")
                yield features[:, self._taps]

    def _read(self, features: Iterable[np.ndarray]) -> tuple[str, tuple[Word, ...]]:
        task = self.run.task
        if not isinstance(task, CtcTask):  # one label for all of it: it has to be seen as a whole
            whole = list(features)
            return "".join(self.run.transcribe([np.concatenate(whole)] if whole else [])), ()
        rate = self.run.logit_rate
        texts: list[str] = []
        words: list[Word] = []
        for start, log_probs in stretches(self._log_probs(features), rate, space_token(task.tokeniser)):
            tokens = self._tokens(log_probs)
            texts.append(task.tokeniser.decode(tokens).strip())
            found = words_of(align_tokens(log_probs, tokens), task.tokeniser, rate)
            at = start / rate
            words += [replace(word, start=round(word.start + at, 4), end=round(word.end + at, 4)) for word in found]
        return " ".join(text for text in texts if text), tuple(words)

    def _log_probs(self, features: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Log probabilities (frames, outputs) in pieces that abut."""
        stride, frame_rate = self.run.spec.stride, self.run.spec.frame_rate
        size = max(round(HEAD_SECONDS * frame_rate / stride), 1) * stride
        margin = min(round(HEAD_MARGIN * frame_rate / stride) * stride, (size - stride) // 2 // stride * stride)
        held, keep = self._nothing(), 0
        for piece in features:
            held = np.concatenate([held, piece])
            while len(held) > size:
                log_probs = self.run.log_probs(held[:size])
                yield log_probs[keep // stride : (size - margin) // stride]
                held, keep = held[size - 2 * margin :], margin
        if len(held):
            yield self.run.log_probs(held)[keep // stride :]


def stretches(pieces: Iterable[Tensor], rate: float, space: int | None = None) -> Iterator[tuple[int, Tensor]]:
    """Log probabilities (frames, outputs), `rate` frames a second, cut in pauses; with the first frame of each.

    Args:
        space: the token between words, where there is one: blanks beside it are no pause within a word.
    """
    held: list[Tensor] = []
    start = there = 0
    least, most, pause = round(STRETCH * rate), round(LONGEST_STRETCH * rate), max(round(PAUSE * rate), 1)
    for piece in pieces:
        held.append(piece)
        there += len(piece)
        while there > most:
            log_probs = torch.cat(held)
            cut = _pause(log_probs[:most].argmax(-1), least, pause, space)
            yield start, log_probs[:cut]
            held, there, start = [log_probs[cut:]], there - cut, start + cut
    if there:
        yield start, torch.cat(held)


def _pause(best: Tensor, least: int, pause: int, space: int | None) -> int:
    """The frame to cut at: amid the first pause after `least` frames, else amid the longest run of blanks.

    A drawn-out word has long runs of blanks too, and two stretches would make two words of it: where there are runs
    beside a space, only those count.
    """
    edges = torch.cat([torch.tensor([False]), best == BLANK, torch.tensor([False])]).int().diff()
    runs = list(zip(edges.eq(1).nonzero().flatten().tolist(), edges.eq(-1).nonzero().flatten().tolist(), strict=True))
    late = [(begin, end) for begin, end in runs if (begin + end) // 2 >= least]
    tokens = best.tolist()
    beside = [(begin, end) for begin, end in late if space in (*tokens[begin - 1 : begin], *tokens[end : end + 1])]
    late = beside or late
    for begin, end in late:
        if end - begin >= pause:
            return (begin + end) // 2
    begin, end = max(late, key=lambda run: run[1] - run[0], default=(len(best), len(best)))
    return (begin + end) // 2


def write(transcript: Transcript, folder: Path) -> None:
    """NAME.txt, NAME.json and NAME.srt below a folder, each whole or not at all."""
    base, name = folder / transcript.recording.name, Path(transcript.recording.name).name
    checkpoint.write_bytes(base.with_name(f"{name}.txt"), (transcript.text + "\n").encode())
    checkpoint.write_json(base.with_name(f"{name}.json"), transcript.as_json())
    checkpoint.write_bytes(base.with_name(f"{name}.srt"), srt(transcript.words).encode())
