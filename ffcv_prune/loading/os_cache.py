"""What FFCV's loader does when it is built, without what it costs and changes beside it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ffcv.loader.loader as ffcv_loader
import numba
import numpy as np
import torch
from ffcv.memory_managers import OSCacheManager
from ffcv.memory_managers.os_cache import OSCacheContext
from ffcv.reader import Reader


class _LeanOSCache(OSCacheManager):
    """FFCV's page-cache reader without the dictionaries over all samples, which it never reads.

    At 1.28 million samples they take seconds and half a gigabyte in each loader.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        order = np.argsort(reader.alloc_table["ptr"], kind="stable")
        self.ptrs = reader.alloc_table["ptr"][order]
        self.sizes = reader.alloc_table["size"][order]
        self.context = OSCacheContext(self)


_constructor_lock = threading.Lock()


@contextmanager
def ffcv_constructor() -> Iterator[None]:
    """Build an FFCV loader with the lean page-cache reader, leaving torch's and numba's thread counts alone."""
    torch_threads, numba_threads = torch.get_num_threads(), numba.get_num_threads()
    with _constructor_lock:
        original = ffcv_loader.OSCacheManager
        ffcv_loader.OSCacheManager = _LeanOSCache
        try:
            yield
        finally:
            ffcv_loader.OSCacheManager = original
            torch.set_num_threads(torch_threads)
            numba.set_num_threads(numba_threads)
