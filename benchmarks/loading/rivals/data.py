"""The stored images as every loader gets them: the bytes of one `.beton`, and what to make of them.

The rivals map the file that FFCV reads: same bytes, same page cache. They need not open a file for each image, which
would cost only them time. Raw images of one size they get as one dense array in a file of its own. numpy gathers from
it in a single call. Labels are an array in memory, cost nothing, and are left out.
"""

from __future__ import annotations

import os
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from ffcv.reader import Reader
from numpy.typing import NDArray

from ffcv_prune.data.beton import JPG, BetonInfo, check_beton
from ffcv_prune.loading import kernels


@dataclass(frozen=True)
class Data:
    """A `.beton` of images that are all raw or all JPEG, to be served as uint8[B, side, side, 3].

    An image that is not square of that side is cropped to its largest centred square and resized.

    Attributes:
        crop: "centre", or "random" for a random part of the image, as in training. Ours and FFCV's draw it anew in
            each epoch; others have no such generator to measure: they get what ours draws in epoch 0.
        reduced: JPEG images may be decoded at a scale of libjpeg's that leaves 1.5 times the pixels wanted.
    """

    path: Path
    side: int
    crop: str = "centre"
    reduced: bool = False

    def __len__(self) -> int:
        return self._info.num_samples

    @cached_property
    def is_jpeg(self) -> bool:
        return bool((self._info.image_modes == JPG).all())

    @cached_property
    def heights(self) -> NDArray[np.int64]:
        return self._info.image_heights.astype(np.int64)

    @cached_property
    def widths(self) -> NDArray[np.int64]:
        return self._info.image_widths.astype(np.int64)

    @cached_property
    def regions(self) -> NDArray[np.int64]:
        """int64[n, 4]: what is to be seen of each image, (top, left, height, width)."""
        if self.crop == "random":
            return random_regions(self.heights, self.widths)
        sides = np.minimum(self.heights, self.widths)
        return np.stack([(self.heights - sides) // 2, (self.widths - sides) // 2, sides, sides], axis=1)

    @cached_property
    def is_resized(self) -> bool:
        """Whether any image has to be cropped and resized."""
        return bool((self.heights != self.side).any() or (self.widths != self.side).any())

    @cached_property
    def dense(self) -> NDArray[np.uint8] | None:
        """uint8[n, side, side, 3], mapped: what `write_dense` wrote. None for images that are not served as stored."""
        if self.is_jpeg or self.is_resized:
            return None
        return np.load(self._dense_path, mmap_mode="r").view(np.ndarray)

    def write_dense(self) -> None:
        """Write the file of `dense`, where there is to be one and it is not there yet."""
        if self.is_jpeg or self.is_resized or self._dense_path.exists():
            return
        partial = self._dense_path.with_suffix(".part")
        with partial.open("wb") as file:
            np.save(file, np.stack([self.pixels(i) for i in range(len(self))]))
        partial.replace(self._dense_path)

    def stored(self, i: int) -> NDArray[np.uint8]:
        """uint8[bytes]: image `i` as it is stored, a view of the mapped file."""
        start = self._starts[i]
        return self._memory[start : start + self._sizes[i]]

    def pixels(self, i: int) -> NDArray[np.uint8]:
        """uint8[h, w, 3]: raw image `i`, a view of the mapped file."""
        return self.stored(i).reshape(self.heights[i], self.widths[i], 3)

    @property
    def _dense_path(self) -> Path:
        return self.path.with_suffix(".npy")

    @cached_property
    def _info(self) -> BetonInfo:
        return check_beton(self.path)

    @cached_property
    def _memory(self) -> NDArray[np.uint8]:
        return np.memmap(self.path, np.uint8, mode="r").view(np.ndarray)

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        column = list(self._info.fields).index(self._info.image_field)
        return Reader(os.fspath(self.path)).metadata[f"f{column}"]["data_ptr"].astype(np.int64)

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        table = np.sort(Reader(os.fspath(self.path)).alloc_table, order="ptr")
        return table["size"][np.searchsorted(table["ptr"], self._starts)].astype(np.int64)


def random_regions(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[n, 4], see `Data.regions`: by the rule and with the defaults of FFCV and torchvision."""
    keys = [kernels.stream_key(0, 0, i) for i in range(len(heights))]
    sizes = zip(keys, heights.tolist(), widths.tolist(), strict=True)
    return np.array([kernels.random_resized_crop(*size, (0.08, 1.0), (3 / 4, 4 / 3)) for size in sizes], np.int64)


class Buffers:
    """Buffers of whole batches that are used again and again, as FFCV's are: fresh memory costs a fault a page."""

    def __init__(self, data: Data, batch_size: int, count: int) -> None:
        self._free: queue.SimpleQueue[NDArray[np.uint8]] = queue.SimpleQueue()
        for _ in range(count):
            self.give_back(np.empty((batch_size, data.side, data.side, 3), np.uint8))

    def take(self) -> NDArray[np.uint8]:
        """The buffer that was given back longest ago, uint8[batch_size, side, side, 3]; waits for one."""
        return self._free.get()

    def give_back(self, buffer: NDArray[np.uint8]) -> None:
        self._free.put(buffer)


def random_subset(n: int, keep: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64[round(keep * n)], ascending, as methods return it: a selection at random."""
    return np.sort(rng.permutation(n)[: round(keep * n)])


def batches(ids: NDArray[np.int64], batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Shuffle `ids`, int64[k], and cut them into batches; the last one may be smaller."""
    shuffled = np.random.default_rng().permutation(ids)
    return (shuffled[i : i + batch_size] for i in range(0, len(ids), batch_size))
