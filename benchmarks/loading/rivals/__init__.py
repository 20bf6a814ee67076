"""Ways to load images: ours and its rivals, each set up as its own documentation advises, one file each.

A file has `build(data, batch_size, workers)`, which returns a `Loader`. `process.Served` runs one in a process of its
own. `pip install -e ".[rivals]"` installs what they need.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray


class Loader(Protocol):
    """Serves a new selection in each epoch."""

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[Any, Any]]:
        """Yield the images `ids`, int64[k], ascending, in a random order, as batches of (images, ids).

        Both are arrays or tensors on the CPU.
        Images are uint8[B, side, side, 3], or uint8[B, 3, side, side] of that memory layout (channels_last). A batch
        holds until the next one is asked for.
        """

    def close(self) -> None:
        """End what lives longer than an epoch."""


class Rival(NamedTuple):
    label: str  # in the tables
    module: str
    packages: tuple[str, ...]  # distributions whose versions enter the rows


RIVALS = {
    "ours": Rival("ffcv_prune", "benchmarks.loading.rivals.ours", ("ffcv_prune",)),
    "ffcv": Rival("FFCV, rebuilt", "benchmarks.loading.rivals.ffcv_stock", ("ffcv",)),
    "torch": Rival("torch DataLoader", "benchmarks.loading.rivals.torch_loader", ("torch", "simplejpeg")),
    "dali": Rival("NVIDIA DALI", "benchmarks.loading.rivals.dali", ("nvidia-dali-cuda120",)),
    "spdl": Rival("SPDL", "benchmarks.loading.rivals.spdl", ("spdl", "simplejpeg")),
    "grain": Rival("Grain", "benchmarks.loading.rivals.grain", ("grain", "simplejpeg")),
}
