"""Masks of padded batches in transformers, made without waiting for the device.

The library asks whether a mask masks anything, and writes single values into one by their places: for each, the
thread that launches waits until the device has caught up, and the device then waits for it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

ATTENTION = "featcache_sdpa"


def without_waiting(model: Any) -> None:
    """Let a speech model of transformers make its masks so. Values are the same."""
    if model.config._attn_implementation == "sdpa":
        from transformers import AttentionInterface, AttentionMaskInterface

        AttentionInterface.register(ATTENTION, AttentionInterface()["sdpa"])
        AttentionMaskInterface.register(ATTENTION, attention_mask)
        model.set_attn_implementation(ATTENTION)
    if hasattr(model, "feature_extractor"):  # its input is waveforms, and the mask's frames are others
        model._get_feature_vector_attention_mask = partial(mask_of_frames, model)


def attention_mask(*shape: Any, attention_mask: Tensor | None = None, **options: Any) -> Tensor | None:
    """As the library's for sdpa, (batch, 1, frames, frames), but none only where none is given."""
    from transformers import AttentionMaskInterface

    if attention_mask is None:
        return None
    options["allow_is_bidirectional_skip"] = False
    mask: Tensor | None = AttentionMaskInterface()["sdpa"](*shape, attention_mask=attention_mask, **options)
    return mask


def mask_of_frames(model: Any, frames: int, mask_bs: Tensor, **options: Any) -> Tensor:
    """Bool (batch, frames) of a mask of samples: the model's `_get_feature_vector_attention_mask`."""
    counts: Tensor = model._get_feat_extract_output_lengths(mask_bs.sum(-1), **options)
    return torch.arange(frames, device=mask_bs.device) < counts.unsqueeze(1)
