"""What a trained head says of every frame: log probabilities, row by row, from the cache alone."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from featcache.store import Cache
from fusion.data import Loader, plan_evaluation
from fusion.distributed import autocast
from fusion.labels import Split
from fusion.run import Run


@torch.no_grad()
def emissions(run: Run, cache: Cache, split: Split) -> Iterator[tuple[int, Tensor]]:
    """Position in the split and log probabilities, float32 (frames, outputs) on the CPU, of each of its rows.

    In order of length, not of the split.
    """
    settings = run.recipe.train
    with Loader(cache, split, run.device, run.spec.taps, settings.workers) as loader:
        for batch in loader.batches(plan_evaluation(split.frames, round(settings.batch_seconds * cache.frame_rate))):
            with autocast(settings.precision, run.device):
                logits, lengths = run.head(batch.features, batch.lengths)
            log_probs = logits.float().log_softmax(-1).cpu()
            for i, position in enumerate(batch.slot.positions.tolist()):
                yield position, log_probs[i, : int(lengths[i])]
