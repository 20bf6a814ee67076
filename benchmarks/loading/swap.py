"""Exchanging the samples of a loader at ImageNet's number of samples: seconds, memory, and what is compiled.

    python -m benchmarks.loading swap              1,281,167 samples, about 5 minutes
    python -m benchmarks.loading swap --redraw     the tables again, without measuring

Each repeat takes a new random selection of 30 %, after an epoch that ran to its end, as in training. "swap" is
`set_selection` and the order of the next epoch. "rebuilt" is the way of FFCV alone: a new `ffcv.Loader` with
`indices=`, up to its first batch. Constructors are measured in a process of their own that has compiled before, on a
small file. docs/speed.md says how to read the tables.

There are two files. One has `--samples` raw images of 8 x 8 in batches of 1,024, where a batch takes almost no time.
For an ordinary batch, the other has `--large` raw images of 256 x 256 in batches of 512 with random crops to 224.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from ffcv.loader import OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from numpy.typing import NDArray

from benchmarks.harness.machine import called_apart, forget_peak, measured_with, resident_mb, stopwatch
from benchmarks.harness.rows import Results
from benchmarks.harness.tables import Row, groups, spread, table, values
from benchmarks.harness.training import noise, write_once
from benchmarks.loading.rivals.data import random_subset
from benchmarks.loading.stock import end_stock_epoch, stock_loader
from benchmarks.speed.long_run import IMAGENET_SAMPLES
from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.order import PrunedOrder, validate_ids
from ffcv_prune.loading.pipelines import train_pipelines

TITLE = "Exchanging the selection, and constructors"
COLUMNS = (
    *("measured", "samples", "ordered", "batch", "repeat"),
    *("swap_seconds", "first_batch_seconds", "batch_seconds", "compiled"),
    *("rebuilt_seconds", "rebuilt_compiled", "seconds", "own_mb", "peak_mb"),
)
SETTINGS = ("repeats", "samples", "large")
KEEP = 0.3
CASES = {"8 x 8": (1024, 0), "256 x 256": (512, 224)}  # batch size, side of the crop
CONSTRUCTORS = ("PrunedLoader", "second PrunedLoader", "ffcv.Loader")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=IMAGENET_SAMPLES, help="of 8 x 8")
    parser.add_argument("--large", type=int, default=20_000, help="images of 256 x 256")


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
        small = write_once(noise(args.samples, 8), Path(folder) / "small.beton")
        large = write_once(noise(args.large, 256), Path(folder) / "large.beton")
        for case in cases:
            if case == "constructors":
                results.append(list(constructors(small, args.repeats)))
            else:
                results.append(list(measure(case, small if case == "8 x 8" else large, args.samples, args.repeats)))


def measure(data: str, path: Path, ordered: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Swap our loader and rebuild FFCV's, in turn; with each swap, at least `ordered` samples are put in order."""
    info = check_beton(path)
    batch, crop = CASES[data]
    batch = min(batch, max(1, round(KEEP * info.num_samples) // 4))
    pipelines = train_pipelines(info, "random_resized_crop" if crop else "none", crop)
    loader = PrunedLoader(path, batch, pipelines=pipelines, order=OrderOption.RANDOM)
    more = PrunedOrder(loader, ordered, shuffle=True, drop_last=True) if ordered > info.num_samples else None

    def swap(ids: NDArray[np.int64], of_more: NDArray[np.int64]) -> None:
        loader.set_selection(ids)
        if more is not None:
            more.select(validate_ids(of_more, ordered))
            more.sample_order(loader.next_epoch)

    def whole_epoch() -> None:
        for _ in loader:
            pass
        if more is not None:  # as the loader itself does it within its epoch
            more.draw_ahead(loader.next_epoch)

    def ordered_anew(*ids: NDArray[np.int64]) -> None:
        swap(*ids)
        loader.next_traversal_order()

    def first_batch(*ids: NDArray[np.int64]) -> Any:
        swap(*ids)
        batches = iter(loader)
        next(batches)
        return batches

    def rebuilt(ids: NDArray[np.int64]) -> EpochIterator:
        decoder = RandomResizedCropRGBImageDecoder((crop, crop)) if crop else None
        epoch = iter(stock_loader(path, batch, decoder, indices=ids))
        next(epoch)
        return epoch

    for _ in range(2):  # compiles, allocates, touches the file; once more at full speed
        with closing(iter(loader)) as batches:
            list(islice(batches, 8))
    rng = np.random.default_rng(0)
    for repeat in range(repeats):
        ids = random_subset(info.num_samples, KEEP, rng), random_subset(ordered, KEEP, rng)
        gc.collect()  # what the repeat before left behind of FFCV's loader
        swap(*ids)  # its memory, too, may still be on its way back: not timed
        with stopwatch() as timed:
            whole_epoch()
            _, swapped = timed(partial(ordered_anew, *ids))
            whole_epoch()
            batches, begun = timed(partial(first_batch, *ids))
            with closing(batches):  # the few batches that were decoded in advance are among those that are timed
                served, then = timed(lambda batches=batches: sum(1 for _ in islice(batches, 40)))  # type: ignore[misc]
            epoch, anew = timed(partial(rebuilt, ids[0]))
        end_stock_epoch(epoch)
        del epoch
        yield {
            **{"measured": data, "samples": info.num_samples, "ordered": max(ordered, info.num_samples)},
            **{"batch": batch, "repeat": repeat, "swap_seconds": swapped["seconds"]},
            **{"first_batch_seconds": begun["seconds"], "batch_seconds": then["seconds"] / max(1, served)},
            "compiled": sum(cost["compiled"] for cost in (swapped, begun, then)),
            **{"rebuilt_seconds": anew["seconds"], "rebuilt_compiled": anew["compiled"]},
        }


def constructors(path: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """Each constructor in `repeats` fresh processes."""
    tiny = write_once(noise(200, 8), path.with_name("tiny.beton"), workers=1)
    for repeat in range(repeats):
        for kind in CONSTRUCTORS:
            made = called_apart("loading.swap.construct", kind, str(tiny), str(path))
            yield {"measured": kind, "repeat": repeat} | made


def construct(kind: str, tiny: str, path: str) -> None:
    """Print seconds and MB of one constructor, as JSON; for the second loader of a file, the first stays alive."""
    info = check_beton(tiny)

    def build(path: str) -> Any:
        options: dict[str, Any] = {"pipelines": train_pipelines(info, "none"), "order": OrderOption.RANDOM}
        return stock_loader(path, 32) if kind == "ffcv.Loader" else PrunedLoader(path, 32, **options)

    list(build(tiny))
    kept = [build(path)] if kind == "second PrunedLoader" else []
    before = resident_mb()
    forget_peak()
    start = time.perf_counter()
    kept.append(build(path))
    seconds = time.perf_counter() - start
    after = resident_mb()
    row = {
        "samples": len(kept[-1].reader.metadata),
        "seconds": seconds,
        "own_mb": after["RssAnon"] - before["RssAnon"],
        "peak_mb": after["VmHWM"] - before["VmRSS"],
    }
    print(json.dumps(row))


def summary(rows: Sequence[Row]) -> str:
    """Two Markdown tables: swaps, and constructors."""
    swaps, built = [], []
    for (name, samples), own in groups(rows, "measured", "samples").items():
        if name in CONSTRUCTORS:
            line = {"constructor": name, "samples": f"{int(samples):,}", "seconds": spread(values(own, "seconds"))}
            built.append(line | {f"{kind}, MB": spread(values(own, f"{kind}_mb")) for kind in ("own", "peak")})
            continue
        line = {"data": name, "samples": f"{int(samples):,}", "ordered": f"{int(own[0]['ordered']):,}"}
        line |= {"batch": own[0]["batch"], "swap, ms": spread(values(own, "swap_seconds", 1000))}
        line["to the first batch, ms"] = spread(values(own, "first_batch_seconds", 1000))
        line["one batch, ms"] = spread(values(own, "batch_seconds", 1000))
        line["in batches"] = spread(_over(own, "first_batch_seconds", "batch_seconds"))
        line["compiled"] = spread(values(own, "compiled"))
        line["rebuilt, s"] = spread(values(own, "rebuilt_seconds"))
        line["compiled by that"] = spread(values(own, "rebuilt_compiled"))
        swaps.append(line | {"rebuilt / swapped": spread(_over(own, "rebuilt_seconds", "first_batch_seconds"))})
    return "\n\n".join([*(table(lines) for lines in (swaps, built) if lines), measured_with(rows)])


def _over(rows: Sequence[Row], above: str, below: str) -> list[float]:
    return values(rows, lambda row: float(row[above]) / float(row[below]))
