"""How the threads of numpy and torch wait for one another, in stage one and the pipelines; `fusion.cli` has its own."""

from __future__ import annotations

import os


def asleep() -> None:
    """Let threads that wait sleep instead of spin. A command calls it before it imports numpy or torch.

    Where another job wants the same cores, OpenMP's and OpenBLAS' threads take from each other what they spend on
    waiting: fitting the codec was 8 times slower. What the user has set stays.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # It has no such policy. Its systems of equations are small, and the codec's products are torch's.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
