"""FFCV as it comes: a new `Loader` for each selection, with its `indices`. Each one is compiled anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields.decoders import CenterCropRGBImageDecoder, IntDecoder, SimpleRGBImageDecoder
from ffcv.loader import Loader, OrderOption
from ffcv.transforms import Squeeze, ToTensor, ToTorchImage
from numpy.typing import NDArray

from benchmarks.loading.rivals.data import Data


class Stock:
    def __init__(self, data: Data, batch_size: int, workers: int) -> None:
        self.data, self.batch_size, self.workers = data, batch_size, workers

    def pipelines(self) -> dict[str, list[Any]]:
        side = self.data.side
        decoder = CenterCropRGBImageDecoder((side, side), 1.0) if self.data.is_resized else SimpleRGBImageDecoder()
        return {"image": [decoder, ToTensor(), ToTorchImage()], "label": [IntDecoder(), ToTensor(), Squeeze(1)]}

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        loader = Loader(
            str(self.data.path),
            self.batch_size,
            self.workers,
            os_cache=True,
            order=OrderOption.RANDOM,
            indices=ids,
            pipelines=self.pipelines(),
            drop_last=False,
        )
        iterator = iter(loader)
        order = torch.from_numpy(iterator.order.astype(np.int64))
        for number, (images, _) in enumerate(iterator):
            yield images, order[number * self.batch_size :][: self.batch_size]

    def close(self) -> None:
        """Nothing lives longer than an epoch."""


build = Stock
