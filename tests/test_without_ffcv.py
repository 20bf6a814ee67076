"""The package where FFCV is not installed: what needs it says so, the rest works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REMEDY = "FFCV is not installed: as root, apt-get install build-essential"

# As pip leaves it: no finder knows a module of FFCV's.
HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ffcv":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
"""


def run_hidden(script: str, *arguments: str, hide: str = HIDE) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", hide + script, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)


def test_a_method_is_driven_by_hand() -> None:
    script = """
import numpy as np
from ffcv_prune import Pruner, methods, score_dataset, tasks
state = methods.build("ucb", keep=0.5).start(10, epochs=2)
state.record(None, np.arange(10, dtype=np.float32), epoch=0)
print(state.select(0).ids.tolist())
"""
    done = run_hidden(script)
    assert done.stdout == "[5, 6, 7, 8, 9]\n", done.stderr


def test_what_needs_ffcv_names_the_remedy() -> None:
    done = run_hidden("from ffcv_prune import PrunedLoader")
    line = done.stderr.splitlines()[-1]
    assert line.startswith(f"ffcv_prune.errors.UserError: {REMEDY}")
    assert 'pip install "ffcv_prune[ffcv]"' in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["train_imagenet.py", "--config", "rn_configs/cifar10_ucb.yaml"],
        ["write_datasets.py", "--dataset", "cifar10", "--data-dir", "no_such"],
    ],
)
def test_commands_that_need_ffcv_refuse_in_one_line(arguments: list[str]) -> None:
    script = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    done = run_hidden(script, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {REMEDY}")


def test_ffcv_that_is_there_but_cannot_be_loaded_says_why() -> None:
    broken = HIDE.replace(
        'ModuleNotFoundError(f"No module named {name!r}", name=name)', "ImportError('no libopencv.so')"
    )
    assert broken != HIDE
    done = run_hidden("from ffcv_prune import PrunedLoader", hide=broken)
    assert "FFCV cannot be imported (no libopencv.so): as root" in done.stderr.splitlines()[-1]
