"""Watching processes from outside: how far they are, and what they leave behind."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from pathlib import Path


def wait_for_epochs(process: subprocess.Popen[str], log: Path, epochs: int, seconds: float) -> None:
    """Return once `log` has the lines of this many epochs; fail if the process ends before, or takes longer."""
    deadline = time.monotonic() + seconds
    while not (log.exists() and log.read_text().count("\n") >= epochs):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)


def shared_memory() -> set[str]:
    """Names of the shared memory of the machine."""
    return set(os.listdir("/dev/shm"))


def expect_no_leak(before: set[str], seconds: float = 60) -> None:
    """Fail if shared memory that was not there `before` stays behind.

    What another process has mapped does not count: other tests, which run at the same time, use some too. When they
    kill a process, its jobs give back its semaphores as they end, on a busy machine after half a minute.
    """
    deadline = time.monotonic() + seconds
    while leaked := shared_memory() - before - _mapped_by_others():
        assert time.monotonic() < deadline, leaked
        time.sleep(0.05)


def _mapped_by_others() -> set[str]:
    names = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        if maps.parent.name != str(os.getpid()):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                names |= {line.split("/dev/shm/")[1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return names
