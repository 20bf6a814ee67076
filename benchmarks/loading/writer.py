"""Writing a data set: images/s and bytes, against FFCV's writer and the folder as torchvision reads it.

    python -m benchmarks.loading writer --imagenet-dir DIR
    python -m benchmarks.loading writer --redraw               the table again, without measuring

About 15 minutes on 2 cores, and 2 GB in a temporary folder. DIR holds ImageNet's photographs as train/WNID/*.JPEG;
some hundred are enough, they are repeated. The writers take turns, read the same folder from a warm page cache and
have as many processes. Their images have a longer side of at most --max-resolution. They are raw pixels or JPEG of
quality 90. Our writer also keeps the JPEG files that need no change (`image.keep_jpeg`). What each took includes
putting the file on the disk; ours also counts pixel values, takes checksums, checks the file and writes a manifest.

Each file is then read: an epoch of random crops to 224 by `PrunedLoader`, by torchvision's DataLoader from the folder.
Each sample's checksum in our files is verified in the first epoch that reads it. "first ÷ later" is the duration of
such an epoch against the next one. FFCV's files have no checksums and show how far two epochs differ anyway.
docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import io
import os
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields import IntField, RGBImageField
from ffcv.fields.rgb_image import resizer
from ffcv.writer import DatasetWriter
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.harness.machine import measured_with
from benchmarks.harness.rows import Results, positive, rotated
from benchmarks.harness.tables import Row, groups, ratios, spread, table, values
from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton, read_tables
from ffcv_prune.data.images import read_images
from ffcv_prune.data.recipe import load_recipe
from ffcv_prune.data.writer import write_dataset
from ffcv_prune.errors import UserError
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.loading.pipelines import train_pipelines

TITLE = "Writing a data set"
COLUMNS = (
    *("writer", "stored", "repeat", "images", "write_seconds", "bytes"),
    *("read_seconds", "first_seconds", "kept", "difference"),
)
SETTINGS = ("repeats", "images", "max_resolution", "workers")
OURS, STOCK, FOLDER = "ffcv_prune", "FFCV", "torchvision"
RAW, JPG, KEPT, FILES = "raw", "JPEG", "JPEG, files kept", "the files"
CASES = ((OURS, RAW), (STOCK, RAW), (OURS, JPG), (STOCK, JPG), (OURS, KEPT), (FOLDER, FILES))
RECIPE = "source: {folder: photographs}\nsplits: {train: train}\n"
QUALITY, CROP, BATCH, COMPARED = 90, 224, 128, 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--imagenet-dir", type=Path, help="folder with train/WNID/*.JPEG")
    parser.add_argument("--images", type=positive, default=4000, help="written by each")
    parser.add_argument("--max-resolution", type=positive, default=500, help="longer side of the stored images")
    parser.add_argument("--workers", type=positive, default=usable_cores(), help="of each writer and reader")


def run(args: argparse.Namespace, results: Results) -> None:
    """Link the photographs into one folder of `args.images`, and write it in turn."""
    photographs = sorted(args.imagenet_dir.glob("train/*/*.JPEG")) if args.imagenet_dir else []
    if not photographs:
        raise UserError("--imagenet-dir: name a folder with photographs in train/WNID/*.JPEG")
    cases = [(str(repeat), *case) for repeat in range(args.repeats) for case in rotated(CASES, repeat)]
    left = results.left(cases, lambda row: (row["repeat"], row["writer"], row["stored"]))
    with TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(args.images):
            link = folder / f"photographs/train/{number % 100:03}/{number:06}.JPEG"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(photographs[number % len(photographs)].resolve())
        (folder / "writer.yaml").write_text(RECIPE)
        files = [Path(file) for file, _ in ImageFolder(folder / "photographs/train").samples]
        for file in files[: len(photographs)]:
            file.read_bytes()  # into memory
        for repeat, writer, stored in left:
            print(f"repeat {int(repeat) + 1} of {args.repeats}: {writer}, {stored}", flush=True)
            row = {"writer": writer, "stored": stored, "repeat": repeat, "images": len(files)}
            results.append([row | measure(writer, stored, folder, files, args)])


def measure(writer: str, stored: str, folder: Path, files: Sequence[Path], args: argparse.Namespace) -> dict[str, Any]:
    """Write, read and compare."""
    if writer == FOLDER:
        return {"bytes": sum(file.stat().st_size for file in files), "read_seconds": read_folder(folder, args.workers)}
    write = write_ours if writer == OURS else write_stock
    seconds, path = timed(lambda: write(stored, folder, args))
    row = {"write_seconds": seconds, "bytes": path.stat().st_size, **read(path, args.workers)}
    if writer == OURS:
        tables = read_tables(path)
        sizes = tables.sizes[np.searchsorted(tables.addresses, tables.pointers["image"])]
        row["kept"] = float(np.mean(sizes == np.array([file.stat().st_size for file in files])))
    row["difference"] = difference(path, files[:COMPARED], args.max_resolution)
    path.unlink()
    return row


def write_ours(stored: str, folder: Path, args: argparse.Namespace) -> Path:
    """As `write_datasets.py` does."""
    image = {"mode": "raw" if stored == RAW else "jpg", "jpeg_quality": QUALITY, "keep_jpeg": stored == KEPT}
    image["max_resolution"] = args.max_resolution
    recipe = load_recipe(str(folder / "writer.yaml"), {f"image.{name}": str(value) for name, value in image.items()})
    with redirect_stdout(io.StringIO()):
        return write_dataset(recipe, folder, folder, args.workers, force=True)[0]


def write_stock(stored: str, folder: Path, args: argparse.Namespace) -> Path:
    """FFCV's own writer, from torchvision's data set of the folder; the file is on the disk in the end."""
    path = folder / "stock.beton"
    mode = "raw" if stored == RAW else "jpg"
    fields = {"image": RGBImageField(mode, max_resolution=args.max_resolution, jpeg_quality=QUALITY)}
    made = DatasetWriter(str(path), fields | {"label": IntField()}, num_workers=args.workers)
    made.from_indexed_dataset(ImageFolder(folder / "photographs/train"))
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


def read(path: Path, workers: int) -> dict[str, float]:
    """Seconds of two epochs of our loader; in the first of them it verifies the samples, but for a batch before it."""
    pipelines = train_pipelines(check_beton(path), "random_resized_crop", CROP)
    with_rest = {"shuffle": True, "drop_last": False}
    loader = PrunedLoader(path, BATCH, workers, pipelines=pipelines, **with_rest)  # type: ignore[arg-type]
    loader.set_selection(np.arange(min(BATCH, loader.num_samples)))
    epoch(loader)  # compiles, starts the threads
    loader.set_selection(None)
    return {"first_seconds": epoch(loader), "read_seconds": epoch(loader)}


def read_folder(folder: Path, workers: int) -> float:
    """The same of torchvision's; its first epoch starts the workers."""
    transform = transforms.Compose([transforms.RandomResizedCrop(CROP), transforms.PILToTensor()])
    data = ImageFolder(folder / "photographs/train", transform)
    loader = torch.utils.data.DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
    epoch(loader)
    return epoch(loader)


