"""The figures of an experiment, drawn from its cells alone; one panel for each part of the grid."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.harness.plots import save
from benchmarks.paper.cells import Cell, pruned_share
from benchmarks.paper.grid import methods
from ffcv_prune.analysis.distribution import describe_groups, plot_distribution
from ffcv_prune.analysis.mixture import fit_mixture
from ffcv_prune.errors import UserError

MARKERS = "osD^vP*X<>ph"


def draw(kind: str, cells: Sequence[Cell], title: str, out: Path) -> Path | None:
    """Write OUT_KIND.svg; None if the cells hold nothing to draw."""
    done = [cell for cell in cells if cell.rows]
    parts = list(dict.fromkeys(cell.run.part for cell in done))
    if not parts or (kind == "top5" and not any(cell.values("top5") for cell in done)):
        return None
    columns, lines = min(2, len(parts)), -(-len(parts) // 2)
    figure = Figure(figsize=(8 * columns, 5 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in panels[len(parts) :]:
        axes.set_axis_off()
    for axes, part in zip(panels, parts, strict=False):
        KINDS[kind](axes, [cell for cell in done if cell.run.part == part])
        axes.set_title(part)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
    figure.suptitle(title)
    return save(figure, out.with_name(f"{out.name}_{kind}.svg"))


def draw_distribution(title: str, counts: NDArray[np.int64], selections: int, out: Path) -> tuple[Path, str]:
    """Write OUT_distribution.svg, and return it and the shares of the groups in words.

    Without PyMC, or with too few selections to fit groups to, the histogram stands alone.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    try:
        fit = fit_mixture(counts, selections)
        words = describe_groups(fit)
    except UserError as error:
        fit, words = None, f"not fitted: {error}"
    plot_distribution(axes, counts, selections, fit if fit and fit.agrees else None)
    axes.set_title(title)
    return save(figure, out.with_name(f"{out.name}_distribution.svg")), words


def _against_rate(values: Callable[[Cell], Sequence[float]], label: str, zoom: bool = False) -> Callable[..., None]:
    def plot(axes: Axes, cells: Sequence[Cell]) -> None:
        cells = [cell for cell in cells if not cell.run.swept and not (zoom and cell.run.is_static)]
        for i, name in enumerate(dict.fromkeys(cell.run.method for cell in cells)):
            own = [cell for cell in cells if cell.run.method == name and values(cell)]
            if not own:
                continue
            y = [statistics.mean(values(cell)) for cell in own]
            if own[0].run.rate is None:
                axes.axhline(y[0], color="black", linestyle="--", label=own[0].run.label)
                continue
            x = [pruned_share(cell, cells) for cell in own]
            spread = [statistics.stdev(values(cell)) if len(cell.rows) > 1 else 0 for cell in own]
            line = f"{MARKERS[i % len(MARKERS)]}{'--' if methods()[name][0].rate == 'epochs' else '-'}"
            axes.errorbar(x, y, spread, fmt=line, capsize=3, label=own[0].run.label)
        axes.set(xlabel="pruning rate", ylabel=label)

    return plot


def _percent(column: str) -> Callable[[Cell], list[float]]:
    return lambda cell: [100 * value for value in cell.values(column)]


def curve(row: dict[str, str]) -> list[tuple[int, float]]:
    """The tests of a run: (samples seen, accuracy)."""
    pairs = (point.split(":") for point in row["curve"].split())
    return [(int(samples), float(accuracy)) for samples, accuracy in pairs]


def _samples(axes: Axes, cells: Sequence[Cell]) -> None:
    """Test accuracy while training, against samples seen: mean over seeds."""
    for cell in cells:
        curves = [curve(dict(row)) for row in cell.rows]
        shortest = min(len(points) for points in curves)
        x = [curves[0][i][0] for i in range(shortest)]
        y = [statistics.mean(100 * points[i][1] for points in curves) for i in range(shortest)]
        rate = "" if cell.run.rate is None else f", {cell.run.rate:g}"
        axes.plot(x, y, "--" if cell.run.rate is None else "-", label=f"{cell.run.label}{rate}")
    axes.set(xlabel="samples seen", ylabel="test accuracy, %")


def _sweep(axes: Axes, cells: Sequence[Cell]) -> None:
    """One line for each method, key and rate, over the values of the key; values are evenly spaced."""
    swept = [cell for cell in cells if cell.run.swept]
    lines = dict.fromkeys((cell.run.method, cell.run.swept[0], cell.run.rate) for cell in swept if cell.run.swept)
    for i, (method, name, rate) in enumerate(lines):
        own = [c for c in swept if c.run.swept and (c.run.method, c.run.swept[0], c.run.rate) == (method, name, rate)]
        x = [f"{name.partition('.')[2]} {cell.run.swept[1]}" for cell in own if cell.run.swept]
        y = [100 * statistics.mean(cell.accuracies) for cell in own]
        spread = [100 * statistics.stdev(cell.accuracies) if len(cell.rows) > 1 else 0 for cell in own]
        marker = MARKERS[i % len(MARKERS)]
        axes.errorbar(x, y, spread, marker=marker, capsize=3, label=f"{own[0].run.label}, {rate:g}")
    axes.tick_params(axis="x", rotation=60)
    axes.set(ylabel="test accuracy, %")


KINDS: dict[str, Callable[..., None]] = {
    "accuracy": _against_rate(_percent("accuracy"), "test accuracy, %"),
    "zoom": _against_rate(_percent("accuracy"), "test accuracy, %", zoom=True),
    "top5": _against_rate(_percent("top5"), "top-5 test accuracy, %"),
    "time": _against_rate(lambda cell: cell.all_seconds, "seconds, static scores included"),
    "time_without_scores": _against_rate(lambda cell: cell.seconds, "seconds, static scores left out"),
    "samples": _samples,
    "sweep": _sweep,
}
