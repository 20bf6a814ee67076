"""Small torch data sets, as users have them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

N, CLASSES = 203, 10


class Coloured(Dataset[Any]):
    """n uint8 images [3, 8, 8] whose colour tells their class, labelled; states no targets.

    `change` makes of (image, label, position) what is served.
    """

    def __init__(self, n: int = N, change: Callable[[Tensor, int, int], Any] | None = None) -> None:
        rng = np.random.default_rng(0)
        self.classes = rng.permutation(np.arange(n) % CLASSES)
        colours = rng.integers(40, 216, (CLASSES, 3))
        noise = rng.integers(-40, 40, (n, 3, 8, 8))
        self.images = torch.from_numpy((colours[self.classes][:, :, None, None] + noise).astype(np.uint8))
        self.change = change or plain

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Any:
        return self.change(self.images[i], int(self.classes[i]), i)


class WithTargets(Coloured):
    """The same, as torchvision's data sets state their labels."""

    def __init__(self, n: int = N, change: Callable[[Tensor, int, int], Any] | None = None) -> None:
        super().__init__(n, change)
        self.targets = self.classes.tolist()


def plain(image: Tensor, label: int, i: int) -> Any:
    return image, label


def position(image: Tensor, label: int, i: int) -> Any:
    return i, label


def augmented(image: Tensor, label: int, i: int) -> Any:
    """Draws from each generator that users' augmentations draw from."""
    return torch.rand(2), random.random(), np.random.rand()  # noqa: NPY002 - that is the point


def worker(image: Tensor, label: int, i: int) -> Any:
    return i, os.getpid()


def named(image: Tensor, label: int, i: int) -> Any:
    return {"pixel_values": image, "labels": label}


def unlabelled(image: Tensor, label: int, i: int) -> Any:
    return image
