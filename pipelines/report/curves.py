"""The training curves of a run, from its TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fusion.run import Files

Curves = Mapping[str, tuple[tuple[int, ...], tuple[float, ...]]]
"""Steps and values by tag, as in `dev/loss`."""


def read(run: Path) -> Curves:
    """The scalars of a run, by tag; empty where it left none."""
    folder = Files(run).tensorboard
    if not folder.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {}
    for tag in events.Tags()["scalars"]:
        points = {point.step: float(point.value) for point in events.Scalars(tag)}  # a resumed run: the later one
        found[tag] = (tuple(sorted(points)), tuple(points[step] for step in sorted(points)))
    return found
