"""Plots of results: one function a plot makes a figure, which is saved by a file's ending or put into a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featcache.errors import UsageError
from fusion import outputs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fusion.tasks import Measure
    from pipelines.fewshot import Size
    from pipelines.layers import Curve, Layers
    from pipelines.rate import Point
    from pipelines.report.curves import Curves
    from pipelines.studies import Score

INK, SEED_COLOUR, MEAN_COLOUR, REFERENCE_COLOUR = "#22313f", "#9aa5b1", "#34495e", "#c0392b"
SERIES = ("#2f6f9f", "#c8553d", "#3d8b5f", "#8a5a9e", "#b0852a", "#4a5a6a")
VARIABLES = {
    INK: "--ink",
    "#000000": "--ink",
    SEED_COLOUR: "--faint",
    MEAN_COLOUR: "--ink",
    REFERENCE_COLOUR: "--series-1",
} | {colour: f"--series-{i}" for i, colour in enumerate(SERIES)}
"""What a page calls the colours, so that they follow its light or dark theme."""


class Scored(Protocol):
    """A row of a figure: what was trained, how it scored, and whether the others are compared with it."""

    @property
    def title(self) -> str: ...

    @property
    def marked(self) -> bool: ...

    @property
    def measures(self) -> tuple[Measure, ...]: ...

    @property
    def scores(self) -> Mapping[str, Score]: ...


def scores(rows: Sequence[Scored]) -> Figure:
    """The measures of one task, two at most, for each row: mean over seeds, 95 % interval, and each seed."""
    measures = rows[0].measures[:2]
    figure, panels = _panels(len(measures), (1.2 + 3.9 * len(measures), 0.6 + 0.45 * len(rows)))
    for panel, measure in zip(panels, measures, strict=True):
        for place, row in enumerate(rows):
            colour = REFERENCE_COLOUR if row.marked else MEAN_COLOUR
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
    panels[0].set_yticks(range(len(rows)), [row.title for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.7)
    return figure


def losses_by_rate(points: Sequence[Point]) -> Figure:
    """What each measure loses against the reference, in percent, by bits per value (logarithmic)."""
    reference, *others = points
    others = sorted(others, key=lambda point: point.bits_per_value)
    names = [name for name, cell in others[0].measures.items() if cell.loss is not None]
    figure, (panel,) = _panels(1, (7.0, 4.2))
    for name in names:
        cells = [point.measures[name].loss or (0.0, 0.0, 0.0) for point in others]
        middle, low, high = ([100 * cell[i] for cell in cells] for i in range(3))
        bits = [point.bits_per_value for point in others]
        (line,) = panel.plot(bits, middle, "o-", markersize=4, label=name)
        panel.fill_between(bits, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
    panel.axhline(0, color="#34495e", linewidth=0.8)
    _bits_axis(panel)
    panel.set_ylabel(f"loss against {reference.profile}, %")
    panel.legend(frameon=False)
    return figure


def values_by_rate(points: Sequence[Point]) -> Figure:
    """The first measure of each recipe by bits per value (logarithmic), each seed as a point."""
    ordered = sorted(points, key=lambda point: point.bits_per_value)
    first: dict[str, str] = {}
    for name in points[0].measures:
        first.setdefault(name.partition(" ")[0], name)
    names = list(first.values())
    figure, panels = _panels(len(names), (0.6 + 4.2 * len(names), 3.4), share=False)
    bits = [point.bits_per_value for point in ordered]
    for panel, name in zip(panels, names, strict=True):
        panel.plot(bits, [point.measures[name].value for point in ordered], "o-", color=SERIES[0], markersize=5)
        for point in ordered:
            seeds = point.measures[name].by_seed
            panel.plot([point.bits_per_value] * len(seeds), seeds, "_", color=SEED_COLOUR, markersize=8)
        _bits_axis(panel)
        panel.set_ylabel(name)
        panel.grid(axis="y", linewidth=0.4)
    return figure


def by_speech(sizes: Sequence[Size]) -> Figure:
    """The main measure of each task by minutes of training speech (logarithmic), with its 95 % interval."""
    tasks = list(dict.fromkeys(size.task for size in sizes))
    figure, panels = _panels(len(tasks), (0.6 + 4.2 * len(tasks), 3.4), share=False)
    for panel, task in zip(panels, tasks, strict=True):
        of_task = sorted((size for size in sizes if size.task == task), key=lambda size: size.minutes)
        measure = of_task[0].measures[0]
        minutes = [size.minutes for size in of_task]
        low, high = ([size.scores[measure.name].ci95[end] for size in of_task] for end in (0, 1))
        panel.fill_between(minutes, low, high, alpha=0.15, linewidth=0)
        panel.plot(minutes, [size.scores[measure.name].value for size in of_task], "o-", markersize=5)
        panel.set_xscale("log")
        panel.set_xticks(minutes, [f"{value:.3g}" for value in minutes], minor=False)
        panel.minorticks_off()
        panel.set_xlabel("minutes of training speech")
        panel.set_ylabel(f"{task}: {measure.title}")
        panel.grid(axis="y", linewidth=0.4)
    return figure


def training(runs: Mapping[str, Curves], measure: Measure) -> Figure:
    """The measure on dev by step, and the losses: of training thin, of dev thick."""
    figure, panels = _panels(2, (9.0, 3.4), share=False)
    for i, (name, found) in enumerate(runs.items()):
        colour = SERIES[i % len(SERIES)]
        for panel, tag, width in (
            (panels[0], f"dev/{measure.name}", 1.8), (panels[1], "dev/loss", 1.8), (panels[1], "train/loss", 0.7),
        ):  # fmt: skip
            if tag in found:
                label = name if tag == "dev/loss" else None
                panel.plot(*found[tag], color=colour, linewidth=width, label=label)
    for panel, title in zip(panels, (f"dev {measure.title}", "loss: dev, and train (thin)"), strict=True):
        panel.set_xlabel("step")
        panel.set_ylabel(title)
        panel.grid(axis="y", linewidth=0.4)
    handles, names = panels[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", frameon=False, fontsize=8)
    return figure


def by_tap(found: Layers) -> Figure:
    """The main measure of each recipe's probes by tap, with its 95 % interval; the best tap is marked."""
    curves = _main(found)
    figure, panels = _panels(len(curves), (0.6 + 4.2 * len(curves), 3.4), share=False)
    places = range(len(found.taps))
    for panel, curve in zip(panels, curves, strict=True):
        values = [score.value for score in curve.scores]
        low, high = ([score.ci95[end] for score in curve.scores] for end in (0, 1))
        panel.fill_between(places, low, high, color=SERIES[0], alpha=0.15, linewidth=0)
        panel.plot(places, values, "o-", color=SERIES[0], markersize=4)
        best = (max if curve.higher_is_better else min)(places, key=values.__getitem__)
        panel.plot([best], [values[best]], "o", color=SERIES[1], markersize=8)
        panel.annotate(
            f"{values[best]:.3f}", (best, values[best]), xytext=(0, 9), textcoords="offset points", ha="center",
            color=SERIES[1],
        )  # fmt: skip
        panel.set_xticks(places, found.taps)
        panel.set_xlabel("tap")
        better = "higher" if curve.higher_is_better else "lower"
        panel.set_ylabel(f"{curve.recipe}: {curve.title} ({better} is better)")
        panel.grid(axis="y", linewidth=0.4)
    return figure


