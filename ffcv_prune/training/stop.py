"""SIGTERM and Ctrl-C: noted when they come, obeyed between two steps, or at once where nothing is lost by it."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ffcv_prune.errors import TRAIN, Terminated
from ffcv_prune.training.run_folder import RunFolder

SAVE = 1  # asks to save and go on; below the numbers of the signals, which ask to stop, so that the largest wins
ASKS = {signal.SIGTERM: "SIGTERM", signal.SIGINT: "Ctrl-C"}


class BrokenOff(BaseException):
    """A signal came inside `StopSignals.at_once`."""


class StopSignals:
    """While it is entered, SIGTERM and the first Ctrl-C only set `requested`; a second Ctrl-C ends at once.

    Outside the main thread, where Python allows no handlers, it does nothing.

    Args:
        announce: say on standard error what will happen.

    Attributes:
        requested: number of the signal that asked to stop, 0 if none did.
    """

    def __init__(self, announce: bool = True) -> None:
        self.requested = 0
        self._announce = announce
        self._at_once = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in ASKS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal raises `BrokenOff`: for work that begins anew when the run goes on."""
        self._at_once = True
        try:
            if self.requested:
                raise BrokenOff
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested:
            raise KeyboardInterrupt
        self.requested = number
        if self._announce:
            self._say(number)
        if self._at_once:
            self._at_once = False  # another signal waits until what was begun is taken back
            raise BrokenOff

    @staticmethod
    def _say(number: int) -> None:
        # Not print: a handler may interrupt another print.
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        os.write(2, f"\n{ASKS[signal.Signals(number)]}: stopping as soon as all is saved{again}\n".encode())


def stopped(number: int, folder: RunFolder | None) -> BaseException:
    """The exception that ends a run, its work saved, because of a signal. The main rank says how to go on."""
    if folder is not None:
        print(f"saved; go on with: {TRAIN} --resume {folder.path}", file=sys.stderr, flush=True)
    return KeyboardInterrupt("SIGINT") if number == signal.SIGINT else Terminated("SIGTERM")
