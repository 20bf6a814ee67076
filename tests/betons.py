"""Small generated .beton files, written by FFCV itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from ffcv.fields import IntField, RGBImageField
from ffcv.writer import DatasetWriter
from numpy.typing import NDArray


@dataclass(frozen=True)
class Beton:
    """A file together with what was written to it."""

    path: Path
    images: NDArray[np.uint8]  # [n, H, W, 3]
    labels: NDArray[np.int64]  # [n]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[NDArray[np.uint8], int]:
        return self.images[i], int(self.labels[i])


class LabelFirst:
    """The samples of a `Beton` as (number, label, image)."""

    def __init__(self, beton: Beton) -> None:
        self.beton = beton

    def __len__(self) -> int:
        return len(self.beton)

    def __getitem__(self, i: int) -> tuple[int, int, NDArray[np.uint8]]:
        image, label = self.beton[i]
        return 1000 + i, label, image


def write_label_first(path: Path, beton: Beton, label: str = "label") -> Beton:
    """Write `beton` as a user may have: with a number of each sample, then its label, then its image."""
    fields: dict[str, Any] = {"number": IntField(), label: IntField(), "image": RGBImageField("raw")}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(LabelFirst(beton))
    return Beton(path, beton.images, beton.labels)


def write_beton(path: Path, n: int = 203, size: int = 16, classes: int = 10, mode: str = "raw", seed: int = 0) -> Beton:
    """Write n random images that a small net can tell apart: each class has a colour of its own."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    colours = rng.integers(40, 216, (classes, 3))
    noise = rng.integers(-40, 40, (n, size, size, 3))
    images = (colours[labels][:, None, None, :] + noise).astype(np.uint8)
    beton = Beton(path, images, labels)
    fields: dict[str, Any] = {"image": RGBImageField(mode), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(beton)
    return beton


def write_targets(path: Path, beton: Beton, targets: NDArray[Any], field: Any, name: str = "label") -> Path:
    """Write the images of `beton`, each with its own of `targets` [n, ...] in an FFCV field."""
    fields: dict[str, Any] = {"image": RGBImageField("raw"), name: field}
    samples = list(zip(beton.images, targets, strict=True))
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset(samples)
    return path


def write_images(path: Path, images: list[NDArray[np.uint8]], mode: str) -> Path:
    """Write images of any sizes, uint8[H, W, 3] each, labelled 0."""
    fields: dict[str, Any] = {"image": RGBImageField(mode), "label": IntField()}
    DatasetWriter(str(path), fields, num_workers=1).from_indexed_dataset([(image, 0) for image in images])
    return path


def write_run(path: Path, train: Beton, test: Beton | None = None, epochs: int = 4, **sections: str) -> Path:
    """Write the config of a small run on the CPU. `sections` has more of a section: ``prune="method: ucb"``."""
    keys = {
        "data": f"train: {train.path}, test: {(test or train).path}",
        "model": "name: basic_cnn",
        "train": f'epochs: {epochs}, batch_size: 32, lr: 0.02, device: cpu, amp: "off"',
    }
    for name, more in sections.items():
        keys[name] = f"{keys[name]}, {more}" if name in keys else more
    path.write_text("".join(f"{name}: {{{own}}}\n" for name, own in keys.items()))
    return path
