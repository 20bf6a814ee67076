"""The data sets that only the referee has, made of a compiled CIFAR-10.

    python -m benchmarks.payoff.data                     into betons/payoff/
    python -m benchmarks.payoff.data --source betons/cifar10/train.beton --out betons/payoff

The data set redundant: nine of ten samples are copies of 500 images. In wrong_20 and wrong_40, so many percent of the
labels are another class, drawn at random. The data set fifth has a fifth of each class. The others are as large as the
source. All are drawn from seed 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness.machine import ROOT
from benchmarks.harness.training import Images
from ffcv_prune import PrunedLoader
from ffcv_prune.data.any_dataset import write
from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.manifest import Manifest
from ffcv_prune.errors import Arguments, UserError, run_command
from ffcv_prune.loading.pipelines import score_pipelines

COPIED, COPIES = 500, 0.9  # images, and the share of the samples that their copies make


def main() -> None:
    parser = Arguments(
        prog="python -m benchmarks.payoff.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--source", type=Path, default=ROOT / "betons" / "cifar10" / "train.beton")
    parser.add_argument("--out", type=Path, default=ROOT / "betons" / "payoff")
    args = parser.parse_args()
    if not args.source.exists():
        raise UserError(f"{args.source} does not exist; write it with write_datasets.py, or name another --source")
    whole, classes = read(args.source)
    for name, made in variants(whole, len(classes)).items():
        path = args.out / name / "train.beton"
        if path.exists():
            print(f"{path} is there already")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        print(write(made, path, classes=classes))


def read(path: Path) -> tuple[Images, list[str]]:
    """All images and labels of a .beton whose images share a size, and the names of its classes."""
    loader = PrunedLoader(path, 1000, pipelines=score_pipelines(check_beton(path)), drop_last=False)
    batches = [(batch.inputs.clone(), batch.targets.clone()) for batch in loader.batches(0)]
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return Images(images.permute(0, 2, 3, 1).numpy(), labels.numpy()), Manifest.load(path).classes


def variants(whole: Images, classes: int) -> dict[str, Images]:
    """By the name of its folder."""
    n, labels = len(whole), whole.labels
    rng = np.random.default_rng(0)
    copies = round(COPIES * n)
    order = rng.permutation(n)
    repeated = np.concatenate([order[: n - copies], np.resize(order[:COPIED], copies)])
    made = {"redundant": Images(whole.images[repeated], labels[repeated])}
    for percent in (20, 40):
        wrong, changed = rng.permutation(n)[: round(percent * n / 100)], labels.copy()
        changed[wrong] = (changed[wrong] + rng.integers(1, classes, wrong.size)) % classes
        made[f"wrong_{percent}"] = Images(whole.images, changed)
    shuffled = rng.permutation(n)
    fifth = np.sort(np.concatenate([own[: len(own) // 5] for own in _by_class(shuffled, labels)]))
    return made | {"fifth": Images(whole.images[fifth], labels[fifth])}


def _by_class(ids: NDArray[np.int64], labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [ids[labels[ids] == label] for label in np.unique(labels)]


if __name__ == "__main__":
    run_command(main)
