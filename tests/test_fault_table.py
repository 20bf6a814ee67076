"""docs/faults.md: every row names tests, and every test that it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ["Fault", "What you see", "What is kept", "Tests"]
TEST = re.compile(r"`(tests/test_\w+\.py)::(test_\w+)`")


def rows() -> list[list[str]]:
    """The cells of each row, of all tables."""
    lines = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row != COLUMNS and set(row[0]) != {"-"}]


def defined_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_its_cells_and_its_tests() -> None:
    assert len(rows()) > 20
    for row in rows():
        assert len(row) == len(COLUMNS), row
        assert all(row), row
        named = TEST.findall(row[-1])
        assert named, f"no test for: {row[0]}"
        assert TEST.sub("", row[-1]).strip(" ,") == "", f"not only tests: {row[-1]}"
        for file, test in named:
            assert test in defined_in(ROOT / file), f"{file} has no {test}"
