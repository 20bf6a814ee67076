"""Exchanging the samples of a loader at ImageNet's number of samples: seconds, memory, and what is compiled.

    python -m benchmarks.loading swap              1,281,167 samples, about 5 minutes
    python -m benchmarks.loading swap --redraw     the tables again, without measuring

What it measures, each repeat with a new random selection of 30 %:

* "swap": `set_selection` and the order of the next epoch, the second time in a row. "to the first batch": from
  `set_selection` until the first batch is there; "one batch": the mean time of up to 40 batches after that, when only
  the loader works. Two batches in that time are what an epoch's beginning costs anyway: a batch must be decoded before
  it can be served.
* "rebuilt": what FFCV alone offers: a new `ffcv.Loader` with `indices=`, up to its first batch.
* "compiled": functions that numba compiled meanwhile.
* Constructors, each in a process of its own that has compiled before, on a small file: seconds, memory that stays
  ("own") and that is needed at the highest point ("peak"), for the first loader of a file, for a second one on the
  same file, and for FFCV's.

Two files: `--samples` raw images of 8 x 8 in batches of 1,024, where a batch takes next to no time; and for an ordinary
batch, `--large` raw images of 256 x 256 in batches of 512 with random crops to 224. With these, every swap also selects
and orders as many samples as the first file has ("ordered"), since the time of that is what grows with the data set.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from itertools import islice
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any

import numba.core.event as numba_event
import numpy as np
from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage
from numpy.typing import NDArray
from PIL import Image

from benchmarks.harness.machine import measured_with
from benchmarks.harness.rows import Results, groups
from benchmarks.harness.tables import Row, markdown, spread
from benchmarks.speed.long_run import IMAGENET_SAMPLES, resident_mb, synthetic_split
from ffcv_prune import PrunedLoader
from ffcv_prune.data import recipe
from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.encode import encode_split
from ffcv_prune.data.sources import Split
from ffcv_prune.errors import UserError
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.loading.order import PrunedOrder, validate_ids
from ffcv_prune.loading.pipelines import train_pipelines

TITLE = "Exchanging the selection, and constructors"
COLUMNS = (
    *("measured", "samples", "ordered", "batch", "repeat"),
    *("swap_seconds", "first_batch_seconds", "batch_seconds", "compiled"),
    *("rebuilt_seconds", "rebuilt_compiled", "seconds", "own_mb", "peak_mb"),
)
SETTINGS = ("samples", "large")
KEEP = 0.3
CASES = {"8 x 8": (1024, 0), "256 x 256": (512, 224)}  # batch size, side of the crop
CONSTRUCTORS = ("PrunedLoader", "second PrunedLoader", "ffcv.Loader")


class Compilations(numba_event.Listener):
    """Counts what numba compiles, on any thread."""

    def __init__(self) -> None:
        self.count = 0
        numba_event.register("numba:compile", self)

    def on_start(self, event: Any) -> None:
        self.count += 1

    def on_end(self, event: Any) -> None:
        """A compilation counts when it begins."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=IMAGENET_SAMPLES, help="of 8 x 8; default: %(default)s")
    parser.add_argument("--large", type=int, default=20_000, help="images of 256 x 256; default: %(default)s")


def run(args: argparse.Namespace, results: Results) -> None:
    """Write the two files, and measure on them what has no rows yet."""
    if min(args.samples, args.large) < 100:
        raise UserError(f"--samples {args.samples} --large {args.large}: give at least 100")
    cases = results.left(
        (*CASES, "constructors"),
        lambda row: "constructors" if row["measured"] in CONSTRUCTORS else row["measured"],
    )
    if not cases:
        return
    with TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.beton", Path(folder) / "large.beton"
        encode_split(synthetic_split(args.samples), small, recipe.Image(), 0, -1, "8 x 8")
        encode_split(large_split(args.large), large, recipe.Image(), 0, -1, "256 x 256")
        for case in cases:
            if case == "constructors":
                results.append(constructors(small, args.repeats))
            else:
                path = small if case == "8 x 8" else large
                results.append(measure(case, path, args.samples, args.repeats))


def large_split(samples: int) -> Split:
    """Noise of 256 x 256, each image the same: what is timed does not depend on it."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8))
    return Split(np.arange(samples) % 1000, lambda _: image, str)


def stock_pipelines(crop: int) -> dict[str, Any]:
    """FFCV's own, doing what ours do but for the draws of the crops."""
    decoder = RandomResizedCropRGBImageDecoder((crop, crop)) if crop else SimpleRGBImageDecoder()
    return {"image": [decoder, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor(), Squeeze(1)]}


