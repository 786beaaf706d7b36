"""`torchaudio:NAME`: every wav2vec 2.0, HuBERT, WavLM and XLS-R bundle that torchaudio names.

Weights come from the bundle's own loader, or from a local checkpoint (`weights`) of the same names. The
output layer of a fine-tuned bundle is left out: no tap needs it.
"""

from __future__ import annotations

import pickle
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchaudio
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torchaudio.models import Wav2Vec2Model, wav2vec2_model, wavlm_model
from torchaudio.pipelines import Wav2Vec2Bundle

from featcache.codec.host import to_device
from featcache.errors import UpstreamError
from featcache.geometry import Geometry
from featcache.upstreams import norms
from featcache.upstreams.base import Network, Upstream, UpstreamConfig, refuse_options
from featcache.upstreams.hashing import sha256_of_state
from featcache.upstreams.padding import Padded, standardise
from featcache.upstreams.taps import TapRecorder, all_taps, blocks_needed, choose

EPSILON = 1e-5  # of the waveform's layer norm, as in torchaudio's bundles
FACTORIES = {"Wav2Vec2": wav2vec2_model, "WavLM": wavlm_model}


class TorchaudioUpstream(Upstream):
    """Features of a torchaudio wav2vec 2.0 model.

    Group norm in the convolutions takes its statistics over a row's own frames, so that batches can be padded
    (`featcache.upstreams.norms`), which they are except on a CPU. torchaudio's WavLM accepts no mask, and is never
    padded; that of transformers is.
    """

    def __init__(self, config: UpstreamConfig, device: str, model: Wav2Vec2Model, normalise: bool, wavlm: bool) -> None:
        super().__init__(config, device)
        transformer = model.encoder.transformer
        # torchaudio's flag is set where the norm comes before the blocks, that is, inside tap 0
        closing = None if transformer.layer_norm_first else transformer.layer_norm
        convolutions = model.feature_extractor.conv_layers
        weights_sha256 = sha256_of_state(model.state_dict())
        grouped = not wavlm and norms.over_own_frames(convolutions[0])
        self.taps = choose(config.taps, all_taps(len(transformer.layers), closing is not None))
        del transformer.layers[blocks_needed(self.taps, len(transformer.layers)) :]
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.channels = transformer.pos_conv_embed.embed_dim
        self.geometry = Geometry.conv(tuple((layer.kernel_size, layer.stride) for layer in convolutions))
        self.can_pad = not wavlm and not (grouped and self.device.type == "cpu")
        self.frontend = partial(standardise, epsilon=EPSILON) if normalise else None
        self.recorder = TapRecorder(transformer.layers, closing, self.taps)
        self._network = Network(self.model, transformer.layers, closing)
        self.identity = self._identify(
            family="torchaudio wavlm" if wavlm else "torchaudio wav2vec2",
            bundle=config.id.partition(":")[2],
            weights_sha256=weights_sha256,
            normalisation=f"mean 0, variance 1, epsilon {EPSILON}" if normalise else "none",
            attention="sdpa",
            **({"group_norm": norms.RULE} if grouped and self.can_pad else {}),
        )

    def network(self) -> Network:
        return self._network

    def _features(self, inputs: Padded) -> Tensor:
        samples, waves_bs = inputs.lengths, inputs.to(self.device)
        frames = [self.frames(count) for count in samples]
        lengths = None if len(set(frames)) == 1 else to_device(frames, self.device)
        self.recorder.start()
        with self._autocast(), norms.own_lengths(samples):
            x, _ = self.model.feature_extractor(waves_bs, None)
            self.model.encoder(x, lengths)
        return self.recorder.take()


def bundles() -> dict[str, Any]:
    """Every bundle by name, as torchaudio lists them."""
    named = {name: getattr(torchaudio.pipelines, name) for name in dir(torchaudio.pipelines)}
    return {name: bundle for name, bundle in named.items() if isinstance(bundle, Wav2Vec2Bundle)}


def load(config: UpstreamConfig, device: str) -> TorchaudioUpstream:
    """The upstream of a bundle. Raises `UpstreamError` for an unknown name or weights that do not fit."""
    refuse_options(config, "revision", "window")
    name = config.id.partition(":")[2]
    bundle = bundles().get(name)
    if bundle is None:
        raise UpstreamError(f"{config.id}: torchaudio has no such bundle; there are: {' '.join(sorted(bundles()))}")
    if config.weights is None:
        model = _from_loader(config, bundle)
    else:
        model = FACTORIES[bundle._model_type](**{**bundle._params, "aux_num_out": None})
        _fill(config, model, _read(config, Path(config.weights)))
    return TorchaudioUpstream(config, device, model, bundle._normalize_waveform, bundle._model_type == "WavLM")


def _from_loader(config: UpstreamConfig, bundle: Any) -> Wav2Vec2Model:
    path = bundle._path
    url = path if path.startswith("https") else f"https://download.pytorch.org/torchaudio/models/{path}"
    try:
        model = bundle.get_model(dl_kwargs={"weights_only": True, "progress": False})
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise UpstreamError(
            f"{config.id}: its weights could not be had ({_line(error)}); "
            f"download {url} elsewhere and give the file as weights"
        ) from error
    model = getattr(model, "model", model)  # the wrapper that normalises waveforms is done without
    model.aux = None
    return model


def _read(config: UpstreamConfig, path: Path) -> dict[str, Tensor]:
    """A state dict from safetensors, or from a torch file through the restricted reader: never code."""
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UpstreamError(f"{config.id}: there is no checkpoint {path}; correct weights") from None
    # The reader of pickles fails on what is none in whatever way its first bytes lead to: KeyError, IndexError.
    except (
        OSError, RuntimeError, ValueError, EOFError, LookupError, AttributeError, TypeError, pickle.UnpicklingError,
        SafetensorError,
    ) as error:  # fmt: skip
        raise UpstreamError(
            f"{config.id}: {path} holds no plain tensors ({_line(error)}); "
            "give a state dict as .safetensors, or as saved by torch.save"
        ) from error
    named = isinstance(state, dict) and all(isinstance(n, str) and isinstance(v, Tensor) for n, v in state.items())
    if not named:
        raise UpstreamError(f"{config.id}: {path} is not a state dict; save model.state_dict() alone")
    return dict(state)


def _fill(config: UpstreamConfig, model: Wav2Vec2Model, state: dict[str, Tensor]) -> None:
    """Load tensors of exactly the model's names, less the output layer and the normalising wrapper's prefix."""
    if all(name.startswith("model.") for name in state):
        state = {name.removeprefix("model."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith("aux.")}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UpstreamError(
            f"{config.id}: {config.weights} is not of this bundle ({_line(error)}); give the bundle's own checkpoint"
        ) from error


def _line(error: BaseException) -> str:
    """The start of an error's text, on one line."""
    return " ".join(str(error).split())[:200]
