"""The tests that need a GPU, shown as they run. A test that hangs is named, and one that fails has a line of its own.

They need no plugin of pytest, nor hypothesis.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from benchmarks.gpu.card import TESTS
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from benchmarks.harness.machine import ROOT

# All with tests marked cuda. Only they are read: others import what a GPU machine may not have.
FILES = tuple(
    f"tests/test_{name}.py"
    for name in (
        *("cuda_loader", "cuda_memory", "cuda_training", "cuda_compile"),
        *("distributed", "epoch", "machine", "models", "scoring", "torch_loader", "torch_loader_faults"),
    )
)
LIMIT = 270.0  # seconds, fewer than `all` gives a part
STUCK = 60  # seconds of a test after which its tracebacks are printed
NAME = r"^(tests/\S+::.*?)"
VERDICT = r" (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b.*$"


def run(setting: Setting, report: Report) -> None:
    start = time.monotonic()
    words = ["-m", "pytest", "-m", "cuda", "-v", "-p", "no:cacheprovider", "-o", f"faulthandler_timeout={STUCK}"]
    code, text = shown([sys.executable, *words, *(FILES[:1] if setting.small else FILES)], LIMIT)
    judge(report, code, text)
    expected = TESTS if setting.expects else None
    report.figure("pytest -m cuda took", time.monotonic() - start, "s", expected, lower=True)


def judge(report: Report, code: int | None, text: str) -> None:
    """Add lines of what pytest printed: a test that fails, the one that hangs, and all together."""
    for name, verdict in re.findall(NAME + VERDICT, text, re.MULTILINE):
        if verdict in ("FAILED", "ERROR"):
            report.check(name, False)
    lines = text.strip().splitlines()
    summary = lines[-1].strip("= ") if lines else ""
    if code is None:
        report.check("pytest -m cuda", False, f"ended after {LIMIT:g} s in {running(text) or 'no test'}")
    elif code == 0 and not re.search(r"\b[1-9]\d* passed", summary):
        report.skip("pytest -m cuda", summary)  # no GPU: nothing was shown
    else:
        report.check("pytest -m cuda", code == 0, summary)


def running(text: str) -> str:
    """The test that had begun last, and not ended."""
    names = [line for line in text.splitlines() if re.match(NAME + "$", line)]
    return "" if not names or re.match(NAME + VERDICT, names[-1]) else names[-1].strip()


def shown(command: Sequence[str], limit: float) -> tuple[int | None, str]:
    """The exit code of a command, and what it printed, which is passed on as it comes.

    The code is None for one that took longer than `limit` seconds: it was ended, with all that it had begun.
    """
    chunks: list[bytes] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, start_new_session=True) as process:

        def pass_on() -> None:
            while process.stdout and (chunk := os.read(process.stdout.fileno(), 2**16)):
                chunks.append(chunk)
                sys.stdout.write(chunk.decode(errors="replace"))
                sys.stdout.flush()

        reader = threading.Thread(target=pass_on, daemon=True)
        reader.start()
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        reader.join(10)
    return code, b"".join(chunks).decode(errors="replace")
