"""The scoring pass against the bare model and against the loop that everybody writes first.

    python -m benchmarks.scoring                both models, 15 to 25 minutes on 2 cores
    python -m benchmarks.scoring --redraw       the table again, without measuring
    python -m benchmarks.scoring --models resnet_tiny --samples 2000 --repeats 2 --skip-compile --csv glance.csv

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

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
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

from benchmarks import tables
from benchmarks.results import markdown
from benchmarks.tables import Results, Row, groups, measured_with, ratios, spread
from ffcv_prune import PrunedLoader, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import run_command
from ffcv_prune.loading.loader import usable_cores
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.machine import default_amp_dtype
from ffcv_prune.models import build_model
from ffcv_prune.training.world import choose_device

BARE, SCORE, NAIVE, COMPILED = "bare model", "score_dataset", "naive loop", "compiled model"
SAMPLES = {"resnet18_cifar": 2048}  # a repeat; other models: LIGHT_SAMPLES
LIGHT_SAMPLES = 16_384
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.244, 0.262)
COLUMNS = (
    *("model", "variant", "batch_size", "samples", "repeat", "seconds", "images_per_second", "compile_seconds"),
    *("device", "precision", "threads", "workers"),
)


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
    by_variant = groups(rows, "model", "variant", "batch_size")
    body = []
    for (model, variant, size), own in by_variant.items():
        bare = by_variant[model, BARE, size]
        compile_seconds = [float(row["compile_seconds"]) for row in own if row["compile_seconds"]]
        body.append(
            [
                model,
                variant,
                size,
                own[0]["precision"],
                spread([float(row["images_per_second"]) for row in own]),
                "1" if variant == BARE else spread(ratios(bare, own, lambda row: float(row["seconds"]))),
                f"{statistics.median(compile_seconds):.0f}" if compile_seconds else "",
            ]
        )
    head = ["model", "what", "batch", "precision", "images/s", "of bare", "compile, s"]
    about = f"On {rows[0]['device']}; {rows[0]['threads']} threads of torch, {rows[0]['workers']} of the loader."
    return f"{markdown(head, body)}\n\n{about} {measured_with(rows)}"


def main() -> None:
    parser = tables.command("scoring", __doc__)
    parser.add_argument("--beton", type=Path, default=Path("betons/cifar10/train.beton"), help="default: %(default)s")
    parser.add_argument("--models", default="resnet18_cifar,resnet_tiny", help="default: %(default)s")
    parser.add_argument("--batch-sizes", default="128,256,512,1024,2048", help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=0, help="a repeat; 0: 2,048, for light models 16,384")
    tables.add_repeats(parser)
    parser.add_argument(
        "--threads", type=tables.positive, default=usable_cores(), help="of torch and of the loader; default: all cores"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--skip-compile", action="store_true", help="leave torch.compile out")
    args = parser.parse_args()
    shared = ("beton", "batch_sizes", "samples", "repeats", "threads", "device", "skip_compile")
    results = Results(args.csv, COLUMNS, tables.settings(args, *shared))
    if not args.redraw:
        torch.set_num_threads(args.threads)
        sizes = [int(size) for size in args.batch_sizes.split(",")]
        for name in results.left(args.models.split(","), lambda row: row["model"]):
            samples = args.samples or SAMPLES.get(name, LIGHT_SAMPLES)
            setting = Setting(args.beton, samples, choose_device(args.device), args.threads)
            results.append(list(measure(name, setting, sizes, args.repeats, not args.skip_compile)))
    results.publish("The scoring pass", summary(results.read()))


if __name__ == "__main__":
    run_command(main)