def similarity(found: Layers) -> Figure:
    """Linear CKA between taps."""
    count = len(found.taps)
    figure, (panel,) = _panels(1, (1.6 + 0.5 * count, 0.9 + 0.45 * count))
    mesh = panel.pcolormesh(found.similarity, vmin=0, vmax=1, cmap="viridis", edgecolors="none")
    for i in range(count):
        for j in range(count):
            value = found.similarity[i][j]
            colour = "#ffffff" if value < 0.6 else "#111111"
            panel.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    for set_ticks in (panel.set_xticks, panel.set_yticks):
        set_ticks([i + 0.5 for i in range(count)], found.taps)
    panel.set_xlabel("tap")
    panel.set_ylabel("tap")
    panel.tick_params(length=0)
    panel.spines[["left", "bottom"]].set_visible(False)
    figure.colorbar(mesh, ax=panel, label="linear CKA").outline.set_visible(False)
    return figure


def attention(found: Layers) -> Figure:
    """What each trained head makes of the taps: shares by its gates, and what its dev loss gains without a tap."""
    figure, panels = _panels(2, (9.0, 3.6), share=False)
    titles = ("share by the gates", "dev loss without the tap, minus with it")
    for panel, title, name in zip(panels, titles, ("weights", "silenced"), strict=True):
        heads = [one for one in found.attention if getattr(one, name) is not None]
        wide = 0.8 / max(len(heads), 1)
        for i, one in enumerate(heads):
            at = [found.taps.index(tap) + (i + 0.5) * wide - 0.4 for tap in one.taps]
            panel.bar(at, getattr(one, name), wide, color=SERIES[i % len(SERIES)], label=f"{one.fuser}, {one.run}")
        panel.set_xticks(range(len(found.taps)), found.taps)
        panel.set_xlabel("tap")
        panel.set_ylabel(title)
        panel.grid(axis="y", linewidth=0.4)
        panel.set_axisbelow(True)
    labelled = panels[1].get_legend_handles_labels()
    figure.legend(*labelled, loc="outside upper left", frameon=False, fontsize=8)
    return figure


