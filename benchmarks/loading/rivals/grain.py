"""Grain: a `MapDataset` of batches of ids, which threads map to images, made anew for each epoch.

A dataset is a plan and costs nothing to make. Its worker processes would be started for each epoch, so threads
read (`ReadOptions`): the functions called let go of Python's lock. (It advises none for data in memory, which would
read nothing ahead.)
"""

from __future__ import annotations

from collections.abc import Iterator

import grain
import numpy as np
from numpy.typing import NDArray

from benchmarks.loading.rivals import Loader
from benchmarks.loading.rivals.data import Data, batches
from benchmarks.loading.rivals.decode import BatchReader


class Grain(Loader):
    def __init__(self, data: Data, batch_size: int, workers: int) -> None:
        super().__init__(data, batch_size, workers)
        ahead = 2 * workers
        self.options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=ahead)
        self.reader = BatchReader(data, batch_size, ahead + 2)  # one at the consumer, one asked for meanwhile

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        plan = grain.MapDataset.source(list(batches(ids, self.batch_size))).map(self.reader.read)
        return self.reader.serve(plan.to_iter_dataset(self.options))
