"""ffcv_prune: one `PrunedLoader` for the whole run, which is given each selection by `set_selection`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.loading.rivals import Loader
from benchmarks.loading.rivals.data import Data
from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import train_pipelines


class Ours(Loader):
    def __init__(self, data: Data, batch_size: int, workers: int) -> None:
        super().__init__(data, batch_size, workers)
        pipelines = train_pipelines(check_beton(data.path), "none", data.side)
        self.loader = PrunedLoader(
            data.path, batch_size, workers, pipelines=pipelines, shuffle=True, drop_last=False, with_ids=True
        )

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.loader.set_selection(ids)
        for images, _, batch in self.loader:
            yield images, batch

    def close(self) -> None:
        self.loader.close()
