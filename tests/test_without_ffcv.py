"""The package where FFCV is not installed: what needs it says so, the rest works."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REMEDY = "FFCV is not installed: as root, apt-get install build-essential"

# As pip leaves it: no finder knows a module of FFCV's, and nothing knows its version.
HIDE = """
import sys
from importlib.metadata import Distribution, PackageNotFoundError
found = Distribution.from_name
def from_name(name):
    if name == "ffcv":
        raise PackageNotFoundError(name)
    return found(name)
Distribution.from_name = from_name
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


def test_a_run_is_pruned_with_a_torch_data_set() -> None:
    script = """
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset
from ffcv_prune import Pruner, TorchLoader
data = TensorDataset(torch.randn(200, 5), torch.arange(200) % 3)
loader = TorchLoader(data, batch_size=20, num_workers=0, with_ids=True)
score_loader = TorchLoader(data, batch_size=50, num_workers=0, shuffle=False, drop_last=False)
model = torch.nn.Linear(5, 3)
pruner = Pruner(loader, score_loader, "ucb", keep=0.3, period=1, class_floor=0.5, epochs=3)
for epoch in range(3):
    pruner.begin_epoch(epoch, model)
    for inputs, targets, ids in loader:
        pruner.batch_loss(F.cross_entropy(model(inputs), targets, reduction="none"), ids).backward()
    print(len(loader), len(loader.selection), "ffcv" in sys.modules)
"""
    done = run_hidden(script)
    assert done.stdout == "3 60 False\n" * 3, done.stderr


def test_a_loop_of_ones_own_writes_its_run_and_the_report_of_it(tmp_path: Path) -> None:
    script = """
import json, torch
from pathlib import Path
from torch.utils.data import TensorDataset
from ffcv_prune import Pruner, RunWriter, TorchLoader
data = TensorDataset(torch.randn(200, 5), torch.arange(200) % 3)
loader = TorchLoader(data, batch_size=20, num_workers=0)
score_loader = TorchLoader(data, batch_size=50, num_workers=0, shuffle=False, drop_last=False)
pruner = Pruner(loader, score_loader, "ucb", keep=0.3, period=1, epochs=3)
model = torch.nn.Linear(5, 3)
with RunWriter(sys.argv[1], pruner, test_samples=100) as run:
    for epoch in range(3):
        run.log(epoch, pruner.begin_epoch(epoch, model), test_accuracy=0.5)
print(json.loads((Path(sys.argv[1]) / "machine.json").read_text())["ffcv"])
sys.argv = ["analysis", *sys.argv[1:]]
from ffcv_prune.analysis.__main__ import main
main()
"""
    done = run_hidden(script, str(tmp_path / "mine"), "--out", str(tmp_path / "again.html"))
    assert done.stdout.splitlines()[0] == "not installed", done.stderr
    assert done.returncode == 0, done.stderr
    assert "selections" in (tmp_path / "again.html").read_text()


BROKEN = HIDE.replace('ModuleNotFoundError(f"No module named {name!r}", name=name)', "ImportError('no libopencv.so')")


@pytest.mark.parametrize("hide", [HIDE, BROKEN], ids=["missing", "broken"])
def test_a_star_import_gives_what_can_be_imported(hide: str) -> None:
    script = """
from ffcv_prune import *
import ffcv_prune
print(*(name for name in ffcv_prune._MODULES if name in globals()))
"""
    done = run_hidden(script, hide=hide)
    assert done.stdout == "Pruner RunWriter TorchLoader methods score_dataset tasks\n", done.stderr


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
    assert BROKEN != HIDE
    done = run_hidden("from ffcv_prune import PrunedLoader", hide=BROKEN)
    assert "FFCV cannot be imported (no libopencv.so): as root" in done.stderr.splitlines()[-1]
