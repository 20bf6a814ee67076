"""What a proxy net costs beside the net that it selects for: seconds against arithmetic.

    python -m benchmarks.speed.proxy                  CIFAR-10, ResNet-18, 3 repeats: about 10 minutes on 2 cores
    python -m benchmarks.speed.proxy --redraw         the table again, without measuring
    python -m benchmarks.speed.proxy --main resnet_small --sides 18 --csv small.csv

Each run trains by `proxy_batch` for one epoch, which is not measured, and then for --epochs more. Its log says how
long the proxy took ("score") and how long the main net did ("train", and "load", the wait for batches). The arithmetic
of a forward pass is counted by torch. Three times are measured beside it, without a net. One is to decode all images
of an epoch, for the proxy. One is to decode the selected images again, for the main net. The last is to copy these
instead. docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness.machine import ROOT, measured_with
from benchmarks.harness.rows import Results, benchmark, positive, rotated
from benchmarks.harness.tables import Row, groups, spread, table, values
from benchmarks.harness.training import SharedLoaders
from ffcv_prune import config
from ffcv_prune.analysis.runs import read_run
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.models import build_model
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.trainer import train

TITLE = "A proxy net beside the main net"
PHASES = ("score", "select", "swap", "load", "train")
LOADING = ("decode", "again", "copy")
COLUMNS = (
    *("main", "proxy", "side", "repeat", "main_flops", "proxy_flops", "epochs", "selected"),
    *(f"{name}_seconds" for name in (*PHASES, *LOADING)),
)
SETTINGS = ("data", "epochs", "threads")
TARGET = 0.2  # of the main net's seconds, for a main net of 20 times the proxy's arithmetic


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path("betons/cifar10"), help="folder of train.beton, test.beton")
    parser.add_argument("--main", default="resnet18", help="model.name")
    parser.add_argument("--proxy", default="resnet_tiny", help="prune.proxy_model")
    parser.add_argument("--sides", default="0,16", help="prune.proxy_size, separated by commas; 0: as the images are")
    parser.add_argument("--epochs", type=positive, default=1, help="that are measured")
    parser.add_argument("--threads", type=positive, default=usable_cores(), help="of torch")
    parser.set_defaults(repeats=3)


def run(args: argparse.Namespace, results: Results) -> None:
    """Make the runs that have no row yet, repeat by repeat."""
    if not all(side.isdecimal() for side in args.sides.split(",")):
        raise UserError(f"--sides={args.sides}: whole numbers, separated by commas")
    sides = [int(side) for side in args.sides.split(",")]
    cases = [(args.main, args.proxy, side, n) for n in range(args.repeats) for side in rotated(sides, n)]
    left = results.left(cases, lambda row: (row["main"], row["proxy"], int(row["side"]), int(row["repeat"])))
    torch.set_num_threads(args.threads)
    with TemporaryDirectory() as out, SharedLoaders() as loaders:
        for main, proxy, side, repeat in left:
            print(f"\n{main}, {proxy} at {side or 'full'} px, repeat {repeat}", flush=True)
            own = configuration(args, main, proxy, side, repeat, out)
            results.append(
                [{"main": main, "proxy": proxy, "side": side, "repeat": repeat} | measure(own, loaders.of(own))]
            )


def configuration(args: argparse.Namespace, main: str, proxy: str, side: int, repeat: int, out: str) -> config.Config:
    settings = {
        "data.train": args.data / "train.beton",
        "data.test": args.data / "test.beton",
        "model.name": main,
        "prune.proxy_model": proxy,
        "prune.proxy_size": side,
        "train.epochs": args.epochs + 1,
        "train.eval_every": args.epochs + 1,
        "run.seed": repeat,
        "run.out": out,
    }
    base = ROOT / "rn_configs" / "cifar10_proxy_batch.yaml"
    return config.load(["--config", str(base), *(f"--{name}={value}" for name, value in settings.items())])


def measure(settings: config.Config, loaders: Loaders) -> dict[str, Any]:
    """Train, and return seconds of a mean epoch but the first, by phase; and what loading alone takes."""
    folder = train(settings, loaders).folder
    measured = read_run(folder).rows[1:]
    seconds = {name: statistics.mean(row["seconds"][name] for row in measured) for name in PHASES}
    selected = np.load(max((folder / "selections").iterdir()))
    side = settings.data.size or int(loaders.dataset.train.image_heights[0])
    proxy_side = settings.prune.values["proxy_size"]
    mean, std, outputs = loaders.dataset.mean, loaders.dataset.std, loaders.dataset.outputs
    nets = ((settings.model.name, side), (settings.prune.values["proxy_model"], proxy_side or side))
    main_flops, proxy_flops = (flops(build_model(name, outputs, mean, std), pixels) for name, pixels in nets)
    return {
        "main_flops": main_flops,
        "proxy_flops": proxy_flops,
        "epochs": len(measured),
        "selected": len(selected),
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **loading_seconds(loaders, settings, selected),
    }


def flops(model: nn.Module, side: int) -> int:
    """Of the forward pass of an image, uint8[3, side, side]: products and sums of convolutions and linear layers."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    return counter.get_total_flops()


