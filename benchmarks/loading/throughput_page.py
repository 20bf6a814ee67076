"""The tables of `throughput`, from its rows."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness.machine import measured_with
from benchmarks.harness.rows import groups
from benchmarks.harness.tables import Row, markdown, ratios, spread
from benchmarks.loading.rivals import RIVALS

TITLES = {
    "cifar_raw": "CIFAR-sized, raw",
    "cifar_jpeg": "CIFAR-sized, JPEG",
    "imagenet_raw": "ImageNet-sized, raw",
    "imagenet_jpeg": "ImageNet-sized, JPEG",
}
ONCE = "FFCV, once it runs"
ALL = "1.0"  # the keep that the others are compared with
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

Rows = dict[tuple[str, str], list[Row]]  # by label and keep


def summary(rows: Sequence[Row]) -> str:
    """A Markdown table for each case, with what was measured, and on what."""
    by_case = groups(rows, "case")
    parts = [_case(by_case[case,], title) for case, title in TITLES.items() if (case,) in by_case]
    measured = [row for row in rows if int(row["repeat"])]
    versions = dict.fromkeys(one for row in rows for one in row["version"].split(", "))
    return "\n\n".join([*parts, f"{measured_with(measured)} Loaders: {', '.join(versions)}."])


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
    return dict(row) | rest


def _case(rows: Sequence[Row], title: str) -> str:
    measured = [row for row in rows if int(row["repeat"])]  # 0: the warm-up
    by: Rows = {}
    for (name, keep), own in groups(measured, "loader", "keep").items():
        by[RIVALS[name].label, keep] = own
        more = [row for row in own if float(row["images"]) > float(row["first_images"])]
        if name == "ffcv" and more:
            by[ONCE, keep] = [once_running(row) for row in more]
    order = [label for name, (label, *_) in RIVALS.items() for label in [label, *[ONCE] * (name == "ffcv")]]
    cells = sorted(by, key=lambda cell: (order.index(cell[0]), float(cell[1])))
    difference = max(float(row["pixel_difference"]) for row in measured)
    made = measured[0]
    note = (
        f"{int(made['samples']):,} images, batches of {made['batch_size']}, {made['workers']} workers; "
        f"pixels differ from ours by at most {difference:g} of 255 in the mean."
    )
    return "\n\n".join([f"## {title}", markdown(HEADER, [_line(label, keep, by) for label, keep in cells]), note])


def _line(label: str, keep: str, by: Rows) -> list[str]:
    own, whole, ours = by[label, keep], by.get((label, ALL), []), by[RIVALS["ours"].label, keep]
    line = [label, f"{float(keep):g}", spread([speed(row) for row in own]), spread([cpu(row) for row in own])]
    line += ["", ""] if own is ours else [spread(ratios(ours, own, speed)), spread(ratios(own, ours, cpu))]
    return line + (["", ""] if keep == ALL else [spread(ratios(whole, own, speed)), spread(ratios(own, whole, cpu))])
