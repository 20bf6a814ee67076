"""A thread that notices within seconds that another process has ended, whatever this one is waiting for just then."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

from ffcv_prune import collectives
from ffcv_prune.errors import EXIT_USER_ERROR

BEAT = 1.0  # seconds from one sign of life to the next
GRACE = 15.0  # seconds in which this process may end by itself; torchrun kills it after 30
LOST_RANK = "another rank ended or cannot be reached; see its output, then go on with --resume"


class Watch(threading.Thread):
    """Exchanges signs of life with the other ranks, and ends this process where it cannot do so itself.

    On GPUs a step's kernels wait for those of the other ranks. When one of these has ended they wait for ever, and so
    does whatever waits for the device: the main thread, or the loader's. None of them would ask another rank anything.

    Args:
        group: of all ranks, over gloo, that nobody else uses. Its timeout is how long a machine may be silent.

    Attributes:
        lost: True once another rank has ended or cannot be reached.
        last_act: is called before this process is ended.
    """

    def __init__(self, group: Any) -> None:
        super().__init__(daemon=True, name="ffcv_prune-watch")
        self.lost = False
        self.last_act: Callable[[], None] | None = None
        self._group = group
        self._over = threading.Event()

    def run(self) -> None:
        try:
            # Who is through says so, and all watches end: what is left to do then needs no other rank.
            while not int(collectives.maximum(torch.tensor(int(self._over.is_set())), self._group)):
                self._over.wait(BEAT)
        except RuntimeError:  # of gloo, which has no exception of its own for it
            self.lost = not self._over.is_set()
            if self.lost and not self._over.wait(GRACE):
                self._end_process()

    def _end_process(self) -> None:
        try:
            if self.last_act is not None:
                self.last_act()
            print(f"error: {LOST_RANK}", file=sys.stderr, flush=True)
        finally:
            os._exit(EXIT_USER_ERROR)

    def end(self, agreed: bool) -> None:
        """Watch no longer. `agreed`: all ranks end now; otherwise this one leaves the others to theirs."""
        self._over.set()
        if agreed:
            self.join()
