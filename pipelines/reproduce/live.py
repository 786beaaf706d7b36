"""A head with its upstream before it: waveforms in, logits out, and gradients all the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from featcache.errors import JobError
from featcache.upstreams import Upstream
from featcache.windows import windows
from fusion.head import Head
from pipelines.reproduce.speech import split_waves

Masks = tuple[Tensor, Tensor, Tensor]
"""What `fusion.modules.masking.draw_masks` gives."""
NETWORK = "network."


class LiveHead(Head):
    """A head that computes its features anew.

    The upstream stays in evaluation mode (its own dropout and masking off), so that at the start the features are
    the cache's. Weights of it that are not trained are left out of the state: the model has them.
    """

    def __init__(self, head: Head, upstream: Upstream) -> None:
        taps, channels = head.centre.shape
        super().__init__(head.fuser, head.decoder, taps, channels, head.pool)
        self.load_state_dict(head.state_dict())
        self.upstream = upstream
        self.network = upstream.network().module
        self.masks: Masks | None = None
        self.register_state_dict_post_hook(_leave_out_frozen)
        self.register_load_state_dict_pre_hook(_put_in_frozen)

    def train(self, mode: bool = True) -> LiveHead:
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, features: Tensor, lengths: Tensor, prepared: bool = False) -> tuple[Tensor, Tensor]:
        """Waveforms as `Speech` gives them, and lengths in frames; logits and their lengths."""
        made = self.features(features, lengths)
        if self.training and self.masks is not None:
            made = self._masked(made, self.masks)
        return super().forward(made, lengths)

    def features(self, waves: Tensor, lengths: Tensor) -> Tensor:
        """(batch, frames, taps, channels) of waveforms; long ones in windows, cut as for the cache."""
        rows = split_waves(waves)
        cut = [windows(len(row), self.upstream.geometry) for row in rows]
        pieces = [row[window.start : window.stop] for row, of_row in zip(rows, cut, strict=True) for window in of_row]
        # the upstream has an autocast of its own, around the layers alone
        with torch.autocast(self.upstream.device.type, enabled=False):
            made = iter(self.upstream.forward_live(pieces))
        whole = [
            torch.cat([next(made)[window.keep : window.keep + window.frames] for window in of_row]) for of_row in cut
        ]
        if [len(row) for row in whole] != lengths.tolist():
            raise JobError("a recording has another length than its features in the cache: extract it again")
        return nn.utils.rnn.pad_sequence(whole, batch_first=True)

    def _masked(self, features: Tensor, masks: Masks) -> Tensor:
        """As `mask_features`, but a new tensor, through which gradients flow. What is masked behind a row's end does
        not matter."""
        time, channels, taps = (mask.to(features.device) for mask in masks)
        masked = time[:, :, None, None] | channels[:, None, None, :] | taps[:, None, :, None]
        return torch.where(masked, self.centre.to(features.dtype), features)


def _frozen(head: nn.Module) -> dict[str, Tensor]:
    trained = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    # not by state_dict(), whose hook this serves
    state = [*head.named_parameters(), *head.named_buffers()]
    return {name: value for name, value in state if name.startswith(NETWORK) and name not in trained}


def _leave_out_frozen(head: nn.Module, state: dict[str, Any], prefix: str, metadata: Mapping[str, Any]) -> None:
    for name in _frozen(head):
        state.pop(prefix + name, None)


def _put_in_frozen(head: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    known = set(head.network.state_dict())  # type: ignore[union-attr]
    for name, value in _frozen(head).items():
        if name.removeprefix(NETWORK) in known:
            state.setdefault(prefix + name, value.detach())