def measure(data: str, path: Path, ordered: int, repeats: int) -> list[dict[str, Any]]:
    """Swap our loader and rebuild FFCV's, in turn; with each swap, at least `ordered` samples are put in order."""
    info = check_beton(path)
    batch, crop = CASES[data]
    batch = min(batch, max(1, round(KEEP * info.num_samples) // 4))
    pipelines = train_pipelines(info, "random_resized_crop" if crop else "none", crop)
    loader = PrunedLoader(path, batch, pipelines=pipelines, order=OrderOption.RANDOM)
    more = PrunedOrder(loader, ordered, shuffle=True, drop_last=True) if ordered > info.num_samples else None
    for _ in range(2):  # compiles, allocates, touches the file; once more at full speed
        with closing(iter(loader)) as batches:
            list(islice(batches, 8))
    compilations = Compilations()
    rng = np.random.default_rng(0)

    def selection(n: int) -> NDArray[np.int64]:
        return np.sort(rng.permutation(n)[: round(KEEP * n)])

    rows = []
    for repeat in range(repeats):
        ids, of_more = selection(info.num_samples), selection(ordered)
        row: dict[str, Any] = {"measured": data, "samples": info.num_samples, "batch": batch, "repeat": repeat}
        row["ordered"] = max(ordered, info.num_samples)

        def swap(ids: NDArray[np.int64] = ids, of_more: NDArray[np.int64] = of_more) -> None:
            loader.set_selection(ids)
            if more is not None:
                more.select(validate_ids(of_more, ordered))
                more.sample_order(loader.next_epoch)

        gc.collect()  # what the repeat before left behind of FFCV's loader
        swap()  # its memory, too, may still be on its way back: not timed
        compilations.count = 0
        start = time.perf_counter()
        swap()
        loader.next_traversal_order()
        row["swap_seconds"] = time.perf_counter() - start
        loader.set_selection(None)
        start = time.perf_counter()
        swap()
        with closing(iter(loader)) as batches:
            next(batches)
            row["first_batch_seconds"] = time.perf_counter() - start
            row["batch_seconds"] = _seconds_a_batch(batches)
        row["compiled"] = compilations.count
        compilations.count = 0
        start = time.perf_counter()
        stock = Loader(
            str(path),
            batch,
            usable_cores(),
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=ids,
            pipelines=stock_pipelines(crop),
        )
        epoch = iter(stock)
        next(epoch)
        row["rebuilt_seconds"] = time.perf_counter() - start
        row["rebuilt_compiled"] = compilations.count
        end_stock_epoch(epoch)
        del stock, epoch
        rows.append({key: round(value, 7) if isinstance(value, float) else value for key, value in row.items()})
    numba_event.unregister("numba:compile", compilations)
    return rows


def end_stock_epoch(epoch: EpochIterator) -> None:
    """End FFCV's thread, which may be waiting for room to say that it is done."""
    epoch.close()
    while epoch.is_alive():
        with suppress(Empty):
            epoch.output_queue.get_nowait()
        epoch.join(timeout=0.01)


def _seconds_a_batch(batches: Any) -> float:
    """Mean over some batches; the few that were decoded in advance are among them."""
    start = time.perf_counter()
    number = sum(1 for _ in islice(batches, 40))
    return (time.perf_counter() - start) / max(1, number)


def constructors(path: Path, repeats: int) -> list[dict[str, Any]]:
    """Each constructor in `repeats` fresh processes."""
    rows = []
    with TemporaryDirectory(dir=path.parent) as folder:
        tiny = Path(folder) / "tiny.beton"
        encode_split(synthetic_split(200), tiny, recipe.Image(), 0, 1, "tiny")
        for repeat in range(repeats):
            for kind in CONSTRUCTORS:
                code = (
                    f"from benchmarks.loading.swap import construct; construct({kind!r}, {str(tiny)!r}, {str(path)!r})"
                )
                done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                rows.append({"measured": kind, "repeat": repeat} | json.loads(done.stdout.splitlines()[-1]))
    return rows


def construct(kind: str, tiny: str, path: str) -> None:
    """Print seconds and MB of one constructor, as JSON; for the second loader of a file, the first stays alive."""
    info = check_beton(tiny)

    def build(path: str) -> Any:
        if kind == "ffcv.Loader":
            return Loader(
                path, 32, usable_cores(), os_cache=True, order=OrderOption.RANDOM, pipelines=stock_pipelines(0)
            )
        return PrunedLoader(path, 32, pipelines=train_pipelines(info, "none"), order=OrderOption.RANDOM)

    list(build(tiny))
    kept = [build(path)] if kind == "second PrunedLoader" else []
    before = resident_mb()
    Path("/proc/self/clear_refs").write_text("5")  # sets the peak, VmHWM, to what is resident now
    start = time.perf_counter()
    kept.append(build(path))
    seconds = time.perf_counter() - start
    after = resident_mb()
    row = {
        "samples": len(kept[-1].reader.metadata),
        "seconds": round(seconds, 4),
        "own_mb": round(after["RssAnon"] - before["RssAnon"], 1),
        "peak_mb": round(after["VmHWM"] - before["VmRSS"], 1),
    }
    print(json.dumps(row))


def summary(rows: Sequence[Row]) -> str:
    """Two Markdown tables: swaps, and constructors."""
    swaps, built = [], []
    for (name, samples), own in groups(rows, "measured", "samples").items():
        first = [name, f"{int(samples):,}"]
        if name in CONSTRUCTORS:
            built.append(first + [_spread(own, column) for column in ("seconds", "own_mb", "peak_mb")])
            continue
        columns = ("swap_seconds", "first_batch_seconds", "batch_seconds")
        swaps.append(
            [
                *first,
                f"{int(own[0]['ordered']):,}",
                own[0]["batch"],
                *(_spread(own, column, scale=1000) for column in columns),
                _spread(own, "first_batch_seconds", "batch_seconds"),
                _spread(own, "compiled"),
                _spread(own, "rebuilt_seconds"),
                _spread(own, "rebuilt_compiled"),
                _spread(own, "rebuilt_seconds", "first_batch_seconds"),
            ]
        )
    head = [
        "data",
        "samples",
        "ordered",
        "batch",
        "swap, ms",
        "to the first batch, ms",
        "one batch, ms",
        "in batches",
        "compiled",
    ]
    head += ["rebuilt, s", "compiled", "rebuilt / swapped"]
    constructor = ["constructor", "samples", "seconds", "own, MB", "peak, MB"]
    parts = [markdown(*table) for table in ((head, swaps), (constructor, built)) if table[1]]
    return "\n\n".join([*parts, measured_with(rows)])


def _spread(rows: Sequence[Row], column: str, over: str = "", scale: float = 1.0) -> str:
    return spread([scale * float(row[column]) / (float(row[over]) if over else 1.0) for row in rows])
