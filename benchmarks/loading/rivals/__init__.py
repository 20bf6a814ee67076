"""Ways to load images: ours and its rivals, each set up as its own documentation advises, one file each.

A file has a `Loader`. `process.Served` runs one in a process of its own. `pip install -e ".[rivals]"` installs what
they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from benchmarks.loading.rivals.data import Data


class Loader:
    """Serves a new selection in each epoch."""

    def __init__(self, data: Data, batch_size: int, workers: int) -> None:
        self.data, self.batch_size, self.workers = data, batch_size, workers

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[Any, Any]]:
        """Yield the images `ids`, int64[k], ascending, in a random order, as batches of (images, ids).

        Both are arrays or tensors on the CPU.
        Images are uint8[B, side, side, 3], or uint8[B, 3, side, side] of that memory layout (channels_last). A batch
        holds until the next one is asked for.
        """
        raise NotImplementedError

    def close(self) -> None:
        """End what lives longer than an epoch."""


class Rival(NamedTuple):
    label: str  # in the tables
    loader: str  # module of this folder, and class
    packages: tuple[str, ...]  # distributions whose versions enter the rows


RIVALS = {
    "ours": Rival("ffcv_prune", "ours:Ours", ("ffcv_prune",)),
    "whole": Rival("ffcv_prune, decoding whole", "ours:Whole", ("ffcv_prune",)),
    "ffcv": Rival("FFCV, rebuilt", "ffcv_stock:Stock", ("ffcv",)),
    "torch": Rival("torch DataLoader", "torch_loader:TorchLoader", ("torch", "simplejpeg")),
    "dali": Rival("NVIDIA DALI", "dali:Dali", ("nvidia-dali-cuda120",)),
    "spdl": Rival("SPDL", "spdl:Spdl", ("spdl", "simplejpeg")),
    "grain": Rival("Grain", "grain:Grain", ("grain", "simplejpeg")),
}
