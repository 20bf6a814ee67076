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
from ffcv_prune.words import percent

COLORS = matplotlib.color_sequences["tab10"]
PHASE_COLORS = matplotlib.color_sequences["Set3"]  # none of the methods'
EXAMPLES = 12  # images of always samples, and as many of never samples


def method_colors(runs: Sequence[Run]) -> dict[str, ColorType]:
    """A colour for each method, the same in all plots of these runs."""
    return {method: COLORS[i % 10] for i, method in enumerate(sorted({run.method for run in runs}))}


def line_styles(runs: Sequence[Run]) -> list[str]:
    """A style for each run, another one than those of the runs of its method before it."""
    methods = [run.method for run in runs]
    return [("-", "--", ":", "-.")[methods[:i].count(method) % 4] for i, method in enumerate(methods)]


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
            share = percent(run.samples_seen / most)
            label = "full" if run.samples_seen == most else f"full, {share} of the samples"
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
    """Tests while training, against wall-clock time without that of the tests and against samples seen."""
    figure = Figure(figsize=(12, 4.5), layout="constrained")
    by_time, by_samples = figure.subplots(1, 2, sharey=True)
    colors = method_colors(runs)
    for run, style in zip(runs, line_styles(runs), strict=True):
        ends = np.cumsum([row["seconds"]["total"] - row["seconds"].get("eval", 0.0) for row in run.rows])
        points = [
            (end, row["samples_seen"], row["test_accuracy"])
            for end, row in zip(ends, run.rows, strict=True)
            if row["test_accuracy"] is not None
        ]
        if points:
            seconds, samples, accuracies = zip(*points, strict=True)
            by_time.plot(seconds, accuracies, f"o{style}", color=colors[run.method], label=run.name, markersize=4)
            by_samples.plot(samples, accuracies, f"o{style}", color=colors[run.method], markersize=4)
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
        axes.barh(np.arange(len(runs)), seconds, left=left, color=PHASE_COLORS[i % len(PHASE_COLORS)], label=phase)
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


CURVES = {"train_loss": "training loss", "lr": "learning rate", "keep": "share kept"}  # by key of a row of the log


def plot_curves(runs: Sequence[Run]) -> Figure:
    """The loss and what else moved, against the epoch: a line a run, in the colours of the methods."""
    values = {name: {row.get(name) for run in runs for row in run.rows} - {None} for name in CURVES}
    shown = [name for name in CURVES if name == "train_loss" or len(values[name]) > 1]
    figure = Figure(figsize=(4 * len(shown), 3.5), layout="constrained")
    colors = method_colors(runs)
    for axes, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for run, style in zip(runs, line_styles(runs), strict=True):
            points = [(row["epoch"], row[name]) for row in run.rows if row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colors[run.method], label=run.name)
        axes.set(xlabel="epoch", ylabel=CURVES[name])
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
    if figure.axes[-1].lines:
        figure.axes[-1].legend(fontsize="small")
    return figure


def plot_by_class(runs: Sequence[Run], key: str, label: str) -> Figure:
    """What an epoch's row holds of each class: a map for each run, classes down, epochs across."""
    classes = list(runs[0].rows[0]["class_fraction"])
    figure = Figure(figsize=(9, len(runs) * (1.0 + 0.22 * min(len(classes), 30))), layout="constrained")
    for axes, run in zip(figure.subplots(len(runs), 1, squeeze=False)[:, 0], runs, strict=True):
        names = list(run.rows[0]["class_fraction"])
        rows = [row for row in run.rows if row.get(key)]  # an epoch without a test has none
        values = np.array([[row[key][name] for row in rows] for name in names], dtype=float)
        epochs = rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5
        extent = (*epochs, len(names) - 0.5, -0.5)
        picture = axes.imshow(values, aspect="auto", vmin=0, cmap="viridis", interpolation="nearest", extent=extent)
        if len(names) <= 30:
            axes.set_yticks(np.arange(len(names)), names, fontsize="small")
        axes.set(title=run.name, xlabel="epoch", ylabel="" if len(names) <= 30 else "class")
        axes.locator_params(axis="x", integer=True)
        figure.colorbar(picture, ax=axes, label=label)
    return figure


def plot_examples(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]], Sequence[str]]]) -> Figure:
    """Rows of images, each with a title and, under every image, its class."""
    figure = Figure(figsize=(12, 1.7 * len(rows)), layout="constrained")
    axes = figure.subplots()  # one for all: of many small ones, each takes as long as a plot
    for line, (title, images, classes) in enumerate(rows):
        bottom = -1.6 * line  # in units of an image, which fits into a square of 1 x 1
        axes.text(0, bottom + 1.15, title, fontsize=9)
        for left, (image, name) in enumerate(zip(images, classes, strict=False)):
            height, width = np.array(image.shape[:2]) / max(image.shape[:2])
            axes.imshow(image, extent=(1.1 * left, 1.1 * left + width, bottom, bottom + height))
            axes.text(1.1 * left + width / 2, bottom - 0.05, name, fontsize=7, ha="center", va="top")
    axes.set(xlim=(0, 1.1 * EXAMPLES), ylim=(-1.6 * len(rows) + 1.3, 1.4))
    axes.set_axis_off()
    return figure
