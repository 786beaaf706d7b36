"""Training that dies without notice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from fusion.data import Batch
from fusion.learner import Learner


@contextlib.contextmanager
def power_cut(at: int) -> Iterator[None]:
    """What trains inside dies without notice after `at` steps of its head; that it does not is a failure."""
    step = Learner.step

    def dying(self: Learner, batch: Batch) -> None:
        if self.state.step == at:
            raise RuntimeError("power cut")
        step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", dying)
        with pytest.raises(RuntimeError, match="power cut"):
            yield
