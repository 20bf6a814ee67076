"""FFCV's allocator of a ``.beton``'s pages, which also takes the checksum of each sample before it leaves memory."""

from __future__ import annotations

from typing import Any

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from ffcv.memory_allocator import MemoryAllocator
from numpy.typing import NDArray

from ffcv_prune.data import crc32c


class SummingAllocator(MemoryAllocator):
    """Of one worker. `found`, shared by all, gets the checksums that `data.checksums` describes.

    Args:
        fname, offset_start, page_size: as in FFCV.
        records: shared memory with the metadata of all n samples, `record_bytes` each.
        found: shared memory of n unsigned 32-bit numbers.
    """

    def __init__(
        self, fname: str, offset_start: int, page_size: int, records: Any, record_bytes: int, found: Any
    ) -> None:
        super().__init__(fname, offset_start, page_size)
        self._records, self._record_bytes, self._found = records, record_bytes, found
        self._summed = 0  # allocations of the pages before

    def flush_page(self) -> None:
        whole = len(self.allocations)
        # A sample that is not whole yet will start again in the next page.
        while whole > self._summed and self.allocations[whole - 1][0] == self.current_sample_id:
            whole -= 1
        if whole > self._summed:
            self._sum(np.array(self.allocations[self._summed : whole], np.uint64))
        self._summed = whole
        super().flush_page()

    def __exit__(self, *error: Any) -> None:
        self.current_sample_id = None  # the last one is whole
        super().__exit__(*error)

    def _sum(self, allocated: NDArray[np.uint64]) -> None:
        """Take the checksums of samples in this page, of rows (sample, address in the file, size)."""
        fields = int(np.count_nonzero(allocated[:, 0] == allocated[0, 0]))
        samples, addresses, sizes = (column.reshape(-1, fields) for column in allocated.T)
        page_start = self.offset + self.my_page * self.page_size
        records = np.frombuffer(self._records, np.uint8).ctypes.data
        ids, record_bytes = samples[:, :1], np.uint64(self._record_bytes)
        in_memory = addresses + np.uint64(self.page_data.ctypes.data) - np.uint64(page_start)
        in_memory = np.hstack([in_memory, np.uint64(records) + ids * record_bytes])
        sizes = np.hstack([sizes, np.full_like(ids, record_bytes)])
        np.frombuffer(self._found, np.uint32)[ids[:, 0]] = crc32c.sums(in_memory, sizes)
