"""FFCV as it comes: a new `Loader` for each selection, with its `indices`. Each one is compiled anew."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from ffcv.loader import Loader, OrderOption
from numpy.typing import NDArray

from benchmarks.rivals.data import Data
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import train_pipelines


class Stock:
    def __init__(self, data: Data, batch_size: int, workers: int) -> None:
        self.data, self.batch_size, self.workers = data, batch_size, workers
        self.info = check_beton(data.path)

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader = Loader(
            str(self.data.path),
            self.batch_size,
            self.workers,
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=ids,
            pipelines=train_pipelines(self.info, "none", self.data.side),
            drop_last=False,
        )
        iterator = iter(loader)
        order = torch.from_numpy(iterator.order.astype(np.int64))
        for number, (images, _) in enumerate(iterator):
            yield images, order[number * self.batch_size :][: self.batch_size]

    def close(self) -> None:
        """Nothing lives longer than an epoch."""


build = Stock
