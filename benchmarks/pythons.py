"""The fast test suite under each Python: an environment for each, as pip makes it, and what pytest says in it.

    python -m benchmarks.pythons                                    python3.10 to python3.13, gigabytes and an hour
    python -m benchmarks.pythons --pythons=/opt/python3.14/bin/python3 --csv=new.csv      one of your own
    python -m benchmarks.pythons --csv=glance.csv tests/test_config.py -k milestones      these tests alone

A Python that has its row is left out, so a run that was stopped goes on with the next one. The environments stay beside
the CSV, in the folder pythons.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks.harness.machine import ROOT
from benchmarks.harness.rows import Results, benchmark
from benchmarks.harness.tables import Row, table
from ffcv_prune.errors import UserError, run_command

TITLE = "The tests under each Python"
COLUMNS = ("interpreter", "version", "packages", "passed", "failed", "skipped", "minutes")
SETTINGS = ("overrides",)
PACKAGES = ("torch", "torchvision", "ffcv", "numba", "numpy")
VERSIONS = f"""
import platform
from importlib.metadata import version
print(platform.python_version())
print(", ".join(f"{{name}} {{version(name)}}" for name in {PACKAGES}))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pythons", default="python3.10,python3.11,python3.12,python3.13", help="interpreters: names or paths"
    )
    parser.add_argument("--processes", type=int, default=2, help="of pytest, as ./run test has them")


def run(args: argparse.Namespace, results: Results) -> None:
    """An environment, its tests and its row, for each interpreter that has none."""
    check_words(args.overrides)
    names = args.pythons.split(",")
    for name in names:  # before an hour of the others
        if subprocess.run(["bash", "-c", 'command -v "$0" && "$0" -c ""', name], capture_output=True).returncode:
            raise UserError(f"{name} does not run: install it, or leave it out of --pythons")
    for name in results.left(names, lambda row: row["interpreter"]):
        python = environment(name, results.path.parent / "pythons" / name.replace("/", "_"))
        print(f"{name}: the tests", flush=True)
        found = tested(python, args.processes, args.overrides)
        version, packages = call([python, "-c", VERSIONS]).splitlines()
        results.append([{"interpreter": name, "version": version, "packages": packages} | found])


def check_words(words: Sequence[str]) -> None:
    """UserError for words, a misspelt option of this command among them, with which pytest would run no tests."""
    if not words:
        return
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = re.search("error: (?!usage)(.*)", done.stderr, re.IGNORECASE)
        reason = said[1] if said else done.stdout.strip().splitlines()[-1]
        raise UserError(f"pytest runs nothing with {shlex.join(words)} ({reason}); see --help")


def environment(name: str, folder: Path) -> Path:
    """The python of an environment with everything that ./run test has; one that was not finished is made anew."""
    python, finished = folder / "bin" / "python", folder / "finished"
    if not finished.exists():
        print(f"{name}: pip", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        call([name, "-m", "venv", folder])
        call([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--editable", f"{ROOT}[test]"])
        finished.touch()
    return python


def tested(python: Path, processes: int, words: Sequence[str]) -> dict[str, Any]:
    """What pytest counts, and how long it took. RuntimeError where it did not come to its end."""
    report = python.parents[1] / "junit.xml"
    report.unlink(missing_ok=True)
    command = [python, "-m", "pytest", "-q", "-n", processes, "--dist=loadfile", f"--junitxml={report}", *words]
    made = os.environ | {"OMP_NUM_THREADS": "1"}
    made.pop("PYTHONPATH", None)
    code = subprocess.run([str(word) for word in command], cwd=ROOT, env=made).returncode
    if code not in (0, 1):  # 1: some have failed, which the row says
        raise RuntimeError(f"pytest under {python} exited with {code}")
    return counted(report)


def counted(report: Path) -> dict[str, Any]:
    """The numbers of a JUnit file of pytest's."""
    (suite,) = ElementTree.parse(report).getroot()
    total, *bad, skipped = (int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped"))
    passed = total - sum(bad) - skipped
    return {"passed": passed, "failed": sum(bad), "skipped": skipped, "minutes": float(suite.attrib["time"]) / 60}


def call(words: Sequence[str | Path]) -> str:
    """What a command prints. UserError with its last line where it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise UserError(f"{' '.join(map(str, words[:4]))} … failed ({last}); mend that, or leave it out of --pythons")
    return done.stdout


def summary(rows: Sequence[Row]) -> str:
    """One line a Python, and on what machine."""
    lines = [
        {
            "Python": row["version"],
            "with": row["packages"],
            "passed": row["passed"],
            "failed": row["failed"],
            "skipped": row["skipped"],
            "minutes": f"{float(row['minutes']):.1f}",
        }
        for row in rows
    ]
    which = rows[0]["settings"] or "all but the slow ones"
    machines = " and ".join(dict.fromkeys(f"{row['cpu']}, {row['cores']} cores" for row in rows))
    days = " and ".join(sorted({row["date"][:10] for row in rows}))
    commits = " and ".join(dict.fromkeys(row["commit"] for row in rows if row["commit"]))
    return f"{table(lines)}\n\nTests: {which}. {machines}; {days}{f', commit {commits}' if commits else ''}."


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
