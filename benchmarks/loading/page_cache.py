"""What of a file is in memory, and what the disk delivers. Linux only."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.loading.read_ahead import PAGE


class PageCache:
    """What of a file is in memory; `mappings` are those of the loaders, whose pages the kernel would not drop."""

    def __init__(self, path: Path, mappings: Sequence[Any]) -> None:
        self.path = path
        self.file = path.open("rb")
        self.bytes = path.stat().st_size
        self.mappings = mappings

    def drop(self, spare: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None) -> None:
        """Drop the file's pages, but for those in the ranges `spare`, (starts, ends) in ascending order."""
        for mapping in self.mappings:
            mapping.madvise(mmap.MADV_DONTNEED)
        starts, ends = ([], []) if spare is None else (spare[0].tolist(), spare[1].tolist())
        for start, end in zip([0, *ends], [*starts, -(-self.bytes // PAGE) * PAGE], strict=True):
            if end > start:
                os.posix_fadvise(self.file.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)

    def resident(self) -> float:
        """Share of the pages that are in memory."""
        with mmap.mmap(self.file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as mapping:
            view = np.frombuffer(mapping, dtype=np.uint8)
            pages = np.zeros(-(-self.bytes // PAGE), dtype=np.uint8)
            failed = ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(view.ctypes.data), ctypes.c_size_t(self.bytes), ctypes.c_void_p(pages.ctypes.data)
            )
            del view
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return float((pages & 1).mean())

    def empty(self) -> None:
        for _ in range(20):
            self.drop()
            left = self.resident()
            if left < 0.01:
                return
            time.sleep(0.1)  # the kernel keeps what is still on its way from the disk
        raise UserError(f"{left:.0%} of {self.path} stay in memory: end what uses it, or use a disk's file system")

    def fill(self) -> None:
        while self.file.read(1 << 24):
            pass
        self.file.seek(0)


def disk_speed(cached: PageCache) -> tuple[float, float]:
    """What the disk delivers of the file: MB/s from end to end, and single pages a second."""
    cached.empty()
    start = time.perf_counter()
    cached.fill()
    rate = cached.bytes / (time.perf_counter() - start) / 1e6
    cached.empty()
    os.posix_fadvise(cached.file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
    start = time.perf_counter()
    for offset in np.random.default_rng(0).integers(0, cached.bytes, 200).tolist():
        os.pread(cached.file.fileno(), PAGE, offset // PAGE * PAGE)
    pages = 200 / (time.perf_counter() - start)
    os.posix_fadvise(cached.file.fileno(), 0, 0, os.POSIX_FADV_NORMAL)
    return rate, pages


def disk_bytes() -> int:
    """Bytes that this process made the disk deliver so far."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["read_bytes"])


def kernel_read_ahead_kb(path: Path) -> int | str:
    """What the kernel reads at a touch of a page that is not in memory; unknown for some file systems."""
    device = path.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    return int(setting.read_text()) if setting.exists() else "unknown"
