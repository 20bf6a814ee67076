"""ffcv_prune: one `PrunedLoader` for the whole run, which is given each selection by `set_selection`."""

from __future__ import annotations

from collections.abc import Iterator

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields.decoders import RandomResizedCropRGBImageDecoder
from ffcv.transforms import ToTensor, ToTorchImage
from numpy.typing import NDArray

from benchmarks.loading.rivals import Loader
from benchmarks.loading.rivals.data import Data
from ffcv_prune import PrunedLoader
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import score_pipelines


class Ours(Loader):
    may_reduce = True

    def __init__(self, data: Data, batch_size: int, workers: int) -> None:
        super().__init__(data, batch_size, workers)
        info = check_beton(data.path)
        pipelines = score_pipelines(info, data.side, scaled=data.reduced and self.may_reduce)
        if data.crop == "random":  # FFCV's decoder, which ours serves: no flip, as with the others
            pipelines["image"] = [RandomResizedCropRGBImageDecoder((data.side, data.side)), ToTensor(), ToTorchImage()]
        self.loader = PrunedLoader(
            data.path, batch_size, workers, pipelines=pipelines, shuffle=True, drop_last=False, with_ids=True
        )

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.loader.set_selection(ids)
        for images, _, batch in self.loader:
            yield images, batch

    def close(self) -> None:
        self.loader.close()


class Whole(Ours):
    """The same, where JPEG images are never decoded at a scale."""

    may_reduce = False
