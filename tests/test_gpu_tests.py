"""The part `tests` of the benchmark of a GPU: what it runs, what it says of it, and what it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import tests as part
from benchmarks.gpu.report import FAIL, PASS, SKIP, Report
from tests.test_gpu_benchmark import ABOUT, ROOT

MARKED = re.compile(r"mark\.cuda\b|\bBOTH\b")
ABSENT = ("hypothesis", "pytest_timeout", "xdist", "scipy")  # from a machine that is lent for its GPU
BEGUN = "tests/test_a.py::test_x[a b] PASSED [ 50%]\ntests/test_a.py::test_y[the guard] "


def lines(report: Report) -> list[tuple[str, str, str]]:
    return [(line.verdict, line.name, line.note) for line in report.lines]


def test_it_reads_every_file_with_tests_for_a_gpu_and_no_other() -> None:
    own = Path(__file__).name
    found = [path for path in (ROOT / "tests").glob("test_*.py") if MARKED.search(path.read_text(encoding="utf-8"))]
    assert {f"tests/{path.name}" for path in found if path.name != own} == set(part.FILES)


def test_they_are_collected_where_plugins_and_more_are_absent(tmp_path: Path) -> None:
    absent = f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
    (tmp_path / "sitecustomize.py").write_text(absent)
    without = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *part.FILES], cwd=ROOT, env=os.environ | without, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"{name}::" in done.stdout for name in part.FILES)


@pytest.mark.parametrize(
    ("code", "summary", "verdict"),
    [
        (0, "==== 60 passed, 5 skipped in 50.1s ====", PASS),
        (0, "==== 65 skipped, 9 deselected in 1.0s ====", SKIP),
        (5, "==== 9 deselected in 1.0s ====", FAIL),
        (4, "ERROR: file not found", FAIL),
    ],
)
def test_tests_that_were_all_skipped_do_not_pass(code: int, summary: str, verdict: str, tmp_path: Path) -> None:
    report = Report(tmp_path, ABOUT)
    part.judge(report, code, f"more\n{summary}\n")
    assert lines(report) == [(verdict, "pytest -m cuda", summary.strip("= "))]


def test_a_test_that_fails_has_a_line(tmp_path: Path) -> None:
    report = Report(tmp_path, ABOUT)
    part.judge(report, 1, BEGUN + "FAILED [100%]\n== FAILURES ==\n=== 1 failed, 1 passed in 2s ===\n")
    assert lines(report) == [
        (FAIL, "tests/test_a.py::test_y[the guard]", ""),
        (FAIL, "pytest -m cuda", "1 failed, 1 passed in 2s"),
    ]


def test_one_that_hangs_is_named(tmp_path: Path) -> None:
    report = Report(tmp_path, ABOUT)
    part.judge(report, None, BEGUN)
    assert lines(report) == [(FAIL, "pytest -m cuda", "ended after 270 s in tests/test_a.py::test_y[the guard]")]
    assert part.running("collecting ...\n") == "" == part.running(BEGUN + "PASSED [100%]\n")


def test_what_is_printed_is_passed_on_at_once_and_a_hanging_command_ends(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A real test that hangs, beside one that does not, and the process that it has begun."""
    (tmp_path / "test_hang.py").write_text(
        "import subprocess, time\n"
        "def test_passes(): pass\n"
        f"def test_hangs(): subprocess.Popen(['sleep', '50']); open({str(tmp_path / 'begun')!r}, 'w'); time.sleep(50)\n"
    )
    options = ["-v", "-c", os.devnull, "-p", "no:cacheprovider", f"--rootdir={tmp_path}"]
    start = time.monotonic()
    code, text = part.shown([sys.executable, "-m", "pytest", *options, str(tmp_path / "test_hang.py")], 6)
    assert code is None and time.monotonic() - start < 20
    assert (tmp_path / "begun").exists()
    named = re.sub(r"^\S*/test_hang\.py", "tests/test_hang.py", text, flags=re.MULTILINE)
    assert part.running(named) == "tests/test_hang.py::test_hangs"
    assert "test_passes PASSED" in capfd.readouterr().out
    assert part.shown([sys.executable, "-c", "print('ends')"], 20) == (0, "ends\n")
