"""The scoring pass against the bare model and against the loop that everybody writes first.

    python -m benchmarks.scoring --csv benchmarks/results/scoring.csv       both models, 15 to 25 minutes on 2 cores
    python -m benchmarks.scoring --table benchmarks/results/scoring.csv     the table again, without measuring
    python -m benchmarks.scoring --models resnet_tiny --samples 2000 --repeats 2 --skip-compile     a glance

What is timed, on the same images of a compiled CIFAR-10:

    bare model      the forward pass alone: channels_last, mixed precision, inference mode, batches already in memory
    score_dataset   `ffcv_prune.score_dataset`: decode, forward pass, losses, back to the host by dataset position
    naive loop      float32, contiguous, torchvision's ToTensor and Normalize in a torch DataLoader, `.cpu()` a batch
    compiled model  the bare model through `torch.compile`, whose compilation is timed apart ("compile, s")

Read the column "of bare": the throughput as a part of the bare model's at the same batch size, each repeat against its
own neighbour in time. At 1 the pass costs nothing but the forward passes. What the bare model itself loses to a small
batch stands in its images/s. The naive loop and the compiled model run at the middle of the batch sizes. Repeats are
interleaved; a first round of each, not counted, warms up and compiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Normalize, ToTensor

from benchmarks.demo import read_rows
from benchmarks.results import markdown
from ffcv_prune import PrunedLoader, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.loader import usable_cores
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.machine import default_amp_dtype
from ffcv_prune.models import build_model
from ffcv_prune.training.run_folder import append_csv, provenance
from ffcv_prune.training.world import choose_device

BARE, SCORE, NAIVE, COMPILED = "bare model", "score_dataset", "naive loop", "compiled model"
SAMPLES = {"resnet18_cifar": 2048}  # a repeat; other models: LIGHT_SAMPLES
LIGHT_SAMPLES = 16_384
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.244, 0.262)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Setting:
    """What all variants share."""

    beton: Path
    samples: int
    device: torch.device
    workers: int

    @property
    def amp_dtype(self) -> torch.dtype | None:
        return default_amp_dtype(self.device)


class Images(Dataset[tuple[Tensor, int]]):
    """Decoded images as torchvision's CIFAR10 holds them: uint8[n, H, W, 3] in memory, transformed one by one."""

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        self.images, self.labels = images, labels
        self.transform = Compose([ToTensor(), Normalize(MEAN, STD)])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.images[i]), int(self.labels[i])


def make_loader(setting: Setting, batch_size: int) -> PrunedLoader:
    pipelines = score_pipelines(check_beton(setting.beton), device=setting.device)
    loader = PrunedLoader(setting.beton, batch_size, pipelines, setting.workers, shuffle=False, drop_last=False)
    loader.set_selection(np.arange(setting.samples))
    return loader


def forward(model: nn.Module, batches: Sequence[Tensor], setting: Setting) -> None:
    """The forward pass and nothing else."""
    dtype = setting.amp_dtype
    with torch.inference_mode(), torch.autocast(setting.device.type, dtype or torch.bfloat16, dtype is not None):
        for images in batches:
            model(images)


def naive_scores(network: nn.Module, data: Images, batch_size: int, setting: Setting) -> Tensor:
    """float32[n]: the loop that everybody writes first. `network` takes normalised images."""
    losses = []
    with torch.no_grad():
        for images, labels in DataLoader(data, batch_size, num_workers=setting.workers):
            logits = network(images.to(setting.device))
            losses.append(F.cross_entropy(logits, labels.to(setting.device), reduction="none").cpu())
    return torch.cat(losses)


