"""The whole path at ImageNet's number of samples: what each step costs in time and memory on one machine.

    python -m benchmarks.speed.long_run --csv benchmarks/results/long_run.csv     1,281,167 samples, some minutes
    python -m benchmarks.speed.long_run --samples 100000                          a glance

The images are 8 x 8 and raw and the model is linear. So the cost of the number of samples is measured: tables,
loaders, scores and selection, not decoding or convolutions. "peak" is the highest resident memory during the step,
with pages of the mapped file, which the system frees when it needs memory. In the step "write", the largest process
counts. "own" is what stays allocated after the step.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.harness.machine import forget_peak, measured_on, resident_mb
from benchmarks.harness.rows import Results, benchmark
from benchmarks.harness.tables import Row, table
from benchmarks.harness.training import noise, write_once
from ffcv_prune import PrunedLoader, Pruner, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines

TITLE = "At ImageNet's number of samples"
IMAGENET_SAMPLES = 1_281_167
CLASSES, SIDE, BATCH, KEEP = 1000, 8, 1024, 0.3
COLUMNS = ("step", "samples", "seconds", "peak_mb", "own_mb")
SETTINGS = ("samples", "workers")


class Meter:
    """Times steps and watches this process's memory; `rows` has one entry a step."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        forget_peak()
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        memory = resident_mb()
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000 if name == "write" else 0.0
        row = {
            "step": name,
            "samples": self.samples,
            "seconds": seconds,
            "peak_mb": max(memory["VmHWM"], children),
            "own_mb": memory["RssAnon"],
        }
        self.rows.append(row)


class Linear(nn.Module):
    """uint8[B, 3, SIDE, SIDE] images to logits [B, CLASSES]."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIDE * SIDE, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1).float() / 255)


def measure(samples: int, workers: int, folder: Path) -> list[dict[str, Any]]:
    """Take all steps once, in `folder`; return one row a step."""
    meter = Meter(samples)
    path = folder / "train.beton"
    with meter.step("write"):
        write_once(noise(samples, SIDE), path, workers=workers)
    with meter.step("check"):
        info = check_beton(path)
    batch = min(BATCH, int(KEEP * samples))
    with meter.step("load"):  # two loaders, compiled: each has served a batch
        loader = PrunedLoader(path, batch, workers, pipelines=train_pipelines(info, "pad_crop_flip"), shuffle=True)
        score_loader = PrunedLoader(path, batch, workers, pipelines=score_pipelines(info), drop_last=False)
        for each in (loader, score_loader):
            with closing(iter(each)) as batches:
                next(batches)
    torch.manual_seed(0)
    model = Linear()
    pruner = Pruner(loader, score_loader, "ucb", keep=KEEP, period=1, epochs=2)
    with meter.step("score"):
        pruner.state.record(None, score_dataset(model, score_loader), epoch=0)
    with meter.step("select"):
        selection = pruner.state.select(0)
        assert selection is not None
    with meter.step("swap"):  # to the first batch of the new selection
        loader.set_selection(selection.ids)
        with closing(loader.batches(0, loader.selection)) as batches:
            next(batches)
    with meter.step("train"):
        train(model, loader)
    with meter.step("resume"):  # the pruner's state to the disk and back
        torch.save(pruner.state_dict(), folder / "state.pt")
        pruner.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return meter.rows


def train(model: nn.Module, loader: PrunedLoader) -> None:
    """One epoch of plain SGD over the loader's selection."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for batch in loader.batches(0, loader.selection):  # uint8[B, 3, SIDE, SIDE], int64[B]
        F.cross_entropy(model(batch.inputs), batch.targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=IMAGENET_SAMPLES, help="at least 100")
    parser.add_argument("--workers", type=int, default=-1, help="processes and threads; -1: one per core")


def run(args: argparse.Namespace, results: Results) -> None:
    if args.samples < 100:
        raise UserError(f"--samples {args.samples}: give at least 100")
    for _ in results.left(["all steps"], lambda row: "all steps"):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(args.samples, args.workers, Path(folder)))


def summary(rows: Sequence[Row]) -> str:
    """The steps as a Markdown table, and what they were measured with."""
    lines = [
        {"step": row["step"], "seconds": f"{float(row['seconds']):.3f}"}
        | {f"{what}, MB": f"{float(row[f'{what}_mb']):.1f}" for what in ("peak", "own")}
        for row in rows
    ]
    samples = f"{int(rows[0]['samples']):,} samples of {SIDE} x {SIDE}, one run."
    return f"{table(lines)}\n\n{samples} {measured_on(rows)}"


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
