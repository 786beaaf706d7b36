"""Plots of results, as PNG or SVG by the file's ending."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import UsageError

if TYPE_CHECKING:
    from pipelines.fusers import Row

SEED_COLOUR, MEAN_COLOUR, REFERENCE_COLOUR = "#9aa5b1", "#34495e", "#c0392b"


def error_rates(rows: Sequence[Row], path: Path) -> None:
    """WER and CER of each row: mean over seeds, 95 % interval, and each seed as a point.

    Raises:
        UsageError: the ending of `path` names no format of an image.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"plot {path}: write a name that ends in .png, .svg or .pdf")
    figure, panels = pyplot.subplots(1, 2, figsize=(9, 0.6 + 0.45 * len(rows)), sharey=True, layout="constrained")
    for panel, measure in zip(panels, ("wer", "cer"), strict=True):
        for place, row in enumerate(rows):
            colour = REFERENCE_COLOUR if row.entry.kind == "hff" else MEAN_COLOUR
            mean = getattr(row, measure)
            low, high = getattr(row, f"{measure}_ci95")
            seeds = getattr(row, f"{measure}_by_seed")
            panel.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5, solid_capstyle="butt")
            panel.plot(seeds, [place] * len(seeds), "|", color=SEED_COLOUR, markersize=11)
            panel.plot([mean], [place], "o", color=colour, markersize=6)
            panel.annotate(
                f"{mean:.3f}", (mean, place), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8
            )
        panel.set_xlabel(f"{measure.upper()} (lower is better)")
        panel.grid(axis="x", linewidth=0.4)
        panel.spines[["top", "right", "left"]].set_visible(False)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), [row.entry.title for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
