"""The report's pictures: a colour for each method, and no axis that zooms into nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D

from ffcv_prune.analysis.plots import (
    COLORS,
    method_colors,
    plot_accuracy,
    plot_against_rate,
    plot_by_class,
    plot_curves,
    plot_phases,
)
from ffcv_prune.analysis.runs import Run


def run(method: str, accuracies: list[float], seed: int = 0) -> Run:
    rows = [
        {"phase": "full" if method == "full" else "method", "samples_seen": 60 * (epoch + 1), "test_accuracy": accuracy}
        | {"epoch": epoch, "keep": 0.6, "lr": 0.1 / (epoch + 1), "train_loss": None}
        | {"seconds": {"total": 1.5, "eval": 0.5}}
        for epoch, accuracy in enumerate(accuracies)
    ]
    settings = {"prune.method": method, "run.seed": str(seed)}
    return Run(f"{method}_{seed}", settings, rows, {"train_samples": 100}, None, 0, {})


RUNS = [run("ucb", [0.1, 0.5]), run("full", [0.2, 0.6]), run("ema", [0.3, 0.55]), run("ucb", [0.1, 0.52], seed=1)]


def test_the_curves_of_loss_and_rates_are_those_of_the_log() -> None:
    runs = copy.deepcopy(RUNS)
    loss, lr = plot_curves(runs).axes  # the share kept never changes: no axis
    assert not loss.lines  # not on record
    assert [list(line.get_ydata()) for line in lr.lines] == [[0.1, 0.05]] * 4
    for own in runs:
        own.rows[1]["keep"] = 1.0
    loss, lr, keep = plot_curves(runs).axes
    assert [list(line.get_xdata()) for line in keep.lines] == [[0, 1]] * 4
    assert [list(line.get_ydata()) for line in keep.lines] == [[0.6, 1.0]] * 4
    assert all(tick == int(tick) for axes in (lr, keep) for tick in axes.get_xticks())
    for own in runs:
        for row in own.rows:
            row |= {"lr": 0.1, "keep": 0.6, "train_loss": 2.0}
    (loss,) = plot_curves(runs).axes
    assert len(loss.lines) == 4 and loss.get_legend() is not None


def test_phases_have_colours_that_no_method_has() -> None:
    own = run("ucb", [0.1])
    own.rows[0]["seconds"] = dict.fromkeys(("load", "score", "select", "swap", "train", "eval", "save", "total"), 1.0)
    found = [to_rgb(bar[0].get_facecolor()) for bar in plot_phases([own]).axes[0].containers]
    assert len(set(found)) == 7 and not set(found) & {to_rgb(color) for color in COLORS}


def test_time_is_told_without_the_tests() -> None:
    by_time, _ = plot_accuracy(RUNS).axes
    assert list(by_time.lines[0].get_xdata()) == [1.0, 2.0]


def test_the_map_of_classes_skips_epochs_without_a_test() -> None:
    own = run("ucb", [0.1, 0.2, 0.3])
    for row in own.rows:
        row["class_fraction"] = {"cat": 0.5, "dog": 0.5}
        row["class_accuracy"] = {} if row["epoch"] == 1 else {"cat": 0.5, "dog": None}
    (image,) = plot_by_class([own], "class_accuracy", "accuracy").axes[0].get_images()
    assert image.get_array().shape == (2, 2)
    assert list(image.get_extent()[:2]) == [-0.5, 2.5]


def colors(lines: list[Line2D]) -> list[tuple[float, float, float]]:
    return [to_rgb(line.get_color()) for line in lines]


def test_each_method_has_a_colour_of_its_own_in_all_plots() -> None:
    of = method_colors(RUNS)
    assert list(of) == ["ema", "full", "ucb"]
    assert len(set(of.values())) == 3
    assert of == method_colors(RUNS[::-1]) == method_colors([*RUNS, *RUNS])
    by_time, by_samples = plot_accuracy(RUNS).axes
    expected = [to_rgb(of[own.method]) for own in RUNS]
    assert colors(by_time.get_lines()) == colors(by_samples.get_lines()) == expected
    assert [line.get_linestyle() for line in by_time.get_lines()] == ["-", "-", "-", "--"]  # the second of ucb
    (against_rate,) = plot_against_rate(RUNS).axes
    lines = {
        line.get_label(): color for line, color in zip(against_rate.lines, colors(against_rate.lines), strict=True)
    }
    assert lines == {method: to_rgb(color) for method, color in of.items()}


@pytest.mark.parametrize("plot", [plot_accuracy, plot_against_rate])
@pytest.mark.parametrize("accuracies", [[0.9], [0.9, 0.9001], [0.2, 0.9], [0.0, 1.0]])
def test_an_axis_shows_ten_points_of_accuracy_or_more_and_all_values(plot: object, accuracies: list[float]) -> None:
    runs = [run("ucb", [accuracy], seed) for seed, accuracy in enumerate(accuracies)]
    low, high = plot(runs).axes[0].get_ylim()  # type: ignore[operator]
    spread = max(accuracies) - min(accuracies)
    assert high - low == pytest.approx(max(0.1, 1.1 * spread))
    assert low < min(accuracies) and max(accuracies) < high
    assert np.mean([low, high]) == pytest.approx((min(accuracies) + max(accuracies)) / 2)
