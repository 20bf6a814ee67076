"""A loader in a process of its own: no other one's threads, settings or memory enter its numbers."""

from __future__ import annotations

import multiprocessing
import os
import pkgutil
import resource
import signal
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.loading.rivals import Loader, Rival
from benchmarks.loading.rivals.data import Data, random_subset

PROBES = 64  # images whose pixels are compared


@dataclass(frozen=True)
class Measured:
    """What the epochs of one measurement took together. CPU: user and system, worker processes included."""

    epochs: int
    images: int
    seconds: float
    cpu_seconds: float
    first_images: int  # in the first batches of the epochs
    first_seconds: float  # until the first batch was there, summed over the epochs
    first_cpu_seconds: float  # of the loader's own process alone: to look at all of them would cost an epoch time


class Served:
    """A loader that was built, has served every image once, and waits to be measured.

    Attributes:
        warm_up: the first epoch, of all images, with building the loader.
        pixels: uint8[PROBES, side, side, 3]: what it made of the images `probes(data)`.

    Raises ModuleNotFoundError where a package is missing; its name says which.
    """

    def __init__(self, rival: Rival, data: Data, batch_size: int, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        # Ctrl-C reaches the whole group; it is the benchmark that ends the process.
        self._process = ProcessPoolExecutor(1, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
        self.warm_up: Measured
        self.pixels: NDArray[np.uint8]
        try:
            made = self._process.submit(_build, rival.loader, data, batch_size, workers)
            self.warm_up, self.pixels = made.result()
        except BaseException:
            self._process.shutdown()
            raise

    def measure(self, keep: float, seconds: float, key: tuple[int, ...]) -> Measured:
        """Serve epochs of `keep` of the images until `seconds` are over, each of a new selection drawn from `key`."""
        return self._process.submit(_measure, keep, seconds, key).result()

    def close(self) -> None:
        with suppress(BrokenExecutor):
            self._process.submit(_end)
        self._process.shutdown()


def probes(data: Data) -> NDArray[np.int64]:
    """int64[<= PROBES]: the images whose pixels are compared, ascending."""
    return np.unique(np.linspace(0, len(data) - 1, PROBES, dtype=np.int64))


def run_epoch(
    loader: Loader, ids: NDArray[np.int64], look: Callable[[Any, NDArray[np.int64]], None] | None = None
) -> Measured:
    """Serve `ids` once, and check that each came once; `look` is called with every batch."""
    got: list[NDArray[np.int64]] = []
    first, first_cpu = 0.0, 0.0
    cpu, own_cpu, start = cpu_seconds(), time.process_time(), time.perf_counter()
    for images, batch in loader.epoch(ids):
        if not got:
            first, first_cpu = time.perf_counter() - start, time.process_time() - own_cpu
        got.append(np.asarray(batch).copy())
        if look:
            look(images, got[-1])
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    if not np.array_equal(np.sort(np.concatenate(got)), np.sort(ids)):
        raise AssertionError("the loader did not serve the ids that were asked for, each once")
    return Measured(1, len(ids), seconds, cpu, len(got[0]), first, first_cpu)


def cpu_seconds() -> float:
    """User and system time of this process and all its descendants, those that ended and were waited for included."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return _of_process(os.getpid()) + ended.ru_utime + ended.ru_stime


def _of_process(pid: int) -> float:
    """CPU seconds of a process and its descendants that live; 0 for one that has ended meanwhile."""
    try:
        own = time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) makes of a process id: nanoseconds
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return 0.0
    for task in tasks:
        with suppress(OSError):  # a thread may end at any time: the process goes on
            own += sum(_of_process(int(child)) for child in task.joinpath("children").read_text().split())
    return own


def _sum(parts: list[Measured]) -> Measured:
    return Measured(*(sum(values) for values in zip(*(vars(part).values() for part in parts), strict=True)))


_served: list[Loader] = []  # in the loader's process: the one that was built


def _build(loader: str, data: Data, batch_size: int, workers: int) -> tuple[Measured, NDArray[np.uint8]]:
    """Build a loader and serve everything once."""
    cpu, start = cpu_seconds(), time.perf_counter()
    build = pkgutil.resolve_name(f"benchmarks.loading.rivals.{loader}")
    _served.append(build(data, batch_size, workers))
    building = Measured(0, 0, time.perf_counter() - start, cpu_seconds() - cpu, 0, 0.0, 0.0)
    wanted = probes(data)
    pixels = np.zeros((len(wanted), data.side, data.side, 3), np.uint8)

    def look(images: Any, ids: NDArray[np.int64]) -> None:
        array = np.asarray(images)
        if array.shape[1] == 3:  # [B, 3, side, side]
            array = array.transpose(0, 2, 3, 1)
        _, at, of = np.intersect1d(wanted, ids, return_indices=True)
        pixels[at] = array[of]

    served = run_epoch(_served[0], np.arange(len(data)), look)
    return _sum([building, served]), pixels


def _measure(keep: float, seconds: float, key: tuple[int, ...]) -> Measured:
    loader, done = _served[0], list[Measured]()
    rng = np.random.default_rng([round(1000 * keep), *key])
    while not done or sum(part.seconds for part in done) < seconds:
        done.append(run_epoch(loader, random_subset(len(loader.data), keep, rng)))
    return _sum(done)


def _end() -> None:
    """Close the loader, and end the process whatever threads it may have left."""
    _served[0].close()
    os._exit(0)