def loading_seconds(loaders: Loaders, settings: config.Config, selected: np.ndarray) -> dict[str, float]:
    """Seconds to decode all, to decode the selected ones again, and to copy those out of the first."""
    seed, among = settings.run.seed, np.zeros(loaders.dataset.train.num_samples, np.bool_)
    among[selected] = True
    windows, batches = loaders.proxy(seed, settings.prune.values["window"]), loaders.train(seed)
    epoch, copying, kept = settings.train.epochs - 1, 0.0, []
    start = time.perf_counter()
    with closing(windows.batches(epoch)) as served:
        for batch in served:
            begun = time.perf_counter()
            kept.append(batch.inputs[torch.from_numpy(among[batch.ids.numpy()])])
            copying += time.perf_counter() - begun
    decoded = time.perf_counter() - start - copying
    start = time.perf_counter()
    with closing(batches.batches(epoch, selected)) as served:
        for _ in served:
            pass
    return {"decode_seconds": decoded, "again_seconds": time.perf_counter() - start, "copy_seconds": copying}


def _share(row: Row) -> float:
    """The proxy's seconds as a part of the main net's."""
    return float(row["score_seconds"]) / _main(row)


def _main(row: Row) -> float:
    return float(row["train_seconds"]) + float(row["load_seconds"])


def _loading(row: Row) -> float:
    """What decoding once would save, as a part of an epoch."""
    whole = sum(float(row[f"{name}_seconds"]) for name in PHASES)
    return (float(row["again_seconds"]) - float(row["copy_seconds"])) / whole


def summary(rows: Sequence[Row]) -> str:
    """The table, and what it was measured with."""
    lines = [
        {
            "main net": main,
            "proxy": f"{proxy}, {side} px" if int(side) else proxy,
            "arithmetic": f"{float(own[0]['main_flops']) / float(own[0]['proxy_flops']):.1f} x",
            "proxy, s": spread(values(own, "score_seconds")),
            "main net, s": spread(values(own, _main)),
            "proxy ÷ main": spread(values(own, _share)),
            "decode all, s": spread(values(own, "decode_seconds")),
            "the selected again, s": spread(values(own, "again_seconds")),
            "copy them, s": spread(values(own, "copy_seconds")),
            "decoding once saves": f"{100 * statistics.median(values(own, _loading)):.2f} %",
        }
        for (main, proxy, side), own in groups(rows, "main", "proxy", "side").items()
    ]
    words = (
        f"Seconds of an epoch. Wanted for a main net of 20 x the arithmetic: proxy ÷ main of {TARGET:g} or less. "
        f"{measured_with(rows)}"
    )
    return f"{table(lines)}\n\n{words}"


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
