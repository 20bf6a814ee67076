"""Reading ahead: the order of an epoch is known, so the disk can fetch what the decoder will need.

Without it, a sample that is not in memory is fetched when the decoder touches it, and the decoder waits. The kernel
expects a sequential read, so it fetches the surroundings too: 128 KB by default, on some machines megabytes. A
shuffled or sparse order uses little of them.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import ffcv_prune.ffcv_import  # noqa: F401 - before FFCV  # isort: skip
import numpy as np
from numpy.typing import NDArray

from ffcv_prune.errors import uninterrupted
from ffcv_prune.loading.open_file import OpenFile

# A window is what is asked for at a time, two of them ahead of the decoder: much against the 10 MB that a disk of
# 1 GB/s moves in 10 ms, little against any memory.
WINDOW_BYTES = 32 << 20
WINDOWS_AHEAD = 2

# What the kernel grants of one request: at least this, whatever the disk. Gaps up to it are read along: a window that
# covers much of a small file is then read from end to end, not in thousands of pieces.
REQUEST_BYTES = 128 << 10

# A window is left alone if of this many samples at most so many are not in memory: asking for all costs as much as
# waiting for one in some tens.
PROBES, MAX_MISSING = 64, 3

PAGE = os.sysconf("SC_PAGE_SIZE")


class ReadAhead(threading.Thread):
    """Asks the kernel for the bytes of coming batches, window by window, ahead of the thread that decodes them.

    Args:
        opened: the file.
        fields: names of the fields that are decoded.
        ids: int64[m], in the order of decoding.
        batch_size: ids that are decoded together.
    """

    def __init__(self, opened: OpenFile, fields: Sequence[str], ids: NDArray[np.int64], batch_size: int) -> None:
        super().__init__(daemon=True, name="ffcv_prune-read-ahead")
        self._opened = opened
        self._fields = fields
        self._windows = windows(ids, batch_size, opened.sample_bytes)
        self._room = threading.Semaphore(WINDOWS_AHEAD)
        self._stopped, self._decoding = False, -1

    def decoding(self, batch: int) -> None:
        """To be called now and then, with the batch that is being decoded: those before it are."""
        for number in range(self._decoding + 1, batch + 1):
            if number in self._windows:
                self._room.release()
        self._decoding = max(self._decoding, batch)

    def run(self) -> None:
        for ids in self._windows.values():
            self._room.acquire()
            if not self._in_memory(ids):
                self._request(*byte_ranges(self._opened, self._fields, ids))
            if self._stopped:
                return

    def _in_memory(self, ids: NDArray[np.int64]) -> bool:
        probes = ids[:: -(-len(ids) // PROBES)]
        byte, missing = bytearray(1), 0
        for address in addresses(self._opened, self._fields, probes).tolist():
            try:
                os.preadv(self._opened.descriptor, [byte], address, os.RWF_NOWAIT)
            except OSError:  # not in memory (EAGAIN), or a file system that cannot tell
                missing += 1
                if missing > MAX_MISSING:
                    return False
        return True

    def _request(self, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> None:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            for offset in range(start, end, REQUEST_BYTES):
                if self._stopped:
                    return
                length = min(REQUEST_BYTES, end - offset)
                os.posix_fadvise(self._opened.descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def stop(self) -> None:
        """End the thread and wait for it. May be called more than once, and before it was started."""
        self._stopped = True
        self._room.release()
        with uninterrupted():
            end(self)


def end(thread: threading.Thread) -> None:
    """Wait for the end of a thread that has been asked to stop.

    Not where this is the thread itself: the garbage collector may drop an epoch in any thread.
    """
    if thread.is_alive() and thread is not threading.current_thread():
        thread.join()


def windows(ids: NDArray[np.int64], batch_size: int, sample_bytes: float) -> dict[int, NDArray[np.int64]]:
    """The ids of each window by the number of its first batch. The first window is one batch, to be quick."""
    step = batch_size * max(1, int(WINDOW_BYTES / max(1.0, sample_bytes * batch_size)))
    starts = [0, *range(batch_size, len(ids), step)] if len(ids) else []
    return {start // batch_size: ids[start:end] for start, end in zip(starts, [*starts[1:], len(ids)], strict=False)}


def addresses(opened: OpenFile, fields: Sequence[str], ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Where the data of the samples begin in the file: uint64, one for each sample and field outside the metadata."""
    found = [pointers[ids] for name, pointers in opened.pointers.items() if name in fields]
    return np.concatenate([np.empty(0, dtype=np.uint64), *found])


def byte_ranges(
    opened: OpenFile, fields: Sequence[str], ids: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(starts, ends), int64[m] each, ascending, of whole pages: all bytes of the samples, and the gaps between them
    up to REQUEST_BYTES."""
    manager = opened.memory_manager
    first = np.sort(addresses(opened, fields, ids))
    # Allocations do not overlap, so the ends ascend too.
    last = first + manager.sizes[np.searchsorted(manager.ptrs, first)]
    starts = first.astype(np.int64) // PAGE * PAGE
    ends = -(-last.astype(np.int64) // PAGE) * PAGE
    apart = np.flatnonzero(starts[1:] - ends[:-1] > REQUEST_BYTES)
    return starts[np.concatenate([[0], apart + 1])], ends[np.concatenate([apart, [len(ends) - 1]])]
