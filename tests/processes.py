"""Watching a command from outside while it runs."""

from __future__ import annotations

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
