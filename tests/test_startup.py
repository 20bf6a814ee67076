"""What importing the package and parsing arguments costs, and what importing FFCV must not change."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ffcv_prune

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "numba", "ffcv", "torchvision", "matplotlib"}
GUARD = "ffcv_prune.ffcv_import"

# Runs a command and prints its exit code and which heavy packages it has imported.
RUN = f"""
import runpy, sys
command, sys.argv = sys.argv[1], sys.argv[1:]
code = 0
try:
    run = runpy.run_path if command.endswith(".py") else runpy.run_module
    run(command, run_name="__main__")
except SystemExit as stop:
    code = stop.code or 0
print("\\n", code, *sorted({HEAVY} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["train_imagenet.py", "--help"], 0),
        (["train_imagenet.py", "--config", "rn_configs/cifar10_ucb.yaml", "--prune.keep=0"], 2),
        (["write_datasets.py", "--help"], 0),
        (["write_datasets.py", "--dataset", "no_such"], 2),
        (["ffcv_prune.static_scores", "--help"], 0),
        (["ffcv_prune.analysis", "--help"], 0),
    ],
)
def test_help_and_refusals_import_nothing_heavy(arguments: list[str], code: int) -> None:
    command = [sys.executable, "-c", RUN, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines()[-1].split() == [str(code)], done.stderr


def test_the_package_offers_its_names_and_no_others() -> None:
    """They are imported when they are asked for; all are asked for here."""
    (typed,) = re.findall(r"__all__ = \[(.*?)\]", Path(ffcv_prune.__file__).read_text(), re.DOTALL)
    assert list(ffcv_prune._MODULES) == ffcv_prune.__all__ == re.findall(r'"(\w+)"', typed)
    assert set(ffcv_prune._MODULES) <= set(dir(ffcv_prune))
    for name in ffcv_prune.__all__:
        value = getattr(ffcv_prune, name)
        assert value.__name__.rpartition(".")[2] == name
        assert vars(ffcv_prune)[name] is value
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        ffcv_prune.no_such  # noqa: B018


def imports(path: Path) -> list[str]:
    """The modules that a file imports at its top level, in order."""
    names = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            names.append(str(node.module))
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def test_nothing_of_ours_imports_ffcv_before_the_guard() -> None:
    """A module is safe if it, or the __init__ of its folder, imports the guard first."""
    guarded = 0
    for path in (ROOT / "ffcv_prune").rglob("*.py"):
        own = [*imports(path.with_name("__init__.py")), *imports(path)]
        ffcv = [i for i, name in enumerate(own) if name.split(".")[0] == "ffcv"]
        if ffcv and path.stem != GUARD.split(".")[1]:
            assert GUARD in own[: ffcv[0]], f"{path}: import {GUARD} before FFCV"
            guarded += 1
    assert guarded > 5


def test_importing_ffcv_through_us_leaves_threads_and_numba_alone() -> None:
    """FFCV's import sets both to one thread; ours keeps a dictionary of numba's out of its sight."""
    script = (
        "import torch, numba, numba.typed; torch.set_num_threads(2); typed = numba.typed.Dict; "
        "import ffcv_prune.data.images; from ffcv.fields.rgb_image import IMAGE_MODES; "
        "print(torch.get_num_threads(), numba.get_num_threads(), numba.typed.Dict is typed, IMAGE_MODES)"
    )
    environment = os.environ | {"NUMBA_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.stdout == "2 2 True {'jpg': 0, 'raw': 1}\n", done.stderr


SPINNING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize(("given", "spins"), [(None, 1000), ("ACTIVE", 30_000_000_000)])
def test_threads_of_torch_spin_briefly_unless_the_user_wants_more(given: str | None, spins: int) -> None:
    """Where nothing is set they look 300,000 times before they sleep, and OpenMP calls that passive, too."""
    environment = {name: value for name, value in os.environ.items() if name not in SPINNING}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_DISPLAY_ENV": "VERBOSE"}  # OpenMP says what it took
    if given:
        environment["OMP_WAIT_POLICY"] = given
    script = "import ffcv_prune.scoring.forward"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


@pytest.mark.parametrize(
    ("load", "before", "environment", "warns"),
    [
        (1.9, "import torch; torch.set_num_threads(2)", {}, True),
        (0.1, "import torch; torch.set_num_threads(2)", {}, False),
        (1.9, "import torch; torch.set_num_threads(1)", {}, False),
        (1.9, "import torch; torch.set_num_threads(2)", {"OMP_WAIT_POLICY": "ACTIVE"}, False),
        (1.9, "", {}, False),  # in time
    ],
)
def test_torch_imported_too_early_is_warned_about_on_a_busy_machine(
    load: float, before: str, environment: dict[str, str], warns: bool
) -> None:
    script = (
        f"import os; os.getloadavg = lambda: ({load}, 0, 0); os.sched_getaffinity = lambda _: {{0, 1}}\n{before}\n"
        "import ffcv_prune\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    )
    own = {name: value for name, value in os.environ.items() if name not in SPINNING}
    own |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""} | environment
    done = subprocess.run([sys.executable, "-c", script], env=own, capture_output=True, text=True)
    assert done.stdout == ("None\n" if environment else "1000\n"), done.stderr
    said = "<string>:3: UserWarning: this machine is busy (load 1.9 on 2 cores), where torch's threads"
    assert (said in done.stderr) == warns and (warns or not done.stderr)
