"""FFCV as it comes: a new `Loader` for each selection, with its `indices`. Each one is compiled anew."""

from __future__ import annotations

from collections.abc import Iterator

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
import torch
from ffcv.fields.decoders import CenterCropRGBImageDecoder, RandomResizedCropRGBImageDecoder
from ffcv.pipeline.operation import Operation
from numpy.typing import NDArray

from benchmarks.loading.rivals import Loader
from benchmarks.loading.stock import stock_loader


class Stock(Loader):
    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        side, own = self.data.side, {"num_workers": self.workers, "indices": ids, "drop_last": False}
        decoder: Operation | None = None
        if self.data.crop == "random":
            decoder = RandomResizedCropRGBImageDecoder((side, side))
        elif self.data.is_resized:
            decoder = CenterCropRGBImageDecoder((side, side), 1.0)
        iterator = iter(stock_loader(self.data.path, self.batch_size, decoder, **own))
        order = torch.from_numpy(iterator.order.astype(np.int64))
        for number, (images, _) in enumerate(iterator):
            yield images, order[number * self.batch_size :][: self.batch_size]
