"""The tables of `loader_throughput`, from its rows."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.rivals import RIVALS
from ffcv_prune.errors import UserError

TITLES = {
    "cifar_raw": "CIFAR-sized, raw",
    "cifar_jpeg": "CIFAR-sized, JPEG",
    "imagenet_raw": "ImageNet-sized, raw",
    "imagenet_jpeg": "ImageNet-sized, JPEG",
}
ONCE = "FFCV, once it runs"
HEADER = (
    "loader",
    "keep",
    "images/s",
    "CPU-ms an image",
    "ours ÷ its",
    "its CPU ÷ ours",
    "subset, time",
    "subset, CPU",
)

Row = dict[str, str]
Rows = dict[int, Row]  # of one loader and one keep, by repeat


def read_rows(path: Path) -> list[Row]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def tables(rows: Sequence[Row]) -> str:
    """A Markdown table for each case, with what was measured and on what."""
    parts = [_case([row for row in rows if row["case"] == case], title) for case, title in TITLES.items()]
    return "\n\n".join(part for part in parts if part)


def speed(row: Row) -> float:
    """Images a second."""
    return float(row["images"]) / float(row["seconds"])


def cpu(row: Row) -> float:
    """CPU-milliseconds an image."""
    return 1000 * float(row["cpu_seconds"]) / float(row["images"])


def once_running(row: Row) -> Row:
    """The same measurement without what passed until the first batch of each epoch."""
    columns = ("images", "seconds", "cpu_seconds")
    firsts = ("first_images", "first_seconds", "first_cpu_seconds")
    rest = {name: str(float(row[name]) - float(row[first])) for name, first in zip(columns, firsts, strict=True)}
    return row | rest


def _case(rows: Sequence[Row], title: str) -> str:
    measured = [row for row in rows if int(row["repeat"])]
    if not measured:
        return ""
    by: dict[tuple[str, float], Rows] = {}
    for row in measured:
        label = RIVALS[row["loader"]].label
        by.setdefault((label, float(row["keep"])), {})[int(row["repeat"])] = row
        if row["loader"] == "ffcv" and float(row["images"]) > float(row["first_images"]):
            by.setdefault((ONCE, float(row["keep"])), {})[int(row["repeat"])] = once_running(row)
    ours = RIVALS["ours"].label
    order = [label for name, (label, *_) in RIVALS.items() for label in [label, *[ONCE] * (name == "ffcv")]]
    labels = [label for label in order if (label, 1.0) in by]
    lines = ["| " + " | ".join(HEADER) + " |", "|---|" + "---:|" * (len(HEADER) - 1)]
    for label in labels:
        for keep in sorted({keep for _, keep in by}):
            lines.append("| " + " | ".join(_cells(label, keep, by, ours)) + " |")
    row = measured[0]
    repeats = len({row["repeat"] for row in measured})
    versions = ", ".join(dict.fromkeys(one for row in measured for one in row["version"].split(", ")))
    difference = max(float(row["pixel_difference"]) for row in measured)
    note = (
        f"{int(row['samples']):,} images, batches of {row['batch_size']}, {row['workers']} workers, {repeats} repeats; "
        f"pixels differ from ours by at most {difference:g} of 255 in the mean. {row['cpu']}, {row['cores']} cores, "
        f"{row['date'][:10]}, commit {row['commit']}; {versions}."
    )
    return "\n".join([f"### {title}", "", *lines, "", note])


def _cells(label: str, keep: float, by: dict[tuple[str, float], Rows], ours: str) -> list[str]:
    own, whole = by[label, keep], by[label, 1.0]
    cells = [label, f"{keep:g}", _spread([speed(r) for r in own.values()]), _spread([cpu(r) for r in own.values()])]
    if label == ours:
        cells += ["", ""]
    else:
        our = by[ours, keep]
        cells += [_ratio(speed, our, own), _ratio(cpu, own, our)]
    return cells + (["", ""] if keep == 1.0 else [_ratio(speed, whole, own), _ratio(cpu, own, whole)])


def _ratio(value: Callable[[Row], float], above: Rows, below: Rows) -> str:
    return _spread([value(above[repeat]) / value(below[repeat]) for repeat in above])


def _spread(values: Sequence[float]) -> str:
    """``1,234 [1,200–1,250]``: median, lowest and highest, to three digits or whole; of one value, the value."""

    def text(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    spread = f" [{text(min(values))}–{text(max(values))}]" if len(values) > 1 else ""
    return text(statistics.median(values)) + spread
