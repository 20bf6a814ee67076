"""The frame of the speed benchmarks: rows that are kept, gone on with or refused, and the numbers of the pages."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks.harness import machine
from benchmarks.harness.machine import measured_with
from benchmarks.harness.plots import error_bars
from benchmarks.harness.rows import Results, positives, shared_settings
from benchmarks.harness.tables import aligned, groups, number, ratios, spread, table, values
from ffcv_prune.errors import UserError

COLUMNS = ("case", "repeat", "seconds")


def rows(case: str, *seconds: float) -> list[dict[str, object]]:
    return [{"case": case, "repeat": repeat, "seconds": value} for repeat, value in enumerate(seconds)]


def test_a_case_that_has_its_rows_is_left_out_and_other_settings_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = Results(tmp_path / "rows.csv", COLUMNS, "threads=1")
    assert results.left("abc", lambda row: row["case"]) == ["a", "b", "c"]
    results.append(rows("a", 1.0, 2.0))
    results.append([{"case": "b", "repeat": 0}])  # lacks a column: empty
    assert results.left("abc", lambda row: row["case"]) == ["c"]
    assert "2 of 3 cases have their rows" in capsys.readouterr().out
    made = results.read()
    assert [row["seconds"] for row in made] == ["1.0", "2.0", ""]
    assert all(row["settings"] == "threads=1" and row["cpu"] and row["date"] for row in made)
    assert f"2 interleaved repeats; ratios within a repeat. Settings: `threads=1`. Measured on {made[0]['cpu']}, " in (
        measured_with(made)
    )
    with pytest.raises(UserError, match="holds rows with `threads=1`, not `threads=2`; remove it or name another"):
        Results(results.path, COLUMNS, "threads=2").left("abc", lambda row: row["case"])
    results.path.write_text(results.path.read_text().replace(made[0]["cpu"], "Another"))
    with pytest.raises(UserError, match=r"rows of another machine \(cpu Another\); name another --csv"):
        results.left("abc", lambda row: row["case"])
    assert Results(results.path, COLUMNS, "threads=1", ("gpus",)).left("abc", lambda row: row["case"]) == ["c"]
    results.path.write_text(results.path.read_text().replace("Another", made[0]["cpu"]))
    with pytest.raises(KeyError, match="other"):
        results.append([{"other": 1}])
    assert results.read() == made


def test_rows_of_another_gpu_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def on(*gpus: str) -> None:
        made = dict.fromkeys(machine.MACHINE, "x") | {"gpus": list(gpus)}
        monkeypatch.setattr(machine, "provenance", lambda: made)

    results = Results(tmp_path / "rows.csv", COLUMNS, "")
    on("A100", "A100")
    results.append(rows("a", 1.0))
    assert results.left("ab", lambda row: row["case"]) == ["b"]
    for others in (["H200"], ["A100"], []):
        on(*others)
        with pytest.raises(UserError, match=r"rows of another machine \(gpus A100, A100\); name another --csv"):
            results.left("ab", lambda row: row["case"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*measure first"),
        (b"", "has no rows"),
        (b"case,repeat,seconds\n", "has no rows"),
        (b"method,accuracy\nucb,0.9\n", 'not of this benchmark: no column "case"'),
        (b"\xff\xfe,a\n1,2\n", "cannot read"),
    ],
)
def test_files_without_rows_of_the_benchmark_are_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        Results(path, COLUMNS, "").read()
    assert "\n" not in str(refused.value) and "rows.csv" in str(refused.value)


def test_a_row_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    results = Results(tmp_path / "rows.csv", COLUMNS, "")
    results.append(rows("a", 1.0))
    with results.path.open("a") as file:
        file.write("b,0")
    with pytest.raises(UserError, match="cut short"):
        results.read()


def test_the_page_is_written_as_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = Results(tmp_path / "rows.csv", COLUMNS, "")
    results.publish("Title", "| a |", tmp_path / "rows.svg")
    assert results.path.with_suffix(".md").read_text() == "# Title\n\n| a |\n\n![](rows.svg)\n"
    assert capsys.readouterr().out == f"\n# Title\n\n| a |\n\n![](rows.svg)\n\n{tmp_path / 'rows.md'}\n"


def test_ratios_are_of_the_same_repeat() -> None:
    ours = [{"repeat": "0", "seconds": "3"}, {"repeat": "1", "seconds": "2"}]
    theirs = [{"repeat": "1", "seconds": "8"}, {"repeat": "2", "seconds": "1"}, {"repeat": "0", "seconds": "6"}]
    assert ratios(theirs, ours, lambda row: float(row["seconds"])) == [2.0, 4.0]
    assert ratios(ours, theirs, "seconds") == [0.25, 0.5]
    assert values([*ours, {"seconds": ""}], "seconds", 1000) == [3000, 2000]
    assert [*groups([*ours, *theirs], "repeat")] == [("0",), ("1",), ("2",)]


def test_numbers() -> None:
    assert [number(value) for value in (0, 0.01234, 1.5, 99.94, 99.96, 1234.5)] == [
        *("0", "0.0123", "1.5", "99.9", "100", "1,234")
    ]
    assert spread([3.0, 1.0, 2.0]) == "2 (1–3)"
    assert spread([1234.5]) == "1,234"
    assert spread([]) == ""
    assert error_bars([[1.0, 2.0, 4.0], [5.0]]) == ([2.0, 5.0], [[1.0, 0.0], [2.0, 0.0]])


def test_tables() -> None:
    lines = [{"a": "1", "long": "2"}, {"a": "three", "long": ""}]
    assert table(lines).splitlines() == ["| a | long |", "| --- | --- |", "| 1 | 2 |", "| three |  |"]
    assert [len(line) for line in table(aligned(lines)).splitlines()[::2]] == [16, 16]
    assert table([]) == ""


def test_settings() -> None:
    args = argparse.Namespace(a=1, b=2, c="x", overrides=[])
    assert shared_settings(args, ("a", "c")) == "a=1 c=x"
    args.overrides = ["--train.lr=1"]
    assert shared_settings(args, ("a", "overrides")) == "a=1 --train.lr=1"
    assert shared_settings(args, ("a", "b", "overrides"), {"b": 2}) == "a=1 --train.lr=1"  # as of rows before b
    assert shared_settings(args, ("a", "b"), {"b": 3}) == "a=1 b=2 --train.lr=1"


@pytest.mark.parametrize("name", ["agreement", "long_run", "scoring", "speedup", "top_k"])
def test_every_command_is_one(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"benchmarks.speed.{name}", run_name="__main__", alter_sys=True)
    told = capsys.readouterr().out
    assert stop.value.code == 0 and f"usage: python -m benchmarks.speed.{name}" in told and "--redraw" in told
    monkeypatch.setattr(sys, "argv", [name, "--redrawn"])
    if name != "speedup":  # what it does not know is for the training config
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(f"benchmarks.speed.{name}", run_name="__main__", alter_sys=True)
        assert stop.value.code == 2
        assert capsys.readouterr().err == "error: unrecognized arguments: --redrawn; see --help\n"


@pytest.mark.parametrize("text", ["a", "128,", "0", "128,-1"])
def test_a_list_of_numbers_that_is_none_is_refused(text: str) -> None:
    assert positives("128,512") == "128,512"
    with pytest.raises(argparse.ArgumentTypeError, match="not a whole number from 1"):
        positives(text)
