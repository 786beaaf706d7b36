"""Plots of results, as PNG or SVG by the file's ending."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from featcache.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipelines.rate import Point
    from pipelines.rivals import Row

SEED_COLOUR, MEAN_COLOUR, REFERENCE_COLOUR = "#9aa5b1", "#34495e", "#c0392b"


def scores(rows: Sequence[Row], path: Path) -> None:
    """The measures of one task, two at most, for each row: mean over seeds, 95 % interval, and each seed.

    Raises:
        UsageError: the ending of `path` names no format of an image.
    """
    measures = rows[0].measures[:2]
    figure, panels = _panels(path, len(measures), (1.2 + 3.9 * len(measures), 0.6 + 0.45 * len(rows)))
    for panel, measure in zip(panels, measures, strict=True):
        for place, row in enumerate(rows):
            colour = REFERENCE_COLOUR if row.rival.kind == "hff" else MEAN_COLOUR
            score = row.scores[measure.name]
            panel.plot(score.ci95, [place, place], color=colour, linewidth=2, alpha=0.5, solid_capstyle="butt")
            panel.plot(score.by_seed, [place] * len(score.by_seed), "|", color=SEED_COLOUR, markersize=11)
            panel.plot([score.value], [place], "o", color=colour, markersize=6)
            panel.annotate(
                f"{score.value:.3f}", (score.value, place), xytext=(0, 7), textcoords="offset points", ha="center",
                fontsize=8,
            )  # fmt: skip
        better = "higher" if measure.higher_is_better else "lower"
        panel.set_xlabel(f"{measure.title} ({better} is better)")
        panel.grid(axis="x", linewidth=0.4)
        panel.spines["left"].set_visible(False)
        panel.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), [row.rival.title for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.7)
    _save(figure, path)


def losses_by_rate(points: Sequence[Point], path: Path) -> None:
    """What each measure loses against the reference, in percent, by bits per value (logarithmic)."""
    reference, *others = points
    others = sorted(others, key=lambda point: point.bits_per_value)
    names = [name for name, cell in others[0].measures.items() if cell.loss is not None]
    figure, (panel,) = _panels(path, 1, (7.0, 4.2))
    for name in names:
        cells = [point.measures[name].loss or (0.0, 0.0, 0.0) for point in others]
        middle, low, high = ([100 * cell[i] for cell in cells] for i in range(3))
        bits = [point.bits_per_value for point in others]
        (line,) = panel.plot(bits, middle, "o-", markersize=4, label=name)
        panel.fill_between(bits, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    panel.axhline(0, color="#34495e", linewidth=0.8)
    panel.set_xscale("log", base=2)
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_xlabel("bits per stored value, all included")
    panel.set_ylabel(f"loss against {reference.profile}, %")
    panel.legend(frameon=False)
    _save(figure, path)


def _panels(path: Path, count: int, size: tuple[float, float]) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `count` panels side by side, `size` inches in all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    check_format(path)
    figure, grid = pyplot.subplots(1, count, figsize=size, sharey=True, squeeze=False, layout="constrained")
    for panel in grid[0]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(grid[0])


def check_format(path: Path) -> None:
    """
    Raises:
        UsageError: the ending of `path` names no format of an image.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"plot {path}: write a name that ends in .png, .svg or .pdf")


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
