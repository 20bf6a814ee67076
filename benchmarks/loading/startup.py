"""What a run waits for before its first step: what each loader compiles, and what the imports and commands cost.

    python -m benchmarks.loading startup              5 repeats: 15 to 20 minutes on 2 cores
    python -m benchmarks.loading startup --redraw     the tables again, without measuring

First come the three loaders of a run, each in a process of its own, and all three in one. The trainer builds them
(`ffcv_prune.training.loaders.Loaders`, with augment "pad_crop_flip"). FFCV's own do the same with FFCV's decoder,
RandomHorizontalFlip and RandomTranslate. The constructor and the first batch of raw images of 8 x 8 are timed, on all
threads. The imports are timed on top of torch, torchvision and numba. Then whole commands, from the start of the
process to its end, with files that were read before. docs/speed.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.harness.machine import called_apart, fresh_python, measured_with, stopwatch
from benchmarks.harness.rows import Results, positive
from benchmarks.harness.tables import Row, groups, ratios, spread, table, values

# numba, FFCV and what imports them only within functions: importing them is measured, in processes that import this.

TITLE = "Start-up: what is compiled and imported"
COLUMNS = (
    *("measured", "loader", "cache", "repeat", "seconds", "cpu_seconds", "compiled"),
    *("import_seconds", "import_cpu_seconds", "import_compiled"),
)
SETTINGS = ("repeats", "samples", "workers")
BATCH = 64
MEAN = (124, 116, 104)  # the colour of the padding: ImageNet's, as ours take it where there is no manifest
KINDS = ("training", "scoring", "test")
CASES = tuple((case, loader) for case in (*KINDS, "all three") for loader in ("ffcv_prune", "FFCV"))
ALL_IMPORTS = "-c 'import torch, numba, ffcv'"
# What follows `python`, and the exit code.
COMMANDS = {
    "train_imagenet.py --help": 0,
    "train_imagenet.py --config=rn_configs/cifar10_ucb.yaml --prune.kep=0.3": 2,
    "-c pass": 0,
    ALL_IMPORTS: 0,
    "-c 'import ffcv'": 0,
    "-c 'import ffcv_prune.ffcv_import'": 0,
    "-c 'import ffcv_prune'": 0,
    "-c 'from ffcv_prune import PrunedLoader'": 0,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ffcv_prune.loading.arguments import usable_cores

    parser.add_argument("--samples", type=positive, default=512, help="of each file")
    parser.add_argument("--workers", type=positive, default=usable_cores(), help="of each loader")


def run(args: argparse.Namespace, results: Results) -> None:
    """Write the two files, and measure what has no rows yet, each case once a repeat."""
    from benchmarks.harness.training import noise, write_once
    from ffcv_prune.errors import UserError

    if args.samples < 2 * BATCH:
        raise UserError(f"--samples {args.samples}: give at least {2 * BATCH}, one batch of scoring")
    once = [*CASES, *((command, "") for command in COMMANDS)]
    cases = results.left(
        [(str(repeat), *case) for repeat in range(args.repeats) for case in once],
        lambda row: (row["repeat"], row["measured"].partition(":")[0], row["loader"]),
    )
    if not cases:
        return
    with TemporaryDirectory() as folder:
        for split in ("train", "test"):
            write_once(noise(args.samples, 8), Path(folder) / f"{split}.beton", workers=1)
        kept = f"{folder}/kernels"
        imports = "import ffcv, torchvision, ffcv_prune.training.loaders"
        fresh_python(["-c", imports], NUMBA_CACHE_DIR=kept)  # reads the files, fills `kept`
        for repeat, case, loader in cases:
            print(f"repeat {int(repeat) + 1} of {args.repeats}: {case} {loader}", flush=True)
            if loader:
                rows = measure_loaders(case, loader, Path(folder), args.workers)
            else:
                rows = [measure_command(case, kept)]
            results.append(row | {"repeat": repeat} for row in rows)


def measure_loaders(case: str, loader: str, folder: Path, workers: int) -> list[dict[str, Any]]:
    """The loaders of a case in a process with an empty kernel cache, and in a second one that finds what it left."""
    kinds = KINDS if case == "all three" else (case,)
    rows = []
    with TemporaryDirectory(dir=folder) as kernels:
        for state in ("empty", "filled"):
            what = (loader, kinds, str(folder), workers)
            built = called_apart("loading.startup.build", *what, NUMBA_CACHE_DIR=kernels)
            if len(built) > 1:
                total = {name: sum(row[name] for row in built) for name in ("seconds", "cpu_seconds", "compiled")}
                imports = {name: built[0].pop(name) for name in [*built[0]] if name.startswith("import_")}
                built = [total | imports | {"measured": case}] + [
                    row | {"measured": f"{case}: {kind}"} for kind, row in zip(kinds, built, strict=True)
                ]
            rows += [{"measured": case, "loader": loader, "cache": state} | row for row in built]
    return rows


def measure_command(name: str, kernels: str) -> dict[str, Any]:
    """A command from start to end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    fresh_python(shlex.split(name), COMMANDS[name], NUMBA_CACHE_DIR=kernels)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"measured": name, "seconds": seconds, "cpu_seconds": cpu}


