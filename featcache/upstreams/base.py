"""What every upstream is: its configuration, and the protocol that stage one drives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from featcache import products
from featcache.crew import one_thread
from featcache.errors import UpstreamError
from featcache.geometry import SAMPLE_RATE, Geometry
from featcache.upstreams import taps as tap_rules
from featcache.upstreams.padding import Padded, pad

# Raise when a rule in this package changes the values of an unchanged model; part of the values id.
RULES_VERSION = 1


@dataclass(frozen=True)
class Prepared:
    """Waveforms ready for a forward pass.

    Attributes:
        frames: of each waveform.
        groups: which of them go through the model together.
        inputs: of each group; waveforms still, where `rows_alone` and threads do that as well.
    """

    frames: list[int]
    groups: list[list[int]]
    inputs: list[Any]
    rows_alone: bool


# Begins a forward of what was prepared; the call that it returns ends it.
Begin = Callable[[Prepared], Callable[[], list[Tensor]]]
# As `map`, in whose place the `map` of a pool of threads may stand.
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


class UpstreamConfig(BaseModel):
    """Which model, and how it is run.

    `id` is `torchaudio:NAME`, `hf:org/name@revision`, `hf:FOLDER`, `package:NAME` or `mel:BINS`. `weights`
    is a local checkpoint for a torchaudio bundle. `taps` are tap names or "all". `dtype` is the autocast
    type. `window` is Whisper's policy: "crop" (the default) runs the layers on the utterance's own frames,
    "pad" on 30 s of zero-padded audio as the model was trained. `revision` is that of a hub model, the same
    as after `@` in the id.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    weights: str | None = None
    taps: Literal["all"] | tuple[str, ...] = "all"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    window: Literal["crop", "pad"] | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Network:
    """The weights of an upstream, for those who train it. Stage one never does."""

    module: nn.Module
    """All of it, frozen and in evaluation mode."""
    blocks: nn.ModuleList
    closing: nn.Module | None
    """The norm after the last block, where the model has one."""


