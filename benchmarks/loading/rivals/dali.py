"""NVIDIA DALI on the CPU: one pipeline for the whole run, fed with the batches of each epoch's ids.

DALI's file readers take their list of files once, so its documentation sends an order of one's own through
`external_source`: an iterable with `cycle="raise"` is begun anew after each `reset()`, and `no_copy` hands over
views of the mapped file. Square images of one size are gathered into a dense batch first: sample by sample took twice
the CPU. JPEG images are decoded only as far as the crop needs. DALI resizes by linear interpolation with
antialiasing, the nearest to an area average that it has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, pipeline_def

from benchmarks.loading.rivals import Loader
from benchmarks.loading.rivals.data import Buffers, Data, batches
from benchmarks.loading.rivals.decode import read_batch

PREFETCHED = 2


class Dali(Loader):
    def __init__(self, data: Data, batch_size: int, workers: int) -> None:
        super().__init__(data, batch_size, workers)
        self.ids = np.empty(0, np.int64)
        self.buffers = Buffers(data, batch_size, PREFETCHED + 3)
        self.pipeline = _pipeline(self, data, batch_size=batch_size, num_threads=workers)
        self.pipeline.build()

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """What an epoch feeds the pipeline with: images and ids; and the crop, if there is one, as float32[B, 2]s."""
        data = self.data
        for ids in batches(self.ids, self.batch_size):
            images: Any
            if data.dense is not None:
                buffer = self.buffers.take()
                self.buffers.give_back(buffer)  # of more than DALI holds: it comes back when it is free
                images = read_batch(data, ids, buffer)
            else:
                images = [(data.stored if data.is_jpeg else data.pixels)(i) for i in ids.tolist()]
            if not data.is_resized:
                yield images, ids[:, None]
                continue
            corners, sides = np.ascontiguousarray(data.regions[ids].reshape(-1, 2, 2).swapaxes(0, 1), np.float32)
            yield images, ids[:, None], corners, sides

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        self.ids = ids
        while True:
            try:
                images, batch = self.pipeline.run()
            except StopIteration:
                self.pipeline.reset()
                return
            yield np.asarray(images.as_tensor()), np.asarray(batch.as_tensor())[:, 0]

    def close(self) -> None:
        del self.pipeline


@pipeline_def(device_id=None, prefetch_queue_depth=PREFETCHED)
def _pipeline(source: Dali, data: Data) -> Any:
    layouts = ["" if data.is_jpeg else "HWC", "", "", ""][: 4 if data.is_resized else 2]
    images, ids, *crop = fn.external_source(
        source, num_outputs=len(layouts), layout=layouts, cycle="raise", no_copy=True
    )
    size = [data.side, data.side]
    if data.is_jpeg and data.is_resized:
        corner, sides = crop
        pixels = {"normalized_anchor": False, "normalized_shape": False}
        images = fn.decoders.image_slice(images, corner, sides, axes=[0, 1], use_fast_idct=True, **pixels)
        images = fn.resize(images, size=size)
    elif data.is_jpeg:
        images = fn.decoders.image(images, use_fast_idct=True)
    elif data.is_resized:
        corner, sides = crop
        images = fn.resize(images, size=size, roi_start=corner, roi_end=corner + sides)
    return images, ids