def build(loader: str, kinds: Sequence[str], folder: str, workers: int) -> None:
    """Print, as JSON, what the imports cost and then each loader up to its first batch; a process for itself."""
    import torchvision  # noqa: F401 - imports torch; our trainer needs it, but not for the loaders

    with stopwatch() as timed:  # before FFCV is imported
        prepare = {"ffcv_prune": our_builder, "FFCV": ffcv_builder}[loader]
        first_batch, imports = timed(partial(prepare, Path(folder), workers))
        rows: list[dict[str, float]] = []
        for kind in kinds:
            epoch, cost = timed(partial(first_batch, kind))
            for _ in epoch:  # to its end: FFCV's thread cannot be stopped
                pass
            rows.append(cost)
    rows[0] |= {f"import_{name}": value for name, value in imports.items()}
    print(json.dumps(rows))


def our_builder(folder: Path, workers: int) -> Callable[[str], Iterable[Any]]:
    """What builds our loader of a kind and takes its first batch; it leaves nothing to iterate over."""
    from ffcv_prune import config, methods
    from ffcv_prune.training.loaders import Loaders

    @cache
    def loaders() -> Loaders:  # checks the files: part of the first loader
        train, test = (str(folder / f"{split}.beton") for split in ("train", "test"))
        data = config.Data(train=train, test=test, augment="pad_crop_flip", num_workers=workers)
        settings = config.Config(
            run=config.Run(),
            data=data,
            model=config.Model(name="resnet_tiny"),
            train=config.Train(epochs=1, batch_size=BATCH, device="cpu"),
            prune=methods.PRESETS["full"],
            static=config.StaticScores(),
        )
        return Loaders(settings)

    def first_batch(kind: str) -> Iterable[Any]:
        made = loaders()
        _ = made.train(0) if kind == "training" else made.score if kind == "scoring" else made.test
        return ()  # `Loaders` has taken the first batch of each, and ended the epoch

    return first_batch


def ffcv_builder(folder: Path, workers: int) -> Callable[[str], Iterable[Any]]:
    """What builds FFCV's loader of a kind and takes its first batch; it returns the rest of the epoch."""
    from ffcv.fields.decoders import IntDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, RandomTranslate, Squeeze, ToTensor, ToTorchImage

    def first_batch(kind: str) -> Iterable[Any]:
        train = kind == "training"
        augment = [RandomHorizontalFlip(), RandomTranslate(padding=4, fill=MEAN)] if train else []
        loader = Loader(
            str(folder / f"{'test' if kind == 'test' else 'train'}.beton"),
            BATCH if train else 2 * BATCH,
            workers,
            os_cache=True,
            order=OrderOption.RANDOM if train else OrderOption.SEQUENTIAL,
            drop_last=train,
            pipelines={
                "image": [SimpleRGBImageDecoder(), *augment, ToTensor(), ToTorchImage()],
                "label": [IntDecoder(), ToTensor(), Squeeze(1)],
            },
        )
        epoch = iter(loader)
        next(epoch)
        return epoch

    return first_batch


def summary(rows: Sequence[Row]) -> str:
    """Two Markdown tables: loaders, and commands."""
    built = groups([row for row in rows if row["loader"]], "measured", "loader", "cache")
    heads = {"seconds": "seconds", "cpu_seconds": "CPU seconds", "compiled": "compiled"}
    heads |= {"import_seconds": "importing, s", "import_cpu_seconds": "importing, CPU s"}
    heads |= {"import_compiled": "compiled in importing"}
    loaders = []
    for (kind, loader, state), own in built.items():
        line = {"built": kind, "by": loader, "kernel cache": state}
        line |= {head: spread(values(own, column)) for column, head in heads.items()}
        stock = built.get((kind, "FFCV", state), []) if loader != "FFCV" else []
        loaders.append(line | {"FFCV ÷ ours": spread(ratios(stock, own, _cpu_seconds))})
    commands = groups([row for row in rows if not row["loader"]], "measured")
    imports = commands.get((ALL_IMPORTS,), [])
    told = [
        {
            "command": f"`python {name}`",
            "seconds": spread(values(own, "seconds")),
            "CPU seconds": spread(values(own, "cpu_seconds")),
            "of all imports": spread(ratios(own, imports, "cpu_seconds")),
        }
        for (name,), own in commands.items()
    ]
    return "\n\n".join([*(table(lines) for lines in (loaders, told) if lines), measured_with(rows)])


def _cpu_seconds(row: Row) -> float:
    """Of the loader, and of the imports where they belong to the row."""
    return float(row["cpu_seconds"]) + float(row["import_cpu_seconds"] or 0)
