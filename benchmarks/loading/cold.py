"""Data that are not in memory: what reading ahead gains, and that it costs nothing where they are.

    python -m benchmarks.loading cold --photographs FOLDER      about 20 minutes
    python -m benchmarks.loading cold --redraw                  the table again, without measuring

FOLDER holds photographs, at any depth (a sample of ImageNet). Four files are made of them, once, in --folder: 32 x 32
and ImageNet-sized, raw and JPEG. Each row is one loader on the first batches of a shuffled epoch, decoding only, in
one of three situations. Each repeat begins by dropping the file's pages:

* "cold": nothing is in memory, and there is room for everything: a first epoch.
* "no room": after each batch its pages are dropped, except those that the order needs within the next 64 MB. So each
  epoch is like one of data that do not fit into memory. All loaders have that done to them, and are charged its time.
  Not with 32 x 32, of which 64 MB in a shuffled order lie on nearly all pages of the file.
* "warm": what is needed is in memory.

Loaders: "with" and "without" reading ahead are ours, "ffcv" is FFCV's own. Each has a mapping of its own, because the
kernel's reading ahead depends on earlier accesses. docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness.machine import measured_with
from benchmarks.harness.rows import Results, positive, rotated
from benchmarks.harness.tables import Row, groups, ratios, spread, table, values
from benchmarks.harness.training import write_once
from benchmarks.loading.page_cache import PageCache, disk_bytes, disk_speed, kernel_read_ahead_kb
from benchmarks.loading.rivals.data import random_subset
from benchmarks.loading.stock import end_stock_epoch, stock_loader
from ffcv_prune import PrunedLoader
from ffcv_prune.data import recipe
from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.sources import Split
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.loading.read_ahead import WINDOW_BYTES, WINDOWS_AHEAD, byte_ranges

TITLE = "Data that are not in memory"
COLUMNS = (
    *("data", "keep", "situation", "loader", "repeat", "images", "seconds", "read_mb"),
    *("file_mb", "disk_mb_per_second", "disk_pages_per_second", "kernel_read_ahead_kb"),
)
SETTINGS = ("repeats", "scale", "megabytes")
LEAST_BATCHES = 12


@dataclass(frozen=True)
class Data:
    """A file to measure on: `samples` images of side x side."""

    name: str
    side: int
    mode: str
    samples: int
    batch: int
    situations: Sequence[str]


DATA = (
    Data("32 raw", 32, "raw", 100_000, 512, ("cold", "warm")),
    Data("32 jpg", 32, "jpg", 100_000, 512, ("cold", "warm")),
    Data("256 raw", 256, "raw", 8_000, 64, ("cold", "no room", "warm")),
    Data("384 jpg", 384, "jpg", 20_000, 64, ("cold", "no room", "warm")),
)
LOADERS = ("with", "without", "ffcv")
KEEPS = (0.3, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photographs", type=Path, help="a folder of photographs, at any depth")
    parser.add_argument("--folder", type=Path, default=Path("betons/loader_cold"), help="of the files")
    parser.add_argument("--scale", type=float, default=1.0, help="of the files' number of samples")
    parser.add_argument("--only", choices=[data.name for data in DATA], help="one of the files; without: all four")
    parser.add_argument("--megabytes", type=positive, default=48, help="of images in each row, or the whole epoch")


def run(args: argparse.Namespace, results: Results) -> None:
    """Write the files that are not there yet, and measure on those that have no rows."""
    photographs = sorted(p for p in args.photographs.rglob("*") if p.is_file()) if args.photographs else []
    if not photographs:
        raise UserError("--photographs: name a folder with photographs, such as a sample of ImageNet")
    wanted = {data.name: data for data in DATA if args.only in (None, data.name)}
    for name in results.left(wanted, lambda row: row["data"]):
        path = args.folder / f"{name.replace(' ', '_')}_{round(args.scale * wanted[name].samples)}.beton"
        write(wanted[name], round(args.scale * wanted[name].samples), photographs, path)
        results.append(list(measure(wanted[name], path, args.repeats, args.megabytes)))


def write(data: Data, samples: int, photographs: Sequence[Path], path: Path) -> None:
    """The photographs in turn, cut to squares, at a side of `data.side` pixels."""

    @cache
    def square(number: int) -> Image.Image:
        image = Image.open(photographs[number]).convert("RGB")
        side = min(image.size)
        return image.resize((data.side, data.side), box=(0, 0, side, side))

    split = Split(np.arange(samples) % 1000, lambda i: square(i % len(photographs)), str)
    write_once(split, path, recipe.Image(mode=data.mode))


def measure(data: Data, path: Path, repeats: int, megabytes: int) -> Iterator[dict[str, Any]]:
    """All loaders, keeps and situations, `repeats` times, the loaders next to each other."""
    info = check_beton(path)
    link = path.with_suffix(".link")  # our loaders of one path share its mapping
    link.unlink(missing_ok=True)
    link.hardlink_to(path)
    options: dict[str, Any] = {"pipelines": score_pipelines(info), "order": OrderOption.RANDOM}
    ours = [PrunedLoader(path, data.batch, **options)]
    ours.append(PrunedLoader(link, data.batch, **options, read_ahead=False))
    batches = max(LEAST_BATCHES, round(megabytes * 1e6 / ours[0].file.sample_bytes / data.batch))
    stock = stock_loader(path, data.batch, seed=0)
    epochs: dict[str, Callable[[NDArray[np.int64]], Any]] = {
        "with": lambda ids: _select(ours[0], ids),
        "without": lambda ids: _select(ours[1], ids),
        "ffcv": lambda ids: _select_stock(stock, ids),
    }
    everything = np.arange(info.num_samples)
    for epoch in epochs.values():  # compiles and maps
        list(epoch(everything[: data.batch]))
    mappings = [loader.memory_manager.context.mmap._mmap for loader in (*ours, stock)]
    cached = PageCache(path, mappings)
    rate, pages = disk_speed(cached)
    disk = {"disk_mb_per_second": round(rate), "disk_pages_per_second": round(pages)}
    disk["kernel_read_ahead_kb"] = kernel_read_ahead_kb(path)
    print(f"{data.name}: {cached.bytes / 1e6:.0f} MB, {disk}", flush=True)
    rng = np.random.default_rng(0)
    turns = ((repeat, keep) for repeat in range(repeats) for keep in KEEPS)
    for repeat, keep in turns:
        ids = random_subset(info.num_samples, max(keep, data.batch / info.num_samples), rng)
        for situation in data.situations:
            forget = _forgetting(cached, ours[0]) if situation == "no room" else None
            for name in rotated(LOADERS, repeat):
                if situation != "warm":
                    cached.empty()
                elif cached.resident() < 0.995:
                    cached.fill()
                before = disk_bytes()
                seconds, images = _time(epochs[name], ids, batches, forget)
                row = {"data": data.name, "keep": keep, "situation": situation, "loader": name, "repeat": repeat}
                row |= {"images": images, "seconds": seconds, "file_mb": round(cached.bytes / 1e6)}
                yield row | disk | {"read_mb": (disk_bytes() - before) / 1e6}
    link.unlink()


def _select(loader: PrunedLoader, ids: NDArray[np.int64]) -> Any:
    loader.set_selection(ids)
    loader.set_epoch(0)
    return iter(loader)


def _select_stock(loader: Loader, ids: NDArray[np.int64]) -> Any:
    """FFCV's loader on other samples without building it anew, which would cost it seconds more."""
    loader.traversal_order.indices = loader.first_traversal_order = ids
    loader.next_epoch = 0
    return iter(loader)


