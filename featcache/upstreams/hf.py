"""`hf:`: speech encoders of transformers, from a hub at a pinned commit or from a local folder.

wav2vec 2.0 (with XLS-R and MMS), HuBERT, WavLM, data2vec-audio, w2v-BERT 2.0, and Whisper's encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from featcache.errors import UpstreamError
from featcache.geometry import Geometry
from featcache.upstreams import convolutions, masks, norms
from featcache.upstreams.base import Network, Upstream, UpstreamConfig, refuse_options
from featcache.upstreams.hub import Checkpoint, find
from featcache.upstreams.padding import Padded, frame_mask, standardise
from featcache.upstreams.taps import TapRecorder, all_taps, blocks_needed, choose

EPSILON = 1e-7  # of the waveform's variance, as in Wav2Vec2FeatureExtractor
CLASSES = {
    "wav2vec2": "Wav2Vec2Model",
    "hubert": "HubertModel",
    "wavlm": "WavLMModel",
    "data2vec-audio": "Data2VecAudioModel",
    "wav2vec2-bert": "Wav2Vec2BertModel",
}
# Where the tensors that decide taps are.
ON_THE_WAY = ("feature_extractor.", "feature_projection.", "encoder.")


class TransformersUpstream(Upstream):
    """Features of an encoder of transformers, its blocks in `model.encoder.layers`.

    Group norm in the convolutions takes its statistics over a row's own frames, so that batches can be padded
    (`featcache.upstreams.norms`), which they are except on a CPU. data2vec's stacked position convolutions carry
    padding into the utterance, and so does HuBERT's batch norm before one: those are never padded.

    Except on a CPU, masks are made without waiting for the device (`featcache.upstreams.masks`), and two
    convolutions are matrix products (`featcache.upstreams.convolutions`).
    """

    def __init__(self, config: UpstreamConfig, device: str, model: Any, checkpoint: Checkpoint) -> None:
        super().__init__(config, device)
        settings, kind = model.config, model.config.model_type
        blocks = model.encoder.layers
        closing = model.encoder.layer_norm if getattr(settings, "do_stable_layer_norm", False) else None
        self.taps = choose(config.taps, all_taps(len(blocks), closing is not None))
        del blocks[blocks_needed(self.taps, len(blocks)) :]
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.channels = settings.hidden_size
        frontend = FilterBank(checkpoint) if kind == "wav2vec2-bert" else Waveform(checkpoint)
        self.frontend = frontend
        self.geometry = frontend.geometry(settings)
        alike = kind in ("wav2vec2", "hubert", "wavlm")
        masked = alike and not getattr(settings, "conv_pos_batch_norm", False)
        grouped = masked and norms.over_own_frames(model.feature_extractor.conv_layers[0])
        self.can_pad = kind == "wav2vec2-bert" or (masked and not (grouped and self.device.type == "cpu"))
        self.recorder = TapRecorder(blocks, closing, self.taps)
        self._network = Network(self.model, blocks, closing)
        attention = "mha" if kind == "wavlm" else settings._attn_implementation  # what it computes, by any name
        products = False
        if self.device.type != "cpu":
            masks.without_waiting(model)
            products = alike and convolutions.as_products(
                model.feature_extractor.conv_layers[0].conv, model.encoder.pos_conv_embed.conv
            )
        self.identity = self._identify(
            family=f"transformers {kind}",
            normalisation=frontend.rule,
            attention=attention,
            **({"group_norm": norms.RULE} if grouped and self.can_pad else {}),
            **({"convolutions": convolutions.RULE} if products else {}),
            **checkpoint.digests(),
        )

    def network(self) -> Network:
        return self._network

    def _features(self, inputs: Padded) -> Tensor:
        lengths, mask = inputs.lengths, None
        if not inputs.equal:
            mask = frame_mask(lengths, inputs.rows.shape[1], self.device).long()
        self.recorder.start()
        with self._autocast(), norms.own_lengths(lengths):
            self.model(inputs.to(self.device), attention_mask=mask)
        return self.recorder.take()


class Waveform:
    """The input of wav2vec 2.0 and its kin: the waveform, standardised where the model was trained so."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        said = checkpoint.preprocessor()
        if said is None:
            raise UpstreamError(
                f"{checkpoint.id}: no preprocessor_config.json says whether waveforms are normalised; "
                'put one beside config.json with {"do_normalize": true} or false, as the model was trained'
            )
        if said.get("sampling_rate", 16_000) != 16_000:
            raise UpstreamError(f"{checkpoint.id}: it wants {said['sampling_rate']} Hz, and only 16000 is given")
        self.normalise = bool(said.get("do_normalize", True))
        self.rule = f"mean 0, variance 1, epsilon {EPSILON}" if self.normalise else "none"

    def geometry(self, settings: Any) -> Geometry:
        """Of the model's own convolutions."""
        return Geometry.conv(tuple(zip(settings.conv_kernel, settings.conv_stride, strict=True)))

    def __call__(self, wave: Tensor) -> Tensor:
        """`(samples,)` from `(samples,)`."""
        return standardise(wave, EPSILON) if self.normalise else wave


