"""The files: ImageNet-like by repeating photographs, all JPEG, small for scoring, and CIFAR-10.

Without photographs, or without CIFAR-10, they are noise in a colour of their class. So there is something to learn,
but noise costs more to decode than photographs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from benchmarks.harness.training import write_once
from ffcv_prune.data import recipe
from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.sources import Split, open_source
from ffcv_prune.errors import UserError

MIX, JPEG, VAL, SMALL = "imagenet_like", "imagenet_like_jpeg", "imagenet_like_val", "imagenet_like_small"
CIFAR, CIFAR_TEST = "cifar_train", "cifar_test"
NAMES = (MIX, VAL, SMALL, CIFAR, CIFAR_TEST, JPEG)  # the largest last


def beton(setting: Setting, name: str) -> Path:
    """The path of one of `NAMES`, which is written if it is not there."""
    path = path_of(setting, name)
    if not path.exists():
        split, image, _ = source(setting, name)
        write_once(split, path, image)
    return path


def path_of(setting: Setting, name: str) -> Path:
    return setting.out / "data" / f"{name}.beton"


def run(setting: Setting, report: Report) -> None:
    """Write what is not there yet."""
    for name in NAMES:
        known = path_of(setting, name).exists()
        split, _, origin = source(setting, name)
        path = beton(setting, name)
        note = f"{len(split.labels):,} samples, {origin}{', already there' if known else ''}"
        report.figure(name, path.stat().st_size / 1e6, "MB", note=note)
        report.check(f"{name}: whole", check_beton(path).num_samples == len(split.labels))


def source(setting: Setting, name: str) -> tuple[Split, recipe.Image, str]:
    """Samples, how they are stored, and where they come from."""
    scale = setting.scale
    if name in (CIFAR, CIFAR_TEST):
        # A few real images teach nothing in a few epochs.
        folder = Path("small") if setting.small else setting.cifar
        split, origin = _cifar(folder, scale.cifar_samples, name == CIFAR)
        return split, recipe.Image(), origin
    count = {JPEG: scale.jpeg_samples, VAL: setting.test_samples}.get(name, scale.samples)
    stored = replace(recipe.load_recipe("imagenet", {"splits.val": ""}).image, max_resolution=scale.stored)
    if name == JPEG:
        stored = replace(stored, mode="jpg")
    if name == SMALL:
        stored = replace(stored, mode="raw", max_resolution=scale.score_stored)
    split, origin = _photographs(setting.photographs, count, scale.stored)
    return split, stored, origin


def _photographs(folder: Path, samples: int, side: int) -> tuple[Split, str]:
    try:
        found = open_source(recipe.load_recipe("imagenet", {"splits.val": ""}), folder).splits["train"]
    except UserError:
        return _coloured(samples, side), f"noise: no photographs in {folder.name}"
    return found.take(np.arange(samples) % len(found.labels)), f"{len(found.labels):,} photographs, repeated"


def _cifar(folder: Path, samples: int, train: bool) -> tuple[Split, str]:
    try:
        splits = open_source(recipe.load_recipe("cifar10", {"source.torchvision": "none"}), folder).splits
    except UserError:
        return _coloured(samples if train else samples // 4, 32), f"noise: no CIFAR-10 in {folder.name}"
    split = splits["train" if train else "test"]
    some = np.random.default_rng(0).permutation(len(split.labels))[:samples]
    return split.take(np.sort(some)), "CIFAR-10"


def _coloured(samples: int, side: int, classes: int = 10) -> Split:
    """Noise, each class around a colour of its own."""
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 216, (classes, 3))
    noise = rng.integers(-40, 40, (64, side, side, 3))

    def load(i: int) -> Image.Image:
        return Image.fromarray((colours[i % classes] + noise[i % 64]).astype(np.uint8))

    return Split(np.arange(samples) % classes, load, str)
