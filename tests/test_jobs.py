"""Runs side by side: each keeps to its cores, and none outlives the process that asked for them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pytest
import torch

from benchmarks.harness.jobs import jobs_on
from ffcv_prune.errors import UserError

HANGS = """
import os, time
from benchmarks.harness.jobs import jobs_on

def hang(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(1000)

if __name__ == "__main__":
    with jobs_on([[min(os.sched_getaffinity(0))]]) as pool:
        pool.submit(hang, "job").result()
"""


def of_the_job() -> tuple[set[int], int]:
    return os.sched_getaffinity(0), torch.get_num_threads()


def test_a_job_keeps_to_its_cores() -> None:
    core = max(os.sched_getaffinity(0))
    with jobs_on([[core]]) as pool:
        assert pool.submit(of_the_job).result() == ({core}, 1)


def test_a_warning_of_a_job_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with jobs_on([[max(os.sched_getaffinity(0))]]) as pool:
        pool.submit(warnings.warn, "epoch 3: classes are starved").result()
    assert capfd.readouterr().err == "warning: epoch 3: classes are starved\n"


def ignore_sigterm() -> None:
    """As a run, which saves first and goes on with what waits."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(1000)


@pytest.mark.parametrize("job", [partial(time.sleep, 1000), ignore_sigterm], ids=["ends", "goes on"])
def test_an_error_ends_the_jobs(job: Callable[[], None]) -> None:
    with pytest.raises(ValueError, match="of the body"), jobs_on([[max(os.sched_getaffinity(0))]]) as pool:
        submitted = pool.submit(job)
        while not submitted.running():
            time.sleep(0.05)
        raise ValueError("of the body")
    assert not active_children()


def test_a_job_that_is_killed_is_one_line() -> None:
    killed = pytest.raises(UserError, match="a run was killed, perhaps for lack of memory")
    with killed, jobs_on([[max(os.sched_getaffinity(0))]]) as pool:
        pool.submit(os._exit, 9).result()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_no_job_outlives_its_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "hangs.py"
    script.write_text(HANGS)
    here = Path(__file__).parent.parent
    environment = os.environ | {"PYTHONPATH": str(here)}
    parent = subprocess.Popen([sys.executable, script], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    started = tmp_path / "job"
    while not (started.exists() and started.read_text()):
        assert parent.poll() is None
        time.sleep(0.05)
    parent.send_signal(how)
    parent.wait(60)
    status = Path("/proc", started.read_text(), "status")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        while "State:\tZ" not in status.read_text():  # ended, where nobody has asked how
            time.sleep(0.05)