class Upstream(ABC):
    """A frozen model that turns 16 kHz waveforms into activations `(frames, taps, channels)`.

    `taps` are the stored tap names in order, `identity` is all that decides the values (JSON, no paths),
    and `can_pad` says that a padded batch gives each row the features it has alone; where it does not,
    inputs of unequal length are run in groups of equal length, so that the result is the same either way.
    It is part of a cache's plan. On a CPU it stays false for models with group norm, which are padded elsewhere.

    On a CPU (`rows_alone`) each row of a batch runs alone on one thread, as many rows at a time as torch had
    threads when the upstream was made. The result is bit for bit what the row is alone, on any number of
    cores (a matrix product over two threads rounds otherwise than over one), and a busy neighbour costs
    its share of the time instead of stalling every operation.
    """

    config: UpstreamConfig
    device: torch.device
    taps: tuple[str, ...]
    channels: int
    geometry: Geometry
    can_pad: bool
    identity: dict[str, Any]
    # A row of the model's input from a waveform, on the host; None where that is the waveform itself.
    frontend: Callable[[Tensor], Tensor] | None = None
    # Whether the model has any: what computes their products is part of the identity.
    linear_layers = True

    def __init__(self, config: UpstreamConfig, device: str | torch.device) -> None:
        self.config = config
        self.device = torch.device(device)
        self.rows_alone = self.device.type == "cpu"
        self._pool = ThreadPoolExecutor(
            torch.get_num_threads(), thread_name_prefix="upstream", initializer=torch.set_num_threads, initargs=(1,)
        )

    @property
    def id(self) -> str:
        return self.config.id

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.geometry.hop

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.geometry.frame_rate

    @property
    def window_samples(self) -> int | None:
        """The longest input of one forward, in samples."""
        return self.geometry.window_samples

    @property
    def min_samples(self) -> int:
        """A shorter input has no frame."""
        return self.geometry.min_samples

    def frames(self, samples: int) -> int:
        """Frames made of `samples` samples, exactly."""
        return self.geometry.frames(samples)

    def forward(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Features of float32 waveforms `(samples,)`: float32 `(frames, taps, channels)` each, order kept."""
        return [features.cpu().numpy() for features in self.forward_tensors(waveforms)]

    def forward_tensors(self, waveforms: Sequence[np.ndarray]) -> list[Tensor]:
        """As `forward`, the features still on the device. NaN or infinity is passed on, not judged.

        Raises `UpstreamError` where a waveform is longer than `window_samples`.
        """
        with self._rows_on_threads():
            return self._begin(self.prepare(waveforms))()

    @contextmanager
    def overlapping(self) -> Iterator[Begin]:
        """A way to begin a forward before the one before has ended; values and order are those of `forward_tensors`.

            with upstream.overlapping() as begin:
                first, second = begin(upstream.prepare(one_batch)), begin(upstream.prepare(another))
                features = first()

        On a CPU no thread then stands still while others are at the last rows of a batch.
        """
        with self._rows_on_threads():
            yield self._begin

    def prepare(self, waveforms: Sequence[np.ndarray], each: Each = map) -> Prepared:
        """All of a forward pass that needs no device: any thread may do it ahead of the one that runs the model.

        Args:
            each: does something for each of the waveforms.

        Raises `UpstreamError` where a waveform is longer than `window_samples`.
        """
        frames = [self.frames(len(waveform)) for waveform in waveforms]
        window = self.window_samples
        for waveform in waveforms:
            if window is not None and len(waveform) > window:
                raise UpstreamError(
                    f"{self.id}: {len(waveform)} samples exceed the window of {window}; cut into windows first"
                )
        samples = [len(waveform) for waveform in waveforms]
        alone = [[i] for i in range(len(frames)) if frames[i]]
        groups = alone if self.rows_alone else self._groups(samples, frames)
        waves = [[_tensor(waveforms[i]) for i in group] for group in groups]
        inputs = waves if self.rows_alone else [self._inputs(group, each) for group in waves]
        return Prepared(frames, groups, inputs, self.rows_alone)

    def _begin(self, prepared: Prepared) -> Callable[[], list[Tensor]]:
        def run(inputs: Any) -> Tensor:
            with torch.inference_mode(), _steady(self.device), products.by_onednn(self.device):
                return self._features(self._inputs(inputs) if prepared.rows_alone else inputs)

        # In turn, or on the pool's threads where rows run alone.
        results: Iterable[Tensor] = (
            self._pool.map(run, prepared.inputs)
            if prepared.rows_alone
            else iter([run(inputs) for inputs in prepared.inputs])
        )
        return lambda: self._rows(prepared.groups, results, prepared.frames)

    def forward_live(self, waves: Sequence[Tensor]) -> list[Tensor]:
        """As `forward_tensors`, of CPU waveforms `(samples,)`, but open to gradients and on all threads.

        Rows go through the model together, padded where `can_pad`, by equal length where not. The values are
        those of `forward_tensors` up to the rounding of another batch.
        """
        samples = [len(wave) for wave in waves]
        frames = [self.frames(count) for count in samples]
        groups = self._groups(samples, frames)
        inputs = [self._inputs([waves[i] for i in group]) for group in groups]
        with products.by_onednn(self.device):
            return self._rows(groups, [self._features(part) for part in inputs], frames)

    def network(self) -> Network:
        """The model's own modules. What is added to or changed in them shows in `forward_live`.

        Raises `UpstreamError` where there is nothing to train.
        """
        raise UpstreamError(f"{self.id} has no weights to train; name a model")

    def _rows(self, groups: list[list[int]], batches: Iterable[Tensor], frames: list[int]) -> list[Tensor]:
        """The rows of batches `(batch, frames, taps, channels)` in the order of `frames`, each cut to its own."""
        features = [torch.empty((0, len(self.taps), self.channels), device=self.device)] * len(frames)
        for group, batch_btlc in zip(groups, batches, strict=True):
            for row, i in enumerate(group):
                features[i] = batch_btlc[row, : frames[i]]
                if len(features[i]) != frames[i]:
                    raise RuntimeError(f"{self.id}: {len(features[i])} frames where {frames[i]} were computed")
        return features

    def _rows_on_threads(self) -> AbstractContextManager[None]:
        """Where rows run alone, torch has one thread: the matrix library has one setting for all of ours."""
        return one_thread() if self.rows_alone else nullcontext()

    def _inputs(self, waves: list[Tensor], each: Each = map) -> Padded:
        """What `_features` takes, of waveforms that all have at least one frame; lengths differ only where `can_pad`.

        Args:
            each: makes rows of them, where the model does not take them as they are.
        """
        return pad(waves if self.frontend is None else list(each(self.frontend, waves)), self.device)

    @abstractmethod
    def _features(self, inputs: Padded) -> Tensor:
        """Float32 `(batch, frames, taps, channels)`; frames beyond a row's own count are cut by the caller."""

    def _groups(self, samples: list[int], frames: list[int]) -> list[list[int]]:
        """The rows of each run of the model: all at once, or by equal length; rows without a frame in none."""
        groups: dict[int, list[int]] = {}
        for i, length in enumerate(samples):
            if frames[i]:
                groups.setdefault(0 if self.can_pad else length, []).append(i)
        return list(groups.values())

    def _autocast(self) -> torch.autocast:
        kind = self.config.dtype
        dtype = torch.bfloat16 if kind == "float32" else getattr(torch, kind)
        return torch.autocast(self.device.type, dtype=dtype, enabled=kind != "float32")

    def _identify(self, **family: Any) -> dict[str, Any]:
        """The identity: what all families share, and `family` (JSON values, sorted by name)."""
        shared = {
            "rules": RULES_VERSION,
            "sample_rate": SAMPLE_RATE,
            "geometry": self.geometry.model_dump(mode="json"),
            "taps": list(self.taps),
            "tap_convention": tap_rules.CONVENTION,
            "autocast": self.config.dtype,
            "device": self.device.type,
            "rows": "alone, one thread" if self.device.type == "cpu" else "batched",
            "tf32": False,
        }
        if self.linear_layers and self.config.dtype == "float32" and products.used_on(self.device):
            shared["products"] = products.RULE
        return dict(sorted({**shared, **family}.items()))


def refuse_options(config: UpstreamConfig, *names: str) -> None:
    """Raise `UpstreamError` where an option is set that means nothing for this family."""
    for name in names:
        if getattr(config, name) is not None:
            raise UpstreamError(f"{config.id}: the option {name} has no meaning for this upstream; leave it out")


def _tensor(waveform: np.ndarray) -> Tensor:
    array = np.ascontiguousarray(waveform, dtype=np.float32)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


@contextmanager
def _steady(device: torch.device) -> Iterator[None]:
    """On CUDA, all in full float32, and convolutions by the same algorithm each time.

    TF32 is cuDNN's default, and that of matrix products where TORCH_ALLOW_TF32_CUBLAS_OVERRIDE is set, as some
    vendors' containers have it, or another module of the program asks for it.

    And no attention of cuDNN's, which makes a plan for each new shape, in tens of milliseconds, and hardly any two
    batches have the same.
    """
    if device.type != "cuda":
        yield
        return
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    convolutions = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with convolutions, sdpa_kernel(kernels), _full_products():
        yield


@contextmanager
def _full_products() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    if not matmul.allow_tf32:
        yield
        return
    matmul.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32 = True
