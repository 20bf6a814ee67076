"""The scoring pass against the bare model and against the loop that everybody writes first.

    python -m benchmarks.speed.scoring                about 10 minutes on 2 cores
    python -m benchmarks.speed.scoring --imagenet betons/imagenet/train.beton \\
        --imagenet-score betons/imagenet_score/train.beton
    python -m benchmarks.speed.scoring --redraw       the table again, without measuring
    python -m benchmarks.speed.scoring --models resnet_tiny --samples 2000 --repeats 2 --skip-compile --csv glance.csv

What is timed, on the same images of a compiled CIFAR-10:

    bare model      the forward pass alone: channels_last, mixed precision, inference mode, batches already in memory
    folded model    the same with batch norms folded into the convolutions
    score_dataset   `ffcv_prune.score_dataset`: decode, forward pass, losses, back to the host by dataset position;
                    folded on a CPU only: the two rows above say whether that is right for a GPU
    naive loop      float32, contiguous, torchvision's ToTensor and Normalize in a torch DataLoader, `.cpu()` a batch
    compiled model  the bare model through `torch.compile`, whose compilation is timed apart ("compile, s")

With --imagenet, also ResNet-18 on these photographs at 224 px, against scoring at 80 px from the small raw file. The
naive loop and the compiled model run at the largest batch size. A first round, not counted, warms up and compiles.
docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import Compose, Normalize, ToTensor

from benchmarks.harness.machine import measured_with
from benchmarks.harness.rows import Results, benchmark, positive, positives, rotated
from benchmarks.harness.tables import Row, groups, ratios, spread, table, values
from benchmarks.harness.training import Images
from ffcv_prune import PrunedLoader, score_dataset
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.machine import default_amp_dtype, now
from ffcv_prune.models import build_model
from ffcv_prune.scoring.folding import agrees, fold_batch_norm
from ffcv_prune.training.world import choose_device, prepare

TITLE = "The scoring pass"
BARE, FOLDED, SCORE = "bare model", "folded model", "score_dataset"
NAIVE, COMPILED, SMALL = "naive loop", "compiled model", "score_dataset, small raw images"
IMAGENET = "resnet18"  # its images come from --imagenet
SAMPLES = {"resnet18_cifar": 1024, IMAGENET: 512}  # a repeat; other models: LIGHT_SAMPLES
LIGHT_SAMPLES = 16_384
CUDA_TIMES = 50  # as many on a GPU: a repeat would be a few milliseconds
SIDE, SMALL_SIDE = 224, 80  # of ImageNet's photographs
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.244, 0.262)
TRANSFORM = Compose([ToTensor(), Normalize(MEAN, STD)])
COLUMNS = (
    *("model", "variant", "batch_size", "samples", "repeat", "seconds", "images_per_second", "compile_seconds"),
    *("device", "precision", "threads", "workers"),
)
SETTINGS = ("beton", "batch_sizes", "samples", "repeats", "threads", "device", "skip_compile")


@dataclass(frozen=True)
class Setting:
    """What all variants share."""

    beton: Path
    samples: int
    device: torch.device
    workers: int
    side: int = 0
    small: Path | None = None  # the same images, small and raw

    @property
    def amp_dtype(self) -> torch.dtype | None:
        return default_amp_dtype(self.device)


def make_loader(setting: Setting, batch_size: int) -> PrunedLoader:
    pipelines = score_pipelines(check_beton(setting.beton), setting.side, setting.device)
    loader = PrunedLoader(setting.beton, batch_size, setting.workers, pipelines=pipelines, drop_last=False)
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
    name: str, setting: Setting, batch_size: int, with_naive: bool, with_compiled: bool
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(variant, what to time), those to be compared one after the other."""
    torch.manual_seed(0)
    classes = 1000 if name == IMAGENET else 10
    model = build_model(name, classes, MEAN, STD).to(setting.device).eval()
    loader = make_loader(setting, batch_size)
    batches, labels = zip(*((images.clone(), labels.clone()) for images, labels in loader), strict=True)
    yield BARE, lambda: forward(model, batches, setting)
    with torch.inference_mode():
        folded = fold_batch_norm(model)
        folds = folded is not None and agrees(folded, model, batches[0])
    if folds:
        yield FOLDED, lambda: forward(folded, batches, setting)
    yield SCORE, lambda: score_dataset(model, loader)
    if setting.small:
        small = make_loader(replace(setting, beton=setting.small, side=SMALL_SIDE), batch_size)
        yield SMALL, lambda: score_dataset(model, small)
    if with_naive:
        plain = build_model(name, classes, MEAN, STD).network
        plain = plain.to(setting.device, memory_format=torch.contiguous_format).eval()
        pixels = torch.cat(batches).permute(0, 2, 3, 1).cpu().numpy()  # [n, H, W, 3]
        data = Images(np.ascontiguousarray(pixels), torch.cat(labels).cpu().numpy(), TRANSFORM)
        yield NAIVE, lambda: naive_scores(plain, data, batch_size, setting)
    if with_compiled:
        compiled = torch.compile(model)
        yield COMPILED, lambda: forward(compiled, batches, setting)


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds, to the end of the device's work."""
    start = now(device)
    work()
    return now(device) - start


