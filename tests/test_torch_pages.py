"""The scripts that the pages on torch show run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run_page(name: str, folder: Path) -> str:
    """Run all Python of a page as one script, and return what it prints."""
    script = folder / f"page_of_{name}.py"  # not torch.py
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
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
