"""What all figures share: how they are written, and error bars over repeats."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def save(figure: Figure, path: Path) -> Path:
    """Write an SVG, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(
        {"svg.hashsalt": "ffcv_prune", "svg.fonttype": "none"}
    ):  # the same numbers make the same file
        figure.savefig(path, metadata={"Date": None})
    return path


def error_bars(points: Sequence[Sequence[float]]) -> tuple[list[float], list[list[float]]]:
    """What `Axes.errorbar` takes as y and yerr: median, and what lies below and above it to lowest and highest."""
    middle = [statistics.median(values) for values in points]
    below = [m - min(values) for m, values in zip(middle, points, strict=True)]
    above = [max(values) - m for m, values in zip(middle, points, strict=True)]
    return middle, [below, above]
