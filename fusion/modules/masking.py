"""Masking of time, channels and taps as augmentation.

After SpecAugment (Park et al., 2019, arXiv 1904.08779) and its form on hidden states in wav2vec 2.0
(Baevski et al., 2020, arXiv 2006.11477); taps are dropped whole, so that a fusion does not lean on one.
"""

from __future__ import annotations

import torch

from featcache.errors import UsageError


def draw_masks(
    lengths: torch.Tensor,
    shape: tuple[int, int, int],
    *,
    time: float = 0.0,
    channels: float = 0.0,
    taps: float = 0.0,
    time_span: int = 10,
    channel_span: int = 16,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `mask_features` masks, as three boolean tensors on the CPU.

    Args:
        lengths: (batch,) valid frames.
        shape: (frames, taps, channels) of the batch.
        time: share of an utterance's frames, in spans of `time_span` (which may overlap, so that a little
            less is masked). Utterances shorter than two spans keep all frames, no utterance loses all.
        channels: share of the channels, in spans of `channel_span`; the same in every tap and frame of an
            utterance, because neighbouring taps carry the same channel on (the residual stream).
        taps: probability of each tap to be dropped from an utterance; one tap always stays.
        generator: of the CPU; it alone decides the masks.

    Returns:
        (batch, frames), (batch, channels) and (batch, taps), True where masked.

    Raises:
        UsageError: if a share is outside [0, 1) or a span below 1.
    """
    for name, share in (("time", time), ("channels", channels), ("taps", taps)):
        if not 0.0 <= share < 1.0:
            raise UsageError(f"mask {name} = {share} is not a share; use a number from 0 up to, not including, 1")
    if min(time_span, channel_span) < 1:
        raise UsageError(f"mask spans {time_span} and {channel_span} must be 1 or more")
    frames, tap_count, channel_count = shape
    batch = len(lengths)
    valid = lengths.cpu()
    time_mask = _spans(valid, frames, time, time_span, generator)
    time_mask[valid < 2 * time_span] = False
    channel_mask = _spans(torch.full((batch,), channel_count), channel_count, channels, channel_span, generator)
    draws = torch.rand(batch, tap_count, generator=generator)
    tap_mask = draws < taps
    tap_mask.scatter_(1, draws.argmax(1, keepdim=True), False)  # the most lucky tap stays
    return time_mask, channel_mask, tap_mask


def mask_features(
    features: torch.Tensor,
    lengths: torch.Tensor,
    *,
    time: float = 0.0,
    channels: float = 0.0,
    taps: float = 0.0,
    time_span: int = 10,
    channel_span: int = 16,
    fill: float | torch.Tensor = 0.0,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Mask a batch of features in place and return it.

    Args:
        features: (batch, frames, taps, channels), zero padded; the padding is left alone.
        fill: what masked values become: a number, or (taps, channels) such as the calibration's means.
        Everything else as for `draw_masks`. The number of random draws depends on `lengths` and the shape
        only, not on the device.
    """
    if not (time or channels or taps):
        return features
    frames, tap_count, channel_count = features.shape[1:]
    masks = draw_masks(
        lengths,
        (frames, tap_count, channel_count),
        time=time,
        channels=channels,
        taps=taps,
        time_span=time_span,
        channel_span=channel_span,
        generator=generator,
    )
    time_mask, channel_mask, tap_mask = (mask.to(features.device) for mask in masks)
    value = torch.as_tensor(fill, dtype=features.dtype, device=features.device).expand(tap_count, channel_count)
    valid = torch.arange(frames, device=features.device) < lengths.to(features.device).unsqueeze(1)
    with torch.no_grad():
        if channels:
            keep_out = valid[:, :, None, None] & channel_mask[:, None, None, :]
            torch.where(keep_out, value, features, out=features)
        if time or taps:
            whole = (time_mask.unsqueeze(2) | tap_mask.unsqueeze(1)) & valid.unsqueeze(2)  # (batch, frames, taps)
            index = whole.nonzero(as_tuple=True)
            features[index] = value[index[2]]
    return features


def _spans(
    sizes: torch.Tensor, longest: int, share: float, span: int, generator: torch.Generator | None
) -> torch.Tensor:
    """Random spans over `share` of each of the `sizes` (batch,): (batch, longest) booleans."""
    batch = len(sizes)
    most = int(share * longest / span + 1)
    # A fraction of a span is drawn as a whole one with that probability.
    wanted = (share * sizes / span + torch.rand(batch, generator=generator)).floor()
    wanted = torch.minimum(wanted, ((sizes - 1) // span).clamp(min=0))
    room = (sizes - span + 1).clamp(min=1)
    starts = (torch.rand(batch, most, generator=generator) * room.unsqueeze(1)).floor().long()
    starts[torch.arange(most) >= wanted.unsqueeze(1)] = longest
    ends = torch.minimum(starts + span, sizes.unsqueeze(1))
    # +1 at each start, -1 at each end; a running sum above zero is inside a span.
    edges = torch.zeros(batch, longest + span + 1)
    ones = torch.ones(batch, most)
    edges.scatter_add_(1, starts, ones).scatter_add_(1, torch.maximum(ends, starts), -ones)
    return edges.cumsum(1)[:, :longest] > 0.5
