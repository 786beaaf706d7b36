"""What a cache is: the immutable description in its root metadata, and the ids that follow from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from featcache.digest import digest, digest_arrays
from featcache.geometry import Geometry

FORMAT = 1
# How utterances longer than the upstream's window are cut; see `featcache.windows`.
WINDOW_RULE: dict[str, Any] = {"version": 1, "overlap_seconds": 2.0}
# What an identity says of `rows` where those of a batch run as one; on a CPU each runs alone.
ROWS_BATCHED = "batched"
# Audio of one forward pass on anything but a CPU, unless the user says otherwise: so much for each GiB of the device's
# memory, within limits, and the first where that is not known. To launch wav2vec 2.0 Base in bfloat16 takes an H100's
# host about 30 ms and to launch the encoding 10, whatever the batch, and a GPU is through 400 s of audio in 50 ms: only
# with more does it never wait for its host. 240 s hold about 0.5 GB of the model's activations, and a few times that
# while it runs.
DEVICE_BATCH_SECONDS = 240.0
SECONDS_PER_GIB = 10.0
LEAST_DEVICE_SECONDS, MOST_DEVICE_SECONDS = 60.0, 960.0


class Layout(BaseModel):
    """How the activations are laid out. It decides no value, and is fixed when the cache is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # 64 frames (1.3 s) a chunk: measured against 256 in docs/decisions/0002-layout.md.
    chunk_frames: int = 64
    shard_frames: int = 61_440
    shard_bytes: int = 256 * 1024 * 1024
    # Audio of one forward pass, padding included.
    batch_seconds: float = 60.0
    zstd_level: int = 3

    def on(self, device: str, memory: int | None = None) -> Layout:
        """This layout with what was left open as suits a device: "cpu", or another as torch names it.

        Args:
            memory: bytes of the device's own memory; None where it is not known.
        """
        if device.startswith("cpu") or "batch_seconds" in self.model_fields_set:
            return self
        return self.model_copy(update={"batch_seconds": _device_batch_seconds(memory)})

    def frames_per_shard(self, bytes_per_frame: int, total_frames: int) -> int:
        """Frames of one shard, a multiple of the chunk; no more than there are to store."""
        limit = min(self.shard_frames, self.shard_bytes // bytes_per_frame, max(total_frames, 1))
        chunks = -(-limit // self.chunk_frames) if limit == total_frames else limit // self.chunk_frames
        return max(1, chunks) * self.chunk_frames


def _device_batch_seconds(memory: int | None) -> float:
    if memory is None:
        return DEVICE_BATCH_SECONDS
    # Cards of one name differ by some MB in what they let programs have.
    return min(max(SECONDS_PER_GIB * round(memory / 2**30), LEAST_DEVICE_SECONDS), MOST_DEVICE_SECONDS)


class Forecast(BaseModel):
    """What a profile takes and loses on the calibration's activations: bits per value, the worst tap's NMSE."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits_per_value: float
    nmse: float


class CacheSpec(BaseModel):
    """The description in the attributes of a cache's root group.

    `upstream` is the request (`featcache.upstreams.UpstreamConfig`), `identity` what the loaded model says
    decides its values, `audio` the rules of decoding. `forecasts` are of profiles as users write them, for
    `plan`; caches made before there were any have none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    upstream: dict[str, Any]
    identity: dict[str, Any]
    audio: dict[str, Any]
    window_rule: dict[str, Any]
    geometry: Geometry
    can_pad: bool
    taps: tuple[str, ...]
    channels: int
    layout: Layout
    profile: str
    profile_version: int
    parameters: dict[str, Any]
    bits_per_value: float
    forecasts: dict[str, Forecast] = {}
    values_id: str
    encoding_id: str
    parent: str | None = None

    @property
    def profile_text(self) -> str:
        return format_profile(self.profile, self.parameters)

    @property
    def upstream_id(self) -> str:
        return str(self.upstream["id"])


def format_profile(name: str, parameters: Mapping[str, Any]) -> str:
    """A profile as users write it, as in `residual:1.5` or `residual:last=1.0,nmse=0.02`.

    Here, so that what only names a profile does not wait for torch, which the codecs are made with.
    """
    given = [str(value) if key == "bits" else f"{key}={value}" for key, value in sorted(parameters.items())]
    return f"{name}:{','.join(given)}" if given else name


def values_id(identity: dict[str, Any], audio: dict[str, Any], taps: tuple[str, ...]) -> str:
    """The digest of all that decides the values: model, front end, taps, audio rules, window rule."""
    return digest({"identity": identity, "audio": audio, "windows": WINDOW_RULE, "taps": list(taps)})


def encoding_id(
    profile: str, version: int, parameters: Mapping[str, Any], calibration: Mapping[str, np.ndarray]
) -> str:
    """The digest of all that decides how values become codes."""
    return digest([profile, version, dict(parameters), digest_arrays(calibration)])
