"""The threads that make the images of batches: those of the native code, or numba's where it was not built."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import weakref
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.loading import kernels, native_code
from ffcv_prune.loading.native_code import BatchTasks, NumberTask, StoredSamples, Task

Ids = NDArray[np.int64]

# What a thread takes of a batch at a time has so many bytes, or is one image: more than taking it costs by far.
PIECE_BYTES = 64 << 10


class Workers(Protocol):
    """Makes batches, which are numbered from 0 in the order of `submit`; one thread calls, only `wake` is anybody's.

    Attributes:
        found_damaged: whether the batch that was waited for has samples that `stored` says are damaged.
    """

    found_damaged: bool

    def submit(self, slot: int, ids: Ids, stored: StoredSamples | None) -> None:
        """Make the first images of the tasks of a slot, whose jobs are filled: of the samples `ids`, int64[m].

        Those that `stored` has as unread may be checked first, which marks the sound ones. Theirs until `wait`
        returned True.
        """

    def submitted(self) -> int:
        """How many batches were submitted since `clear`."""

    def taken(self) -> int:
        """The number of the batch that is being made: of those before it, all samples are made or in the making."""

    def wait(self, batch: int) -> bool:
        """Wait until a batch is made, or for `wake`; whether it is made. MemoryError where there was none."""

    def wake(self) -> None:
        """End the waiting, or the next one."""

    def clear(self) -> None:
        """Forget what is not begun, wait for what is, and count batches from 0 again."""


class NativeWorkers:
    """Threads of the native code, which work on several batches side by side, see `native/pool.c`.

    Args:
        tasks: of each slot; as many batches can be submitted at a time.
        threads: so many.
        numbers: of each slot, too.
    """

    def __init__(
        self,
        library: ctypes.CDLL,
        tasks: Sequence[Sequence[Task]],
        threads: int,
        numbers: Sequence[Sequence[NumberTask]] | None = None,
    ) -> None:
        self._library, self._kept = library, (tasks, numbers)
        image_bytes = sum(3 * task.rows * task.columns for task in tasks[0])
        piece = max(1, PIECE_BYTES // max(1, image_bytes))
        self._tasks = [
            ctypes.pointer(BatchTasks((Task * len(i))(*i), (NumberTask * len(n))(*n), len(i), len(n), piece))
            for i, n in zip(tasks, numbers or [[]] * len(tasks), strict=True)
        ]
        self._pool = library.ffcv_prune_begin(threads, len(tasks))
        if not self._pool:
            raise UserError(f"{threads} threads are not to be had: use a smaller num_workers")
        weakref.finalize(self, _end, library, self._pool, os.getpid())

    def submit(self, slot: int, ids: Ids, stored: StoredSamples | None) -> None:
        self._library.ffcv_prune_submit(self._pool, self._tasks[slot], len(ids), ids.ctypes.data, stored)

    def submitted(self) -> int:
        return int(self._library.ffcv_prune_submitted(self._pool))

    def taken(self) -> int:
        return int(self._library.ffcv_prune_taken(self._pool))

    def wait(self, batch: int) -> bool:
        made = self._library.ffcv_prune_wait(self._pool, batch)
        if made < 0:
            raise MemoryError("no memory to decode an image")
        self.found_damaged = made == 2
        return bool(made)

    def wake(self) -> None:
        self._library.ffcv_prune_wake(self._pool)

    def clear(self) -> None:
        self._library.ffcv_prune_clear(self._pool)


def _end(library: ctypes.CDLL, pool: int, owner: int) -> None:
    if os.getpid() == owner:  # a fork has none of the threads
        library.ffcv_prune_end(pool)


class NumbaWorkers:
    """FFCV's decoder and resize on numba's threads, as many as `numba.set_num_threads` says: batch by batch.

    Args:
        tasks: of each slot.
        threads: so many.
        stored_bytes: of the largest image of each task.
    """

    found_damaged = True  # or not: it checks nothing

    def __init__(self, tasks: Sequence[Sequence[Task]], threads: int, stored_bytes: Sequence[int]) -> None:
        self._tasks, self._submitted = tasks, list[tuple[int, int]]()
        self._woken = threading.Event()
        self._rooms = [np.empty((threads, size), np.uint8) for size in stored_bytes]
        self._kept = [np.empty((threads, task.rows, task.columns, 3), np.uint8) for task in tasks[0]]
        self._made = 0

    def submit(self, slot: int, ids: Ids, stored: StoredSamples | None) -> None:
        self._submitted.append((slot, len(ids)))

    def submitted(self) -> int:
        return len(self._submitted)

    def taken(self) -> int:
        return self._made

    def wait(self, batch: int) -> bool:
        if batch < len(self._submitted):
            while self._made <= batch:
                self._make(*self._submitted[self._made])
                self._made += 1
            return True
        self._woken.wait()
        self._woken.clear()
        return False

    def _make(self, slot: int, samples: int) -> None:
        for task, room, kept in zip(self._tasks[slot], self._rooms, self._kept, strict=True):
            jobs, images = (array[:samples] for array in task.kept)
            fill = tuple(task.fill >> shift & 255 for shift in (0, 8, 16))
            kernels.make_images(jobs, images, bool(task.moved), fill, room, kept)

    def wake(self) -> None:
        self._woken.set()

    def clear(self) -> None:
        self._submitted.clear()
        self._woken.clear()
        self._made = 0


@cache
def _notice() -> None:
    print(
        "notice: ffcv_prune's native code is not built, FFCV's slower decoder serves: "
        "apt-get install build-essential libjpeg-dev, then install ffcv_prune again",
        file=sys.stderr,
    )


def workers(
    tasks: Sequence[Sequence[Task]],
    threads: int,
    stored_bytes: Sequence[int],
    numbers: Sequence[Sequence[NumberTask]] | None = None,
) -> Any:
    """`Workers` for the tasks of each slot, see above."""
    library = native_code.library()
    if library is not None:
        return NativeWorkers(library, tasks, threads, numbers)
    if tasks[0]:
        _notice()
    return NumbaWorkers(tasks, threads, stored_bytes)
