"""The pictures of the report."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import ColorType
from numpy.typing import NDArray

from ffcv_prune.analysis.distribution import plot_distribution
from ffcv_prune.analysis.mixture import Mixture
from ffcv_prune.analysis.runs import Run, phases

COLORS = matplotlib.color_sequences["tab10"]
EXAMPLES = 12  # images of always samples, and as many of never samples


def method_colors(runs: Sequence[Run]) -> dict[str, ColorType]:
    """A colour for each method, the same in all plots of these runs."""
    return {method: COLORS[i % 10] for i, method in enumerate(sorted({run.method for run in runs}))}


def _show_accuracies(axes: Axes, accuracies: Sequence[float]) -> None:
    """At least ten points of accuracy, so that no axis zooms into a single value."""
    middle = (min(accuracies) + max(accuracies)) / 2
    half = max(0.05, 0.55 * (max(accuracies) - min(accuracies)))
    axes.set_ylim(middle - half, middle + half)


def plot_against_rate(runs: Sequence[Run]) -> Figure:
    """Final accuracy against the pruning rate, a point a run, a line a method; full data as a line across."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    most = max(run.samples_seen for run in runs)
    for method, color in method_colors(runs).items():
        own = sorted((run for run in runs if run.method == method and run.tested), key=lambda run: run.kept)
        for run in own:
            if run.pruned:
                continue
            share = 100 * run.samples_seen / most
            label = "full" if run.samples_seen == most else f"full, {share:.2f} % of the samples"
            axes.axhline(run.accuracy, color=color, linestyle="-" if run.samples_seen == most else ":", label=label)
        pruned = [run for run in own if run.pruned]
        if pruned:
            rates, accuracies = [1 - run.kept for run in pruned], [run.accuracy for run in pruned]
            axes.plot(rates, accuracies, "o-", color=color, label=method)
    axes.set(xlabel="pruning rate (share of the samples left out, over the whole run)", ylabel="test accuracy")
    axes.grid(alpha=0.3)
    axes.set_xlim(0, 1)
    if axes.lines:
        _show_accuracies(axes, [run.accuracy for run in runs if run.tested])
        axes.legend(loc="best", fontsize="small")
    return figure


def plot_accuracy(runs: Sequence[Run]) -> Figure:
    """Tests while training, against wall-clock time (tests included) and against samples seen."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    by_time, by_samples = figure.subplots(1, 2, sharey=True)
    colors = method_colors(runs)
    for run in runs:
        ends = np.cumsum([row["seconds"]["total"] for row in run.rows])
        points = [
            (end, row["samples_seen"], row["test_accuracy"])
            for end, row in zip(ends, run.rows, strict=True)
            if row["test_accuracy"] is not None
        ]
        if points:
            seconds, samples, accuracies = zip(*points, strict=True)
            by_time.plot(seconds, accuracies, "o-", color=colors[run.method], label=run.name, markersize=4)
            by_samples.plot(samples, accuracies, "o-", color=colors[run.method], markersize=4)
    by_time.set(xlabel="wall-clock seconds", ylabel="test accuracy", xlim=(0, None))
    by_samples.set(xlabel="samples seen", xlim=(0, None))
    for axes in (by_time, by_samples):
        axes.grid(alpha=0.3)
    if by_time.lines:
        _show_accuracies(by_time, [row["test_accuracy"] for run in runs for row in run.tested])
        by_time.legend(loc="lower right", fontsize="small")
    return figure


def plot_phases(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(runs)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(runs))
    for i, phase in enumerate(phases(runs)):
        seconds = np.array([run.seconds(phase) for run in runs])
        axes.barh(np.arange(len(runs)), seconds, left=left, color=COLORS[i % 10], label=phase)
        left += seconds
    axes.set_yticks(np.arange(len(runs)), [run.name for run in runs])
    axes.invert_yaxis()
    axes.set(xlabel="seconds")
    axes.legend(ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def plot_selections(runs: Sequence[Run], fits: Sequence[Mixture | None]) -> Figure:
    figure = Figure(figsize=(9, 2.8 * len(runs)), layout="constrained")
    for axes, run, fit in zip(figure.subplots(len(runs), 1, squeeze=False)[:, 0], runs, fits, strict=True):
        assert run.counts is not None
        plot_distribution(axes, run.counts, run.selections, fit)
        axes.set_title(run.name)
    return figure


def plot_class_rates(runs: Sequence[Run]) -> Figure:
    """Share of each class that is kept, at each selection: a map for each run, classes down, epochs across."""
    classes = list(runs[0].rows[0]["class_fraction"])
    figure = Figure(figsize=(9, len(runs) * (1.0 + 0.22 * min(len(classes), 30))), layout="constrained")
    for axes, run in zip(figure.subplots(len(runs), 1, squeeze=False)[:, 0], runs, strict=True):
        names = list(run.rows[0]["class_fraction"])
        kept = np.array([[row["class_fraction"][name] for row in run.rows] for name in names], dtype=float)
        picture = axes.imshow(kept, aspect="auto", vmin=0, cmap="viridis", interpolation="nearest")
        if len(names) <= 30:
            axes.set_yticks(np.arange(len(names)), names, fontsize="small")
        axes.set(title=run.name, xlabel="epoch", ylabel="" if len(names) <= 30 else "class")
        axes.xaxis.get_major_locator().set_params(integer=True)
        figure.colorbar(picture, ax=axes, label="share kept")
    return figure


def plot_examples(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]], Sequence[str]]]) -> Figure:
    """Rows of images, each with a title and, under every image, its class."""
    figure = Figure(figsize=(12, 1.7 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), EXAMPLES, squeeze=False)
    for line, (title, images, classes) in zip(grid, rows, strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, image, name in zip(line, images, classes, strict=False):
            axes.imshow(image)
            axes.set_title(name, fontsize=7, y=-0.25)
        text = line[0].text(0, 1.15, title, transform=line[0].transAxes, fontsize=9)
        text.set_in_layout(False)  # or the first image would be as wide as its words
    return figure
