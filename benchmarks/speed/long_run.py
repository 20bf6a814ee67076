"""The whole path at ImageNet's number of samples: what each step costs in time and memory on one machine.

    python -m benchmarks.speed.long_run --csv benchmarks/results/long_run.csv     1,281,167 samples, some minutes
    python -m benchmarks.speed.long_run --samples 100000                          a glance

The images are 8 x 8 and raw and the model is linear, so that the number of samples is what is measured: what
the tables, the loaders, the scores and the selection cost, not decoding or convolutions. "peak" is the highest
resident memory during the step, pages of the mapped file included, which the system takes back when it needs
them; for the step "write" it is that of the largest process. "own" is what stays allocated after the step.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from ffcv_prune import PrunedLoader, Pruner, score_dataset
from ffcv_prune.data import recipe
from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.encode import encode_split
from ffcv_prune.data.sources import Split
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.pipelines import score_pipelines, train_pipelines
from ffcv_prune.training.run_folder import append_csv, provenance

IMAGENET_SAMPLES = 1_281_167
CLASSES, SIDE, BATCH, KEEP = 1000, 8, 1024, 0.3
COLUMNS = {"step": "step", "seconds": "seconds", "peak_mb": "peak, MB", "own_mb": "own, MB"}


class Meter:
    """Times steps and watches this process's memory; `rows` has one entry a step."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.rows: list[dict[str, Any]] = []

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak, VmHWM, to what is resident now
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        memory = resident_mb()
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000 if name == "write" else 0.0
        row = {
            "step": name,
            "samples": self.samples,
            "seconds": round(seconds, 3),
            "peak_mb": round(max(memory["VmHWM"], children), 1),
            "own_mb": round(memory["RssAnon"], 1),
        }
        self.rows.append(row)


def resident_mb() -> dict[str, float]:
    """The fields of /proc/self/status that are memory, in MB."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) / 1000 for words in lines if words[-1] == "kB"}


class Linear(nn.Module):
    """uint8[B, 3, SIDE, SIDE] images to logits [B, CLASSES]."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3 * SIDE * SIDE, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1).float() / 255)


def synthetic_split(samples: int) -> Split:
    """Noise, a different image for each sample, in CLASSES classes."""
    noise = np.random.default_rng(0).integers(0, 256, 3 * SIDE * SIDE + 65_536, dtype=np.uint8)

    def load(i: int) -> Image.Image:
        start = i * 7919 % 65_536
        return Image.fromarray(noise[start : start + 3 * SIDE * SIDE].reshape(SIDE, SIDE, 3))

    return Split(np.arange(samples) % CLASSES, load, str)


def run(samples: int, workers: int, folder: Path) -> list[dict[str, Any]]:
    """Take all steps once, in `folder`; return one row a step."""
    meter = Meter(samples)
    path = folder / "train.beton"
    with meter.step("write"):
        encode_split(synthetic_split(samples), path, recipe.Image(), 0, workers, "write")
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
        with closing(iter(loader)) as batches:
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
    for images, labels in loader:  # uint8[B, 3, SIDE, SIDE], int64[B]
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """The steps as a Markdown table, and what they were measured with."""
    lines = [f"| {' | '.join(COLUMNS.values())} |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
    lines += [f"| {' | '.join(str(row[column]) for column in COLUMNS)} |" for row in rows]
    made = rows[0]
    measured = f"{int(made['samples']):,} samples of {SIDE} x {SIDE}, {made['cpu']}, {made['cores']} cores, one run."
    return "\n".join([*lines, "", measured])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=IMAGENET_SAMPLES, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=-1, help="processes and threads; default: one per core")
    parser.add_argument("--csv", type=Path, help="add one row a step to this file")
    args = parser.parse_args()
    if args.samples < 100:
        raise UserError(f"--samples {args.samples}: give at least 100")
    with tempfile.TemporaryDirectory() as folder:
        rows = run(args.samples, args.workers, Path(folder))
    made = {name: ", ".join(value) if isinstance(value, list) else value for name, value in provenance().items()}
    rows = [row | made for row in rows]
    print(summary(rows))
    if args.csv:
        for row in rows:
            append_csv(args.csv, row)


if __name__ == "__main__":
    run_command(main)
