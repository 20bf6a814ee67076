"""The scripts that the pages on torch show run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pages import ROOT, code


def run_page(name: str, folder: Path, section: str = "") -> str:
    """Run all Python of a page, or of the section under a heading, as one script, and return what it prints."""
    script = folder / f"page_of_{name}.py"  # not torch.py
    script.write_text(code(name, "python", section))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script)], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_script_on_a_torch_data_set_prunes(tmp_path: Path) -> None:
    lines = run_page("torch", tmp_path).splitlines()
    assert lines == [f"epoch {epoch}: 6 batches of 300 samples" for epoch in range(4)]


SECTIONS = [("Lightning", "lightning"), ("Accelerate", "accelerate"), ("Hugging Face Trainer", "transformers")]


@pytest.mark.parametrize(("section", "package"), SECTIONS)
def test_the_script_of_a_framework_makes_each_step_of_the_plan(section: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package, reason=f"needs {package}")
    assert run_page("frameworks", tmp_path, section).splitlines()[-1] == "24 steps"  # 4 epochs of 300 // 50


def test_each_script_of_the_frameworks_is_run() -> None:
    assert code("frameworks", "python") == "\n".join(code("frameworks", "python", section) for section, _ in SECTIONS)