def measure(
    name: str, setting: Setting, batch_size: int, repeats: int, with_naive: bool, with_compiled: bool
) -> Iterator[dict[str, Any]]:
    """One row a variant and repeat."""
    works = list(variants(name, setting, batch_size, with_naive, with_compiled))
    first = [timed(work, setting.device) for _, work in works]  # warms up; the compiled model compiles
    for repeat in range(repeats):
        for (variant, work), first_seconds in rotated([*zip(works, first, strict=True)], repeat):
            seconds = timed(work, setting.device)
            compiles = variant == COMPILED
            yield {
                "model": name,
                "variant": variant,
                "batch_size": batch_size,
                "samples": setting.samples,
                "repeat": repeat,
                "seconds": seconds,
                "images_per_second": setting.samples / seconds,
                "compile_seconds": first_seconds - seconds if compiles else "",
                "device": setting.device.type,
                "precision": "float32" if variant == NAIVE else str(setting.amp_dtype or "float32").split(".")[-1],
                "threads": torch.get_num_threads(),
                "workers": setting.workers,
            }


def summary(rows: Sequence[Row]) -> str:
    """The Markdown table: median over the repeats, and from the least to the greatest."""
    by_variant = groups(rows, "model", "variant", "batch_size")
    lines = []
    for (model, variant, size), own in by_variant.items():
        line = {"model": model, "what": variant, "batch": size, "images": f"{int(own[0]['samples']):,}"}
        line |= {"precision": own[0]["precision"], "images/s": spread(values(own, "images_per_second"))}
        for head, other in (("of bare", BARE), ("of folded", FOLDED), ("of naive", NAIVE)):
            rival = by_variant.get((model, other, size), [])
            line[head] = "1" if variant == other else spread(ratios(rival, own, "seconds"))
        compiling = values(own, "compile_seconds")
        lines.append(line | {"compile, s": f"{statistics.median(compiling):.0f}" if compiling else ""})
    about = f"On {rows[0]['device']}; {rows[0]['threads']} threads of torch, {rows[0]['workers']} of the loader."
    return f"{table(lines)}\n\n{about} {measured_with(rows)}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beton", type=Path, default=Path("betons/cifar10/train.beton"), help="of all but ResNet-18")
    parser.add_argument("--models", default="resnet18_cifar,resnet_tiny", help="separated by commas")
    parser.add_argument("--imagenet", type=Path, help="a .beton of ImageNet's photographs, for ResNet-18")
    parser.add_argument("--imagenet-score", type=Path, help="the same images, small and raw")
    parser.add_argument("--batch-sizes", type=positives, default="128,512", help="separated by commas")
    parser.add_argument("--samples", type=int, default=0, help="a repeat; 0: 16,384, for heavy models fewer")
    parser.add_argument("--threads", type=positive, default=usable_cores(), help="of torch and of the loader")
    parser.add_argument(
        "--device", type=lambda name: choose_device(name).type, default="auto", help="auto, cpu or cuda"
    )
    parser.add_argument("--skip-compile", action="store_true", help="leave torch.compile out")


def run(args: argparse.Namespace, results: Results) -> None:
    """Measure each model at each batch size that has no rows yet."""
    torch.set_num_threads(args.threads)
    prepare(torch.device(args.device))
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    for path in filter(None, (args.beton, args.imagenet, args.imagenet_score)):
        check_beton(path)  # before the first model is measured for minutes
    settings, cases = {}, []
    for name in [*args.models.split(","), *([IMAGENET] if args.imagenet else [])]:
        setting = Setting(args.beton, 0, torch.device(args.device), args.threads)
        if name == IMAGENET:
            if not args.imagenet:
                raise UserError(f"{IMAGENET} is measured on photographs: name them with --imagenet")
            setting = replace(setting, beton=args.imagenet, side=SIDE, small=args.imagenet_score)
        wanted = args.samples or SAMPLES.get(name, LIGHT_SAMPLES) * (CUDA_TIMES if args.device == "cuda" else 1)
        settings[name] = replace(setting, samples=min(wanted, check_beton(setting.beton).num_samples))
        cases += [(name, size) for size in sorted({min(size, settings[name].samples) for size in sizes})]
    for name, size in results.left(cases, lambda row: (row["model"], int(row["batch_size"]))):
        setting = settings[name]
        beside = name != IMAGENET and size == min(max(sizes), setting.samples)
        with TemporaryDirectory() as cache:  # torch's own would make a second run compile in no time
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            compiled = beside and not args.skip_compile
            results.append(list(measure(name, setting, size, args.repeats, beside, compiled)))
        print(f"{name}, batches of {size}: done", flush=True)


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