class FilterBank:
    """The input of w2v-BERT 2.0: log-mel frames standardised per bin and utterance, joined in pairs.

    A last odd frame is left out: the library pads it to a pair and masks that pair.
    """

    STRIDE = 2

    def __init__(self, checkpoint: Checkpoint) -> None:
        from transformers import SeamlessM4TFeatureExtractor

        said = checkpoint.preprocessor() or {}
        known = ("feature_size", "num_mel_bins", "sampling_rate", "stride")
        self.extractor = SeamlessM4TFeatureExtractor(**{key: said[key] for key in known if key in said})
        if self.extractor.stride != self.STRIDE or self.extractor.sampling_rate != 16_000:
            raise UpstreamError(f"{checkpoint.id}: only a stride of {self.STRIDE} and 16000 Hz are known here")
        self.rule = f"{self.extractor.num_mel_bins} log-mel bins, each at mean 0, variance 1, epsilon 1e-07"

    def geometry(self, settings: Any) -> Geometry:
        """Windows of 400 samples every 160, joined in pairs."""
        return Geometry.conv(((400, 160), (self.STRIDE, self.STRIDE)))

    def __call__(self, wave: Tensor) -> Tensor:
        """`(frames, 2 * bins)` from `(samples,)`."""
        made = self.extractor(wave.numpy(), sampling_rate=16_000, return_tensors="pt")
        rows: Tensor = made["input_features"][0][: int(made["attention_mask"].sum())]
        return rows


def load(config: UpstreamConfig, device: str) -> Upstream:
    """The upstream of a checkpoint in transformers' format.

    Raises `UpstreamError` where it is absent, not pinned, not safetensors, incomplete, of an unknown
    architecture, or asks for code of its own.
    """
    refuse_options(config, "weights")
    checkpoint = find(config)
    kind = checkpoint.settings.get("model_type")
    if kind == "whisper":
        from featcache.upstreams.whisper import WhisperUpstream

        encoder = _whisper_encoder(checkpoint)
        return WhisperUpstream(config, device, encoder, **checkpoint.digests())
    refuse_options(config, "window")
    if kind not in CLASSES:
        raise UpstreamError(
            f"{config.id}: the architecture {kind} is not known here; there are: {' '.join(CLASSES)} whisper"
        )
    return TransformersUpstream(config, device, _model(checkpoint, CLASSES[kind]), checkpoint)


def _model(checkpoint: Checkpoint, name: str) -> Any:
    import transformers

    try:
        with _quiet():
            model, report = getattr(transformers, name).from_pretrained(
                checkpoint.folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise UpstreamError(f"{checkpoint.id}: it does not load as {name} ({_line(error)}); fetch it again") from error
    # the mask embedding and what lies above the encoder are not on the way to any tap
    absent = sorted(key for key in report["missing_keys"] if key.startswith(ON_THE_WAY))
    if absent:
        raise UpstreamError(
            f"{checkpoint.id}: the checkpoint lacks {len(absent)} tensors of {name}, first {absent[0]}; fetch it again"
        )
    prefix = f"{model.base_model_prefix}."
    left = sorted(key for key in report["unexpected_keys"] if key.removeprefix(prefix).startswith(ON_THE_WAY))
    if left:
        raise UpstreamError(
            f"{checkpoint.id}: its config.json has no place for {len(left)} tensors of the checkpoint, "
            f"first {left[0]}; take the config.json that these weights were saved with"
        )
    return model


def _whisper_encoder(checkpoint: Checkpoint) -> Any:
    """The encoder alone, in float32 with sdpa attention: the decoder's tensors are never read."""
    from transformers import WhisperConfig
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    said = checkpoint.preprocessor() or {}
    if (said.get("hop_length", 160), said.get("n_fft", 400), said.get("sampling_rate", 16_000)) != (
        160,
        400,
        16_000,
    ):
        raise UpstreamError(f"{checkpoint.id}: only Whisper's own spectrogram is known here (n_fft 400, hop 160)")
    prefixes = ("model.encoder.", "encoder.")
    state: dict[str, Tensor] = {}
    try:
        settings = WhisperConfig.from_dict(checkpoint.settings)
        settings._attn_implementation = "sdpa"
        for path in checkpoint.files:
            with safe_open(path, framework="pt") as tensors:
                names = tensors.keys()
                for key in names:
                    for prefix in prefixes:
                        if key.startswith(prefix):
                            state[key.removeprefix(prefix)] = tensors.get_tensor(key).float()
        with torch.device("meta"):
            encoder = WhisperEncoder(settings)
        encoder.load_state_dict(state, assign=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise UpstreamError(
            f"{checkpoint.id}: it does not load as WhisperEncoder ({_line(error)}); fetch it again"
        ) from error
    return encoder


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its report of tensors that no tap needs."""
    from transformers.utils import logging as library

    level, bar = library.get_verbosity(), library.is_progress_bar_enabled()
    library.set_verbosity(logging.CRITICAL)
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(level)
        if bar:
            library.enable_progress_bar()


def _line(error: BaseException) -> str:
    """The start of an error's text, on one line."""
    return " ".join(str(error).split())[:200]
