"""Throughput on changing subsets: images/s and CPU time an image, against other loaders.

    pip install -e ".[rivals]"                                    DALI, SPDL, Grain and simplejpeg, for the CPU
    python -m benchmarks.loading throughput --imagenet-dir DIR
    python -m benchmarks.loading throughput --imagenet-dir DIR --busy 1 --csv busy.csv      beside a busy process
    python -m benchmarks.loading throughput --redraw               the tables again, without measuring

Half an hour on 2 cores, by estimate, and some GB in betons/throughput. DIR holds ImageNet's photographs as
train/WNID/*.JPEG; some hundred are enough, they are repeated. Without it only CIFAR-10 is measured, from the .beton
that `write_datasets.py --dataset cifar10` writes. A loader that is not installed is left out.

Every epoch brings a new selection, drawn at random, of 30 %, 50 % or all of the images, which everybody shuffles. They
are raw pixels and JPEG. Those of CIFAR's size (32 x 32) are copied, and of ImageNet's (longer side 400) the centre is
resized to 224. Of photographs with a longer side of 500, a random crop is resized to 224, or the centre to 80, as for
scores. For these scores, a loader that can decodes JPEG at a scale of libjpeg's. Everybody reads the same stored bytes
from a warm page cache and delivers uint8[B, side, side, 3]. Loaders take turns in measurements of --seconds (one epoch
at least). Building, compiling and the first epoch are left out (rows of repeat 0). Work that a loader repeats for each
selection counts. docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.harness.machine import measured_with
from benchmarks.harness.rows import Results, positive, rotated
from benchmarks.harness.tables import Row, groups, ratios, spread, table, values
from benchmarks.harness.training import write_once
from benchmarks.loading.rivals import RIVALS
from benchmarks.loading.rivals.data import Data
from benchmarks.loading.rivals.process import Measured, Served
from ffcv_prune.data import recipe
from ffcv_prune.data.sources import Split, open_source
from ffcv_prune.errors import UserError, nearest
from ffcv_prune.loading.arguments import usable_cores

TITLE = "Throughput on changing subsets"
COLUMNS = (
    *("case", "samples", "batch_size", "workers", "loader", "keep", "repeat"),
    *(field.name for field in fields(Measured)),
    *("pixel_difference", "version"),
)
SETTINGS = ("repeats", "imagenet_samples", "loaders", "seconds", "workers", "busy")
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # ends with this process, however it ends
KEEPS = (0.3, 0.5, 1.0)


class Case(NamedTuple):
    """What is served: its name in the table, samples a batch, side of the images, longest side of stored photographs,
    and what `Data` knows."""

    title: str
    batch_size: int
    side: int = 0
    longest: int = 0
    crop: str = "centre"
    reduced: bool = False


CASES = {
    "cifar_raw": Case("CIFAR-sized, raw", 512),
    "cifar_jpeg": Case("CIFAR-sized, JPEG", 512),
    "imagenet_raw": Case("ImageNet-sized, raw", 128, 224, 400),
    "imagenet_jpeg": Case("ImageNet-sized, JPEG", 128, 224, 400),
    "crop_raw": Case("Photographs, raw, random crops", 128, 224, 500, "random"),
    "crop_jpeg": Case("Photographs, JPEG, random crops", 128, 224, 500, "random"),
    "score_jpeg": Case("Photographs, JPEG, scored at 80 pixels", 128, 80, 500, reduced=True),
}
ONCE = "FFCV, once it runs"
# Mean absolute difference to our pixels, of 255. Equal where the same functions are called; DALI's linear
# interpolation is not an area average. Twice that where images are decoded at scales, of which others take other ones.
PIXEL_BOUND = 3.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cifar", type=Path, default=Path("betons/cifar10/train.beton"), help="raw CIFAR-10")
    parser.add_argument("--imagenet-dir", type=Path, help="folder with train/WNID/*.JPEG")
    parser.add_argument("--imagenet-samples", type=positive, default=3000, help="how many, repeated or not")
    parser.add_argument("--out", type=Path, default=Path("betons/throughput"), help="where the data is written, once")
    parser.add_argument("--cases", default=",".join(CASES), help="separated by commas")
    parser.add_argument("--loaders", default=",".join(RIVALS), help="ours is always measured")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a measurement, at least")
    parser.add_argument("--workers", type=positive, default=usable_cores(), help="of each loader")
    parser.add_argument("--busy", type=positive, default=0, help="processes that keep a core busy")


def run(args: argparse.Namespace, results: Results) -> None:
    chosen = list(dict.fromkeys(["ours", *_chosen(args.loaders, RIVALS)]))
    for case in results.left(_chosen(args.cases, CASES), lambda row: row["case"]):
        if CASES[case].longest and not args.imagenet_dir:
            print(f"{case}: skipped; --imagenet-dir says where the photographs are")
        else:
            data = prepare(case, args)
            names = [name for name in chosen if name != "whole" or data.reduced]
            with busy(args.busy):
                results.append(measure(case, data, names, args))


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes run meanwhile, each wanting a core."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(case: str, data: Data, names: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """All repeats of a case, the loaders taking turns; one row a measurement."""
    batch_size = CASES[case].batch_size
    common = {"case": case, "samples": len(data), "batch_size": batch_size, "workers": args.workers}
    rows = []
    with ExitStack() as stack:
        loaders: dict[str, Served] = {}
        for name in names:
            print(f"{case}: {RIVALS[name].label}", flush=True)
            try:
                loaders[name] = Served(RIVALS[name], data, batch_size, args.workers)
            except ModuleNotFoundError as error:
                print(f'  skipped: {error.name} is not installed; pip install -e ".[rivals]" brings it')
                continue
            stack.callback(loaders[name].close)
        difference = {name: pixel_difference(loaders["ours"], loader) for name, loader in loaders.items()}
        if data.crop == "random" and "ffcv" in difference:
            difference["ffcv"] = float("nan")  # its crops are its own
        for name, loader in loaders.items():
            if difference[name] > PIXEL_BOUND * (2 if data.reduced else 1):
                raise RuntimeError(f"{case}: {name} delivers other pixels than ours, by {difference[name]:.1f} of 255")
            rows.append({"loader": name, "keep": 1.0, "repeat": 0} | asdict(loader.warm_up))
        for repeat in range(1, args.repeats + 1):
            print(f"{case}: repeat {repeat} of {args.repeats}", flush=True)
            for keep in KEEPS:
                for name in rotated([*loaders], repeat):
                    measured = loaders[name].measure(keep, args.seconds, (repeat,))
                    rows.append({"loader": name, "keep": keep, "repeat": repeat} | asdict(measured))
    return [
        common | row | {"pixel_difference": difference[row["loader"]], "version": _version(row["loader"])}
        for row in rows
    ]


def pixel_difference(ours: Served, other: Served) -> float:
    """Mean absolute difference of the pixels of the images that both made, of 255."""
    return float(np.abs(ours.pixels.astype(int) - other.pixels.astype(int)).mean())


def prepare(case: str, args: argparse.Namespace) -> Data:
    """The images of a case, written to --out where they are not there yet."""
    own, raw = CASES[case], case.endswith("raw")
    if case.startswith("cifar"):
        pixels = Data(args.cifar, 0)
        if pixels.is_jpeg or (pixels.heights != pixels.widths).any():
            raise UserError(
                f"{args.cifar} does not hold raw squares; name what write_datasets.py --dataset cifar10 wrote"
            )
        split = Split(np.zeros(len(pixels), np.int64), lambda i: Image.fromarray(pixels.pixels(i)), str)
        side, image = int(pixels.heights[0]), recipe.Image()
        path = args.out / f"{case}_{len(pixels)}.beton"
    else:
        imagenet = recipe.load_recipe("imagenet", {"splits.val": ""})
        photographs = open_source(imagenet, args.imagenet_dir).splits["train"]
        split = photographs.take(np.arange(args.imagenet_samples) % len(photographs.labels))
        side, image = own.side, replace(imagenet.image, max_resolution=own.longest)
        path = args.out / f"photographs_{own.longest}_{'raw' if raw else 'jpeg'}_{args.imagenet_samples}.beton"
    written = write_once(split, path, replace(image, mode="raw" if raw else "jpg"), args.workers)
    data = Data(written, side, own.crop, own.reduced)
    data.write_dense()
    return data


def _chosen(text: str, known: Any) -> list[str]:
    for name in text.split(","):
        if name not in known:
            raise UserError(f'"{name}" is not one of them{nearest(name, known)}')
    return text.split(",")


def _version(name: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in RIVALS[name].packages)


def summary(rows: Sequence[Row]) -> str:
    """A Markdown table for each case, with what was measured, and on what."""
    measured = [row for row in rows if int(row["repeat"])]  # 0: the warm-up
    by_case = groups(measured, "case")
    parts = [_case(by_case[case,], own.title) for case, own in CASES.items() if (case,) in by_case]
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
    rest = {name: float(row[name]) - float(row[f"first_{name}"]) for name in ("images", "seconds", "cpu_seconds")}
    return dict(row) | {name: str(value) for name, value in rest.items()}


def _case(rows: Sequence[Row], title: str) -> str:
    by_name = groups(rows, "loader", "keep")
    by_label: dict[tuple[str, str], list[Row]] = {}
    for name, rival in RIVALS.items():
        own = {keep: by_name[name, keep] for keep in map(str, KEEPS) if (name, keep) in by_name}
        by_label |= {(rival.label, keep): made for keep, made in own.items()}
        for keep, made in own.items() if name == "ffcv" else []:
            more = [once_running(row) for row in made if float(row["images"]) > float(row["first_images"])]
            by_label |= {(ONCE, keep): more} if more else {}
    lines = []
    for (label, keep), its in by_label.items():
        whole, ours = by_label.get((label, str(KEEPS[-1])), []), by_label[RIVALS["ours"].label, keep]
        line = {"loader": label, "keep": f"{float(keep):g}", "images/s": spread(values(its, speed))}
        line["CPU-ms an image"] = spread(values(its, cpu))
        line["ours ÷ its"] = "" if its is ours else spread(ratios(ours, its, speed))
        line["its CPU ÷ ours"] = "" if its is ours else spread(ratios(its, ours, cpu))
        line["subset, time"] = "" if its is whole else spread(ratios(whole, its, speed))
        line["subset, CPU"] = "" if its is whole else spread(ratios(its, whole, cpu))
        lines.append(line)
    made = rows[0]
    difference = round(np.nanmax(values(rows, "pixel_difference")), 3)
    note = (
        f"{int(made['samples']):,} images, batches of {made['batch_size']}, {made['workers']} workers; "
        f"pixels differ from ours by at most {difference:g} of 255 in the mean."
    )
    return "\n\n".join([f"## {title}", table(lines), note])
