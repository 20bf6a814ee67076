"""The table of Pythons: environments are made once, and what pytest counts in them is what the rows say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import pythons
from benchmarks.harness.rows import read_csv

ROOT = Path(__file__).resolve().parent.parent
# `-m venv` makes what answers pip with nothing, and is this interpreter for all else.
INTERPRETER = """#!/bin/bash
case "$*" in
"-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
"-m pip "*) echo "$*" >>"{calls}"; [ ! -e "{calls}.fail" ] || {{ echo "no network" >&2; exit 1; }} ;;
*) exec {python} "$@" ;;
esac
"""
TESTS = """
import pytest
def test_passes(): pass
def test_fails(): assert False
@pytest.fixture
def broken(): raise ValueError
def test_has_an_error(broken): pass
@pytest.mark.parametrize("i", range(3))
def test_skips(i): pytest.skip()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("one", "two"):
        path = tmp_path / name
        path.write_text(INTERPRETER.format(calls=tmp_path / "calls", python=sys.executable))
        path.chmod(0o755)
    (tmp_path / "test_few.py").write_text(TESTS)
    return tmp_path


def run(folder: Path, names: str, *words: str) -> subprocess.CompletedProcess[str]:
    listed = ",".join(str(folder / name) for name in names.split())
    command = [sys.executable, "-m", "benchmarks.pythons", f"--pythons={listed}", "--processes=1"]
    command += [f"--csv={folder / 'rows.csv'}", str(folder / "test_few.py"), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


def test_each_python_has_its_row_once(folder: Path) -> None:
    assert run(folder, "one").returncode == 0
    done = run(folder, "one two")
    assert "1 of 2 cases have their rows" in done.stdout
    rows = read_csv(folder / "rows.csv")
    assert [Path(row["interpreter"]).name for row in rows] == ["one", "two"]
    for row in rows:
        assert (row["passed"], row["failed"], row["skipped"]) == ("1", "2", "3")
        assert row["version"] == ".".join(map(str, sys.version_info[:3]))
        assert row["packages"].startswith("torch ")
    assert (folder / "calls").read_text().count("[test]") == 2
    line = f"| {rows[0]['version']} | {rows[0]['packages']} | 1 | 2 | 3 |"
    assert pythons.summary(rows).count(line) == 2
    assert (folder / "rows.md").read_text().count(line) == 2


@pytest.mark.parametrize(
    ("names", "message"), [("one three", "three does not run: install it"), ("one", "failed (no network); mend that")]
)
def test_a_python_that_cannot_be_tested_is_refused_in_one_line(folder: Path, names: str, message: str) -> None:
    (folder / "calls.fail").touch()
    done = run(folder, names)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and message in line
    assert not (folder / "rows.csv").exists()
    assert not list(folder.glob("pythons/*/finished"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--proceses=2"], "unrecognized arguments: --proceses=2"),
        (["no_such.py"], "file or directory not found: no_such.py"),
        (["-k", "no_such"], "no tests"),
    ],
)
def test_what_pytest_would_not_run_is_refused_before_anything_is_installed(
    words: list[str], message: str, folder: Path
) -> None:
    done = run(folder, "one", *words)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and message in line
    assert not (folder / "calls").exists()
