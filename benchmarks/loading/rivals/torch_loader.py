"""torch's DataLoader: whole batches by one call, workers that live on, and one sampler whose ids are exchanged.

This is the setting that the documentation of torch.utils.data advises where reading in bulk is cheaper. Automatic
batching is off (`batch_size=None`), and the sampler returns the ids of a batch. The workers hold the mapped file, not
the ids. They fill tensors in shared memory, so that no batch is copied on its way.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from benchmarks.loading.rivals import Loader
from benchmarks.loading.rivals.data import Data, batches
from benchmarks.loading.rivals.decode import read_batch


class Images(Dataset):
    def __init__(self, data: Data) -> None:
        self.data = data

    def __getitem__(self, ids: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(ids), self.data.side, self.data.side, 3)
        # How torch's own default_collate makes a batch in shared memory.
        storage = torch.UntypedStorage._new_shared(int(np.prod(shape)))
        images = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
        read_batch(self.data, ids, images.numpy())
        return images, torch.from_numpy(ids)


class TorchLoader(Loader):
    def __init__(self, data: Data, batch_size: int, workers: int) -> None:
        super().__init__(data, batch_size, workers)
        self.batches: list[NDArray[np.int64]] = []  # the sampler
        self.loader = DataLoader(
            Images(data),
            sampler=self.batches,
            batch_size=None,
            num_workers=workers,
            persistent_workers=True,
            prefetch_factor=3,
        )

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        self.batches[:] = batches(ids, self.batch_size)
        yield from self.loader

    def close(self) -> None:
        del self.loader  # ends the workers