def variants(
    name: str, setting: Setting, batch_sizes: Sequence[int], with_compiled: bool
) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(variant, batch size, what to time), those to be compared one after the other."""
    torch.manual_seed(0)
    model = build_model(name, 10, MEAN, STD).to(setting.device).eval()
    plain = build_model(name, 10, MEAN, STD).network.to(setting.device, memory_format=torch.contiguous_format).eval()
    reference = batch_sizes[len(batch_sizes) // 2]  # of the naive loop and the compiled model
    for batch_size in batch_sizes:
        loader = make_loader(setting, batch_size)
        batches, labels = zip(*((images.clone(), labels.clone()) for images, labels in loader), strict=True)
        yield BARE, batch_size, lambda batches=batches: forward(model, batches, setting)
        yield SCORE, batch_size, lambda loader=loader: score_dataset(model, loader)
        if batch_size != reference:
            continue
        pixels = torch.cat(batches).permute(0, 2, 3, 1).cpu().numpy()  # [n, H, W, 3]
        data = Images(np.ascontiguousarray(pixels), torch.cat(labels).cpu().numpy())
        yield NAIVE, batch_size, lambda data=data: naive_scores(plain, data, reference, setting)
        if with_compiled:
            compiled = torch.compile(model)
            yield COMPILED, batch_size, lambda batches=batches, compiled=compiled: forward(compiled, batches, setting)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds, to the end of the device's work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(
    name: str, setting: Setting, batch_sizes: Sequence[int], repeats: int, with_compiled: bool
) -> Iterator[dict[str, Any]]:
    """One row a variant, batch size and repeat."""
    works = list(variants(name, setting, batch_sizes, with_compiled))
    first = [timed(work, setting.device) for _, _, work in works]  # warms up; the compiled model compiles
    for repeat in range(repeats):
        for (variant, batch_size, work), first_seconds in zip(works, first, strict=True):
            seconds = timed(work, setting.device)
            compiles = variant == COMPILED
            yield {
                "model": name,
                "variant": variant,
                "batch_size": batch_size,
                "samples": setting.samples,
                "repeat": repeat,
                "seconds": round(seconds, 5),
                "images_per_second": round(setting.samples / seconds, 1),
                "compile_seconds": round(first_seconds - seconds, 2) if compiles else "",
                "device": setting.device.type,
                "precision": "float32" if variant == NAIVE else str(setting.amp_dtype or "float32").split(".")[-1],
                "threads": torch.get_num_threads(),
                "workers": setting.workers,
            }


def summary(rows: Sequence[Row]) -> str:
    """The Markdown table: median over the repeats, and from the least to the greatest."""
    if not rows:
        raise UserError("the file holds no rows: measure first")
    body = []
    for model, variant, size in dict.fromkeys((row["model"], row["variant"], row["batch_size"]) for row in rows):
        own, bare = (
            {
                row["repeat"]: row
                for row in rows
                if (row["model"], row["variant"], row["batch_size"]) == (model, of, size)
            }
            for of in (variant, BARE)
        )
        speeds = [float(row["images_per_second"]) for row in own.values()]
        ratios = [float(bare[repeat]["seconds"]) / float(row["seconds"]) for repeat, row in own.items()]
        compile_seconds = [float(row["compile_seconds"]) for row in own.values() if row["compile_seconds"] != ""]
        body.append(
            [
                model,
                variant,
                f"{size}",
                next(iter(own.values()))["precision"],
                spread(speeds, ",.0f"),
                "1" if variant == BARE else spread(ratios, ".3f"),
                f"{statistics.median(compile_seconds):.0f}" if compile_seconds else "",
            ]
        )
    made = rows[0]
    head = ["model", "what", "batch", "precision", "images/s", "of bare", "compile, s"]
    repeats = len({row["repeat"] for row in rows})
    about = (
        f"Median of {repeats} interleaved repeats (least to greatest). {made['cpu']}, {made['cores']} cores, "
        f"{made['threads']} threads, {made['workers']} loader threads, {made['device']}, torch {made['torch']}, "
        f"{made['date'][:10]}, commit {made['commit']}."
    )
    return f"{markdown(head, body)}\n\n{about}"


def spread(values: Sequence[float], digits: str) -> str:
    return f"{statistics.median(values):{digits}} ({min(values):{digits}} to {max(values):{digits}})"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scoring", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beton", type=Path, default=Path("betons/cifar10/train.beton"), help="default: %(default)s")
    parser.add_argument("--models", default="resnet18_cifar,resnet_tiny", help="default: %(default)s")
    parser.add_argument("--batch-sizes", default="128,256,512,1024,2048", help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=0, help="a repeat; 0: 2,048, for light models 16,384")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="of torch and of the loader; 0: one per core")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--skip-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--csv", type=Path, help="add one row a measurement to this file")
    parser.add_argument("--table", type=Path, help="only print the table of such a file")
    args = parser.parse_args()
    if args.table:
        print(summary(read_rows([args.table])))
        return
    if args.repeats < 1:
        raise UserError(f"--repeats {args.repeats}: give at least 1")
    threads = args.threads or usable_cores()
    made = {name: ", ".join(value) if isinstance(value, list) else value for name, value in provenance().items()}
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    rows: list[dict[str, Any]] = []
    for name in args.models.split(","):
        samples = args.samples or SAMPLES.get(name, LIGHT_SAMPLES)
        setting = Setting(args.beton, samples, choose_device(args.device), threads)
        torch.set_num_threads(threads)
        for row in measure(name, setting, sizes, args.repeats, not args.skip_compile):
            rows.append(row | made)
            if args.csv:
                append_csv(args.csv, rows[-1])
    print(summary(rows))


if __name__ == "__main__":
    run_command(main)
