"""SPDL: a pipeline of threads for each epoch, whose one stage makes images of a whole batch of ids.

Its documentation has a pipeline read one source to its end, and prefers few calls of functions that let go of
Python's lock. A `continuous=True` source would read ahead into an epoch whose ids are not known yet. SPDL's own decoder
is FFmpeg, which its package does not bring and whose pixels differ; simplejpeg stands in for it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from spdl.pipeline import PipelineBuilder

from benchmarks.loading.rivals import Loader
from benchmarks.loading.rivals.data import Data, batches
from benchmarks.loading.rivals.decode import BatchReader

AHEAD = 3  # batches in the queue


class Spdl(Loader):
    def __init__(self, data: Data, batch_size: int, workers: int) -> None:
        super().__init__(data, batch_size, workers)
        # In the queue, at the consumer, at each thread; between these, SPDL holds a few more.
        self.reader = BatchReader(data, batch_size, AHEAD + 1 + 3 * workers)

    def epoch(self, ids: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        pipeline = (
            PipelineBuilder()
            .add_source(batches(ids, self.batch_size))
            .pipe(self.reader.read, concurrency=self.workers)
            .add_sink(AHEAD)
            .build(num_threads=self.workers, use_thread_output_queue=True)
        )
        with pipeline.auto_stop():
            yield from self.reader.serve(pipeline)
