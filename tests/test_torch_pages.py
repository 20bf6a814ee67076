"""The scripts that the pages on torch show run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_page(name: str, folder: Path, section: str = "") -> str:
    """Run all Python of a page, or of the section under a heading, as one script, and return what it prints."""
    script = folder / f"page_of_{name}.py"  # not torch.py
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    if section:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
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
