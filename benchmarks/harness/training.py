"""What the benchmarks that train share: loaders, images in memory, and files of synthetic ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import Dataset

from ffcv_prune.config import Config
from ffcv_prune.data import recipe
from ffcv_prune.data.encode import encode_split
from ffcv_prune.data.sources import Split
from ffcv_prune.training.loaders import Loaders, settings_of
from ffcv_prune.training.world import World, choose_device


class SharedLoaders(ExitStack):
    """A context that opens the loaders of runs, those of the same data and batches once, and closes them."""

    def __init__(self) -> None:
        super().__init__()
        self._opened: dict[object, Loaders] = {}

    def of(self, config: Config) -> Loaders:
        own = settings_of(config, World(choose_device(config.train.device)))
        if own not in self._opened:
            self._opened[own] = self.enter_context(closing(Loaders(config)))
        return self._opened[own]


class Images(Dataset[Any]):
    """uint8[n, H, W, 3] with int64[n], in memory; `transform` takes each image as it is asked for."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        transform: Callable[[NDArray[np.uint8]], Any] | None = None,
    ) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        image = self.images[i]
        return image if self.transform is None else self.transform(image), int(self.labels[i])


def noise(samples: int, side: int) -> Split:
    """Images of noise, side x side, in 1000 classes."""
    pixels = np.random.default_rng(0).integers(0, 256, 3 * side * side + 65_536, dtype=np.uint8)

    def load(i: int) -> Image.Image:
        start = i * 7919 % 65_536
        return Image.fromarray(pixels[start : start + 3 * side * side].reshape(side, side, 3))

    return Split(np.arange(samples) % 1000, load, str)


def write_once(split: Split, path: Path, image: recipe.Image | None = None, workers: int = -1) -> Path:
    """Write a .beton, raw by default, unless it is there; all of it is on the disk then. Returns its path."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        encode_split(split, part, image or recipe.Image(), 0, workers, path.stem)
        with part.open("rb") as file:
            os.fsync(file.fileno())  # pages that wait to be written cannot be dropped from memory
        part.replace(path)
    return path