def _forgetting(cached: PageCache, loader: PrunedLoader) -> Callable[[NDArray[np.int64]], None]:
    """A function of the ids to come that drops what a memory too small would not hold."""
    fields = loader.graph.decoded_fields
    ahead = int(WINDOWS_AHEAD * WINDOW_BYTES / loader.file.sample_bytes)

    def forget(coming: NDArray[np.int64]) -> None:
        coming = coming[:ahead]
        cached.drop(byte_ranges(loader.file, fields, coming) if len(coming) else None)

    return forget


def _time(
    begin: Callable[[NDArray[np.int64]], Any],
    ids: NDArray[np.int64],
    batches: int,
    forget: Callable[[NDArray[np.int64]], None] | None,
) -> tuple[float, int]:
    """Seconds and images of the first batches of an epoch, its beginning and `forget` included."""
    images = 0
    start = time.perf_counter()
    epoch = begin(ids)
    for served in islice(epoch, batches):
        images += len(served[0])
        if forget:
            forget(epoch.order[images:])
    seconds = time.perf_counter() - start
    # Ending FFCV's thread may take half a second, and its destructor wants it: not the time of a batch.
    if isinstance(epoch, EpochIterator):
        end_stock_epoch(epoch)
    else:
        epoch.close()
    return seconds, images


def summary(rows: Sequence[Row]) -> str:
    """The Markdown table, one line for each file, keep, situation and loader, and what the disk delivered."""
    by_loader = groups(rows, "data", "keep", "situation", "loader")
    lines = []
    for (data, keep, situation, loader), own in by_loader.items():
        stock = by_loader[data, keep, situation, "ffcv"]
        line = {"data": data, "keep": keep, "situation": situation, "loader": loader}
        line |= {"images/s": spread(values(own, _speed)), "vs ffcv": spread(ratios(own, stock, _speed))}
        read = statistics.median(1000 * float(row["read_mb"]) / float(row["images"]) for row in own)
        lines.append(line | {"MB read / 1,000": f"{read:.0f}"})
    disk = "; ".join(
        f"{data} ({own[0]['file_mb']} MB) at {own[0]['disk_mb_per_second']} MB/s from end to end, "
        f"{own[0]['disk_pages_per_second']} single pages a second, the kernel's read-ahead being "
        f"{own[0]['kernel_read_ahead_kb']} KB"
        for (data,), own in groups(rows, "data").items()
    )
    return f"{table(lines)}\n\nThe disk delivered {disk}. {measured_with(rows)}"


def _speed(row: Row) -> float:
    """Images a second."""
    return float(row["images"]) / float(row["seconds"])
