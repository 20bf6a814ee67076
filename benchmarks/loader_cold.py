"""Data that are not in memory: what reading ahead gains, and that it costs nothing where they are.

    python -m benchmarks.loader_cold --photographs FOLDER --csv benchmarks/results/loader_cold.csv    about 20 minutes
    python -m benchmarks.loader_cold --table benchmarks/results/loader_cold.csv                       the table again

FOLDER holds photographs, at any depth (a sample of ImageNet). Four files are made of them, once, in --folder: 32 x 32
and ImageNet-sized, raw and JPEG. Each row is one loader on the first batches of a shuffled epoch, in one of three
situations, reached anew before each repeat by dropping the file's pages (`posix_fadvise`, checked by `mincore`):

* "cold": nothing is in memory, and there is room for everything: a first epoch.
* "no room": what was read is dropped after each batch, but for what the order needs within the next 64 MB: each
  epoch of data that do not fit into memory.
* "warm": what is needed is in memory.

Read "with" against "without" (this loader, `read_ahead=False`) and "ffcv" (FFCV's own, `os_cache=True`); "vs ffcv" is
the ratio of images a second within a repeat, as median [smallest, largest]; "MB read" is what the disk delivered for
1,000 images, by which the two explain themselves. Decoding only, no crops. The disk matters more than the processor,
and a virtual machine's may be throttled or cached by its host: the first lines say what it delivered just before.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage
from numpy.typing import NDArray
from PIL import Image

from benchmarks.loader_swap import end_stock_epoch
from benchmarks.results import markdown
from benchmarks.tables import Row, against, append_rows, median_and_range, read_table
from ffcv_prune import PrunedLoader
from ffcv_prune.data import recipe
from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.encode import encode_split
from ffcv_prune.data.sources import Split
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.loading.read_ahead import PAGE, WINDOW_BYTES, WINDOWS_AHEAD, byte_ranges


@dataclass(frozen=True)
class Data:
    """A file to measure on: `samples` images of side x side."""

    name: str
    side: int
    mode: str
    samples: int
    batch: int


DATA = (
    Data("32 raw", 32, "raw", 100_000, 512),
    Data("32 jpg", 32, "jpg", 100_000, 512),
    Data("256 raw", 256, "raw", 8_000, 64),
    Data("384 jpg", 384, "jpg", 20_000, 64),
)
LOADERS = ("with", "without", "ffcv")
SITUATIONS = ("cold", "no room", "warm")
KEEPS = (0.3, 1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photographs", type=Path, help="a folder of photographs, at any depth")
    parser.add_argument("--folder", type=Path, default=Path("betons/loader_cold"), help="default: %(default)s")
    parser.add_argument("--scale", type=float, default=1.0, help="of the files' number of samples; default: 1")
    parser.add_argument("--only", choices=[data.name for data in DATA], help="one of the files; default: all four")
    parser.add_argument("--batches", type=int, default=6, help="timed in each row; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--csv", type=Path, help="add one row a measurement to this file")
    parser.add_argument("--table", type=Path, help="only print the table of such a file")


def run(args: argparse.Namespace) -> None:
    """Measure, print the table, and add the rows to the CSV."""
    if args.table:
        print(summary(read_table(args.table)))
        return
    photographs = sorted(p for p in args.photographs.rglob("*") if p.is_file()) if args.photographs else []
    if not photographs:
        raise UserError("--photographs: name a folder with photographs, such as a sample of ImageNet")
    rows: list[dict[str, Any]] = []
    for data in DATA:
        if args.only not in (None, data.name):
            continue
        path = args.folder / f"{data.name.replace(' ', '_')}_{round(args.scale * data.samples)}.beton"
        if not path.exists():
            write(data, round(args.scale * data.samples), photographs, path)
        measured = measure(data, path, args.repeats, args.batches)
        if args.csv:
            append_rows(args.csv, measured)
        rows += measured
    print(summary([{key: str(value) for key, value in row.items()} for row in rows]))


def write(data: Data, samples: int, photographs: Sequence[Path], path: Path) -> None:
    """The photographs in turn, cut to squares, at a side of `data.side` pixels."""

    @cache
    def square(number: int) -> Image.Image:
        image = Image.open(photographs[number]).convert("RGB")
        side = min(image.size)
        return image.resize((data.side, data.side), box=(0, 0, side, side))

    path.parent.mkdir(parents=True, exist_ok=True)
    split = Split(np.arange(samples) % 1000, lambda i: square(i % len(photographs)), str)
    part = path.with_suffix(".part")
    encode_split(split, part, recipe.Image(mode=data.mode), 0, -1, data.name)
    with part.open("rb") as file:
        os.fsync(file.fileno())  # pages that wait to be written cannot be dropped
    part.rename(path)


class PageCache:
    """What of a file is in memory; `mappings` are those of the loaders, whose pages the kernel would not drop."""

    def __init__(self, path: Path, mappings: Sequence[Any]) -> None:
        self.path = path
        self.file = path.open("rb")
        self.bytes = path.stat().st_size
        self.mappings = mappings

    def drop(self, spare: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None) -> None:
        """Drop the file's pages, but for those in the ranges `spare`, (starts, ends) in ascending order."""
        for mapping in self.mappings:
            mapping.madvise(mmap.MADV_DONTNEED)
        starts, ends = ([], []) if spare is None else (spare[0].tolist(), spare[1].tolist())
        for start, end in zip([0, *ends], [*starts, -(-self.bytes // PAGE) * PAGE], strict=True):
            if end > start:
                os.posix_fadvise(self.file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)

    def resident(self) -> float:
        """Share of the pages that are in memory."""
        with mmap.mmap(self.file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapping:
            view = np.frombuffer(mapping, dtype=np.uint8)
            pages = np.zeros(-(-self.bytes // PAGE), dtype=np.uint8)
            failed = ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(self.bytes), ctypes.c_void_p(pages.ctypes.data)
            )
            del view
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return float((pages & 1).mean())

    def empty(self) -> None:
        for _ in range(20):
            self.drop()
            left = self.resident()
            if left < 0.01:
                return
            time.sleep(0.1)  # the kernel keeps what is still on its way from the disk
        raise UserError(f"{left:.0%} of {self.path} stay in memory: end what uses it, or use a disk's file system")

    def fill(self) -> None:
        while self.file.read(1 << 24):
            pass
        self.file.seek(0)


def disk_speed(cached: PageCache) -> str:
    """What the disk delivers: from end to end, and page by page."""
    cached.empty()
    start = time.perf_counter()
    cached.fill()
    rate = cached.bytes / (time.perf_counter() - start) / 1e6
    cached.empty()
    os.posix_fadvise(cached.file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    start = time.perf_counter()
    for offset in np.random.default_rng(0).integers(0, cached.bytes, 200).tolist():
        os.pread(cached.file.fileno(), PAGE, offset // PAGE * PAGE)
    pages = 200 / (time.perf_counter() - start)
    os.posix_fadvise(cached.file.fileno(), 0, 0, os.POSIX_FADV_NORMAL)
    return f"{cached.path.name}: {cached.bytes / 1e6:.0f} MB, read at {rate:.0f} MB/s, or {pages:.0f} pages a second"


def measure(data: Data, path: Path, repeats: int, batches: int) -> list[dict[str, Any]]:
    """All loaders, keeps and situations, `repeats` times, the loaders next to each other."""
    info = check_beton(path)
    ours = [
        PrunedLoader(path, data.batch, score_pipelines(info), read_ahead=read_ahead) for read_ahead in (True, False)
    ]
    pipelines = {
        "image": [SimpleRGBImageDecoder(), ToTensor(), ToTorchImage()],
        "label": [IntDecoder(), ToTensor(), Squeeze(1)],
    }
    stock = Loader(str(path), data.batch, os_cache=True, order=OrderOption.RANDOM, seed=0, pipelines=pipelines)
    epochs: dict[str, Callable[[NDArray[np.int64]], Any]] = {
        "with": lambda ids: _select(ours[0], ids),
        "without": lambda ids: _select(ours[1], ids),
        "ffcv": lambda ids: _select_stock(stock, ids),
    }
    everything = np.arange(info.num_samples)
    for epoch in epochs.values():  # compiles and maps
        list(epoch(everything[: data.batch]))
    mappings = [loader.memory_manager.context.mmap._mmap for loader in (ours[0], stock)]
    cached = PageCache(path, mappings)
    print(disk_speed(cached), flush=True)
    rows = []
    rng = np.random.default_rng(0)
    for repeat in range(repeats):
        for keep in KEEPS:
            ids = np.sort(rng.permutation(info.num_samples)[: max(data.batch, round(keep * info.num_samples))])
            for situation in SITUATIONS:
                for name in np.roll(LOADERS, repeat).tolist():
                    if situation != "warm":
                        cached.empty()
                    elif cached.resident() < 0.995:
                        cached.fill()
                    before = disk_bytes()
                    seconds, images = _time(
                        lambda name=name, ids=ids: epochs[name](ids),  # type: ignore[misc]
                        batches,
                        _forgetting(cached, ours[0], name == "with") if situation == "no room" else None,
                    )
                    rows.append(
                        {
                            "data": data.name,
                            "keep": keep,
                            "situation": situation,
                            "loader": name,
                            "repeat": repeat,
                            "images": images,
                            "seconds": round(seconds, 4),
                            "read_mb": round((disk_bytes() - before) / 1e6, 1),
                            "file_mb": round(cached.bytes / 1e6),
                        }
                    )
    return rows


def _select(loader: PrunedLoader, ids: NDArray[np.int64]) -> Any:
    loader.set_selection(ids)
    loader.set_epoch(0)
    return iter(loader)


def _select_stock(loader: Loader, ids: NDArray[np.int64]) -> Any:
    """FFCV's loader on other samples without building it anew, which would cost it seconds more."""
    loader.traversal_order.indices = loader.first_traversal_order = ids
    loader.next_epoch = 0
    return iter(loader)


def _forgetting(cached: PageCache, loader: PrunedLoader, read_ahead: bool) -> Callable[[NDArray[np.int64]], None]:
    """A function of the ids to come that drops what a memory too small would not hold."""
    fields = loader.decoded_fields
    ahead = int(WINDOWS_AHEAD * WINDOW_BYTES / loader.file.sample_bytes)

    def forget(coming: NDArray[np.int64]) -> None:
        coming = coming[:ahead]
        cached.drop(byte_ranges(loader.file, fields, coming) if read_ahead and len(coming) else None)

    return forget


def _time(
    begin: Callable[[], Any], batches: int, forget: Callable[[NDArray[np.int64]], None] | None
) -> tuple[float, int]:
    """Seconds and images of the first batches of an epoch, its beginning included; `forget` itself left out."""
    images, apart, before_last = 0, 0.0, 0.0
    start = end = time.perf_counter()
    epoch = begin()
    for served in islice(epoch, batches):
        images += len(served[0])
        end, before_last = time.perf_counter(), apart
        if forget:
            apart -= end
            forget(epoch.order[images:])
            apart += time.perf_counter()
    # Ending FFCV's thread may take half a second, and its destructor wants it: not the time of a batch.
    if isinstance(epoch, EpochIterator):
        end_stock_epoch(epoch)
    else:
        epoch.close()
    return end - start - before_last, images


def disk_bytes() -> int:
    """Bytes that this process made the disk deliver so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def summary(rows: Sequence[Row]) -> str:
    """The Markdown table: one line for each file, keep, situation and loader."""
    rates = {tuple(row[k] for k in ("data", "keep", "situation", "loader", "repeat")): row for row in rows}
    body = []
    for data, keep, situation, loader in dict.fromkeys(key[:4] for key in rates):
        own = [row for key, row in rates.items() if key[:4] == (data, keep, situation, loader)]
        speed = {row["repeat"]: float(row["images"]) / float(row["seconds"]) for row in own}
        stock = {
            key[4]: float(row["images"]) / float(row["seconds"])
            for key, row in rates.items()
            if key[:4] == (data, keep, situation, "ffcv")
        }
        read = statistics.median(1000 * float(row["read_mb"]) / float(row["images"]) for row in own)
        body.append(
            [
                data,
                keep,
                situation,
                loader,
                median_and_range(list(speed.values()), 0),
                median_and_range(against(speed, stock), 2),
                f"{read:.0f}",
            ]
        )
    head = ["data", "keep", "situation", "loader", "images/s", "vs ffcv", "MB read / 1,000"]
    made = rows[0]
    measured = ""
    if "cpu" in made:
        repeats = len({row["repeat"] for row in rows})
        measured = f"\n\n{made['cpu']}, {made['cores']} cores, {made['memory_gb']} GB, {repeats} repeats."
    return markdown(head, body) + measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    run_command(main)
