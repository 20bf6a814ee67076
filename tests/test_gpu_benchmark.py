"""The benchmark of a GPU runs to its end on the CPU, small, and what it found outlives whatever ends it."""

from __future__ import annotations

import gzip
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import step
from benchmarks.gpu.__main__ import PARTS, parse, run_part
from benchmarks.gpu.card import describe
from benchmarks.gpu.data import NAMES
from benchmarks.gpu.report import FAIL, PASS, SKIP, Line, Report
from benchmarks.gpu.runs import reached_after_first
from benchmarks.gpu.setting import Setting, setting_of
from benchmarks.gpu.trace import covered
from ffcv_prune.errors import UserError
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.training.world import choose_device

ROOT = Path(__file__).resolve().parent.parent
ABOUT = {"cpu": "a CPU", "device": "cpu", "small": True}


def read(folder: Path) -> list[Line]:
    return [Line(**line) for line in json.loads((folder / "gpu.json").read_text())["lines"]]


def words(out: Path) -> list[str]:
    return ["--small", "--device=cpu", f"--out={out}", f"--photographs={out / 'none'}", f"--cifar={out / 'none'}"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return setting_of(parse(["data", *words(tmp_path_factory.mktemp("gpu"))]), choose_device("cpu"))


def test_each_line_is_on_the_disk_when_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report(tmp_path, ABOUT)
    report.begin("step")
    report.figure("speed", 12_345.6, "images/s", expected=12_000, note="warm")
    printed = capsys.readouterr().out
    assert printed == "PASS step     speed: 12,346 images/s (expected 12,000) - warm\n"
    assert read(tmp_path) == [Line("step", PASS, "speed", 12_345.6, "images/s", 12_000, "warm")]
    report.check("finite", False)
    assert [line.verdict for line in read(tmp_path)] == [PASS, FAIL]
    page = (tmp_path / "gpu.md").read_text()
    assert page.startswith("# A run on a CPU\n\n- cpu: a CPU\n")
    assert "| PASS | step | speed | 12,346 images/s | 12,000 | warm |" in page
    assert "| FAIL | step | finite |  |  |  |" in page


@pytest.mark.parametrize(
    ("value", "judge", "verdict"), [(0.69, True, FAIL), (0.71, True, PASS), (0.1, False, ""), (9, True, PASS)]
)
def test_a_figure_fails_far_below_what_was_expected(value: float, judge: bool, verdict: str, tmp_path: Path) -> None:
    report = Report(tmp_path, ABOUT)
    report.figure("share", value, "", expected=1.0, judge=judge)
    assert report.lines[-1].verdict == verdict
    assert len(report.failed) == (verdict == FAIL)


@pytest.mark.parametrize(
    ("value", "judge", "verdict"), [(1.44, True, FAIL), (1.42, True, PASS), (9, False, ""), (0.1, True, PASS)]
)
def test_where_less_is_better_it_fails_far_above(
    value: float, judge: bool, verdict: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(tmp_path, ABOUT)
    report.figure("a save", value, "s", expected=1.0, judge=judge, lower=True)
    assert report.lines[-1].verdict == verdict
    assert "(expected at most 1)" in capsys.readouterr().out
    assert "| at most 1 |" in report.page()


def test_what_fails_is_a_line_and_the_next_part_runs(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    report = Report(setting.out / "failing", ABOUT)
    monkeypatch.setattr(importlib.import_module("benchmarks.gpu.loader"), "run", fail)
    monkeypatch.setattr(importlib.import_module("benchmarks.gpu.trace"), "run", lambda *_: report.check("ran", True))
    for part in ("loader", "trace"):
        run_part(part, setting, report)
    note = "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert read(report.path.parent) == [
        Line("loader", FAIL, "loader: ran to its end", note=note),
        Line("trace", PASS, "ran"),
    ]


def test_a_part_that_runs_again_replaces_its_lines_and_leaves_the_others(tmp_path: Path) -> None:
    for part, value in (("step", 1), ("loader", 2), ("step", 3)):
        report = Report(tmp_path, ABOUT)
        report.begin(part)
        report.figure("speed", value, "")
    assert [(line.part, line.value) for line in read(tmp_path)] == [("loader", 2), ("step", 3)]
    for key, value in (("cpu", "another"), ("device", "cuda"), ("small", False)):
        with pytest.raises(UserError, match=rf"is of another {key}; name another --out"):
            Report(tmp_path, ABOUT | {key: value})


def test_the_length_of_a_union_of_intervals() -> None:
    assert covered([(4, 6), (0, 1), (5, 7), (5, 5.5)]) == 4


def test_the_first_epoch_and_first_batches_do_not_count_for_what_was_reached() -> None:
    rows = [
        {"samples_seen": 100 * (i + 1), "seconds": {"load": load, "train": 8}} for i, load in enumerate((90, 2.5, 2.5))
    ]
    assert reached_after_first(rows, first_batch=0.5) == 10


def test_data_step_loader_and_trace_run_to_their_end(setting: Setting) -> None:
    for part in ("data", "step", "loader", "trace"):
        run_part(part, setting, Report(setting.out, ABOUT))
    lines = read(setting.out)
    assert not [line for line in lines if line.verdict == FAIL]
    found = {(line.part, line.name): line for line in lines}
    for name in NAMES:
        assert (setting.out / "data" / f"{name}.beton").exists()
        assert "noise" in found["data", name].note
        assert found["data", f"{name}: whole"].verdict == PASS
    for case in ("resnet_tiny 32 px x 32", "resnet_tiny 32 px x 16"):
        assert found["step", f"{case}, float32"].value > 0
        assert found["step", f"{case}, float32: host"].value > 0
    assert {"images/s", "GB/s"} < {line.unit for line in lines if line.part == "loader" and line.value}
    assert 0 < found["trace", "device busy while training"].value <= 100
    with gzip.open(setting.out / "trace.json.gz", "rt") as file:
        assert json.load(file)["traceEvents"]
    run_part("data", setting, Report(setting.out, ABOUT))
    assert all("already there" in line.note for line in read(setting.out) if line.part == "data" and line.value)


def test_what_the_loader_and_the_machine_are_asked(setting: Setting) -> None:
    run_part("loader", setting, Report(setting.out, ABOUT))
    names = [line.name for line in read(setting.out) if line.part == "loader"]
    cores = usable_cores()
    for count in {max(1, cores - 2), max(1, cores - 1), cores}:
        for kind in ("train, mix", "train, jpeg", "train a model, mix", "train a model, jpeg"):
            assert f"{kind}, {count} threads" in names
    scored = [name for name in names if name.startswith("score, ")]
    assert [name.split(", ")[1] for name in scored] == [
        *("mix at 32 px", "mix at 24 px", "jpeg at 24 px", "small raw file at 24 px")
    ]
    assert describe(setting.device)["numba_threading_layer"] in ("tbb", "omp", "workqueue")


def test_the_page_of_the_docs_names_every_part() -> None:
    text = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(PARTS)


def start_all(out: Path, more: Sequence[str] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "all", *words(out), *more]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_runs_to_its_end(tmp_path: Path) -> None:
    printed, _ = start_all(tmp_path, ["--minutes=60"]).communicate(timeout=550)
    lines = read(tmp_path)
    assert [line for line in lines if line.verdict == FAIL] == []
    assert list(dict.fromkeys(line.part for line in lines)) == list(PARTS)
    about: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())["about"]
    assert {"cpu", "torch", "date", "commit", "device", "small"} <= about.keys()
    assert f"0 failed; {tmp_path}/gpu.json, {tmp_path}/gpu.md" in printed
    assert all(str(line) in printed for line in lines)


@pytest.mark.slow
def test_all_is_cut_off_and_goes_on_with_less_time(tmp_path: Path) -> None:
    process = start_all(tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "gpu.json").exists() or not any(line.part == "data" for line in read(tmp_path)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    before = read(tmp_path)
    assert before[0].part == "tests"
    printed, _ = start_all(tmp_path, ["--minutes=0"]).communicate(timeout=60)
    assert [(line.part, line.verdict) for line in read(tmp_path)] == [(part, SKIP) for part in PARTS]
    assert "0 minutes have passed" in printed


def test_both_precisions_are_compiled_and_held_against_what_is_not(tmp_path: Path) -> None:
    modes = step.CUDA_MODES | step.LAST_MODES
    compiled = {(amp, how) for amp in ("bf16", "fp16") for how in ("off", "default", "reduce-overhead")}
    assert sorted(modes.values()) == sorted(compiled)
    report, case = Report(tmp_path, ABOUT), step.Case("resnet18", 224, 1024, {})
    report.begin("step")
    speeds = {mode: 100.0 * (number + 1) for number, mode in enumerate(modes)}
    step.compare(report, case, speeds, modes)
    assert {line.name.removeprefix(f"{case}: "): line.value for line in report.lines} == {
        "fp16 of bf16": 2.0,
        "fp16, compiled of fp16": 1.5,
        "fp16, CUDA graphs of fp16": 2.0,
        "bf16, compiled of bf16": 5.0,
        "bf16, CUDA graphs of bf16": 6.0,
    }
