"""Runs side by side, each in a process of its own and on its own cores."""

from __future__ import annotations

import ffcv_prune  # noqa: F401 - before torch  # isort: skip
import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, parent_process
from typing import Any

import torch

from ffcv_prune.errors import UserError, warn_in_one_line

GRACE = 5.0  # seconds in which a run may end by itself


@contextmanager
def jobs_on(shares: Sequence[Sequence[int]]) -> Iterator[ProcessPoolExecutor]:
    """Processes that each keep to a share of the cores. None outlives this process, however it ends."""
    context = multiprocessing.get_context("spawn")
    given = context.Queue()
    for share in shares:
        given.put(share)
    with ProcessPoolExecutor(len(shares), context, _begin, (given,)) as pool:
        try:
            yield pool
        except BaseException as error:
            children = active_children()
            for child in children:
                child.terminate()
            for child in children:  # a run saves first, and may then begin the one that waits
                child.join(GRACE)
                child.kill()
            if isinstance(error, BrokenProcessPool):
                raise UserError("a run was killed, perhaps for lack of memory: free some and begin again") from None
            raise  # the pool waits until they are gone


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This process is on these cores, as a job: rows name the cores of the process that writes them."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _begin(given: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    warn_in_one_line()
    share = given.get()
    os.sched_setaffinity(0, share)
    torch.set_num_threads(len(share))


def _end_with_parent() -> None:
    """A signal that ends the parent alone would leave this process waiting for work for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