def _main(found: Layers) -> list[Curve]:
    """The first measure of each recipe."""
    first: dict[str, Curve] = {}
    for curve in found.curves:
        first.setdefault(curve.recipe, curve)
    return list(first.values())


def _bits_axis(panel: Axes) -> None:
    panel.set_xscale("log", base=2)
    ticks = [0.25, 0.5, 1, 2, 4, 8, 16]
    panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    panel.set_xlabel("bits per stored value, all included")


def _panels(count: int, size: tuple[float, float], *, share: bool = True) -> tuple[Figure, Sequence[Axes]]:
    """A figure of `count` panels side by side, `size` inches in all.

    Args:
        share: the panels have one vertical axis.
    """
    import matplotlib

    matplotlib.use("Agg")
    from cycler import cycler
    from matplotlib import pyplot

    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style = {
        **dict.fromkeys(names, INK),
        "axes.prop_cycle": cycler(color=SERIES),
        "grid.color": SEED_COLOUR,
        "font.size": 9,
    }
    with pyplot.rc_context(style):
        figure, grid = pyplot.subplots(1, count, figsize=size, sharey=share, squeeze=False, layout="constrained")
    for panel in grid[0]:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, list(grid[0])


def check_plot(path: Path) -> None:
    """Make the folder of a plot.

    Raises:
        UsageError: the ending of `path` names no format of an image, or it cannot be written.
    """
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageError(f"plot {path}: write a name that ends in .png, .svg or .pdf")
    outputs.check_file(path)


def save(figure: Figure, path: Path) -> None:
    """
    Raises:
        UsageError: as `check_plot`. JobError: as `outputs.write`.
    """
    from matplotlib import pyplot

    check_plot(path)
    with io.BytesIO() as file:
        figure.savefig(file, format=path.suffix[1:], dpi=130)
        outputs.write(path, file.getvalue())
    pyplot.close(figure)


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an SVG element for an HTML page, its text as text and its colours as CSS variables.

    Args:
        name: unique in the page: what the element refers to in itself is named after it.
    """
    from matplotlib import pyplot

    with io.StringIO() as file, pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        text = file.getvalue()
    pyplot.close(figure)
    text = text[text.index("<svg") :]
    for reference in (' id="', "url(#", 'href="#'):
        text = text.replace(reference, f"{reference}{name}-")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text