def epoch(loader: Any) -> float:
    return timed(lambda: [None for _ in loader])[0]


def difference(path: Path, files: Sequence[Path], max_resolution: int) -> float:
    """Mean difference of stored pixels from those of the files, shrunk as far as need be; of 255."""
    found = []
    for image, file in zip(read_images(path, range(len(files))), files, strict=True):
        wanted = resizer(np.array(Image.open(file).convert("RGB")), max_resolution)
        found.append(np.abs(image.astype(np.int16) - wanted).mean())
    return float(np.mean(found))


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    made = action()
    return time.perf_counter() - start, made


def summary(rows: Sequence[Row]) -> str:
    """The Markdown table, one line a writer and kind of storage."""
    of_case = groups(rows, "writer", "stored")
    folder = of_case.get((FOLDER, FILES), [])
    lines = []
    for (writer, stored), own in of_case.items():
        stock = of_case.get((STOCK, stored), [])
        lines.append(
            {
                "writer": writer,
                "stored": stored,
                "images/s written": spread(values(own, per_second("write_seconds"))) if writer != FOLDER else "",
                "FFCV's time ÷ its": spread(ratios(stock, own, "write_seconds")) if writer != FOLDER else "",
                "kB an image": spread(values(own, lambda row: float(row["bytes"]) / float(row["images"]) / 1e3)),
                "files kept": spread(values(own, "kept")) if stored == KEPT else "",
                "difference of 255": spread(values(own, "difference")),
                "images/s read": spread(values(own, per_second("read_seconds"))),
                "folder's time ÷ its": spread(ratios(folder, own, "read_seconds")),
                "first ÷ later": spread(values(own, first_over_later)) if writer != FOLDER else "",
            }
        )
    return f"{table(lines)}\n\n{measured_with(rows)}"


def per_second(seconds: str) -> Callable[[Row], float]:
    return lambda row: float(row["images"]) / float(row[seconds])


def first_over_later(row: Row) -> float:
    return float(row["first_seconds"]) / float(row["read_seconds"])
