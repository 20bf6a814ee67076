"""The report: its numbers are the log's, its pictures are pictures, and it reads runs that were cut short."""

from __future__ import annotations

import base64
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_prune.analysis.counts import class_fractions, selection_counts, selection_files
from ffcv_prune.analysis.report import read_run, write_report
from ffcv_prune.errors import UserError
from ffcv_prune.training.run_folder import RunFolder

PHASES = ("load", "score", "select", "swap", "train", "eval", "save", "total")


def log_row(epoch: int, accuracy: float | None, seconds: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "keep": 0.3,
        "pruning_rate": 0.7,
        "samples_seen": 1234 * (epoch + 1),
        "test_accuracy": accuracy,
        "seconds": dict.fromkeys(PHASES, seconds),
    }


def make_run(out: Path, name: str, rows: list[dict[str, Any]], selections: dict[int, list[int]]) -> Path:
    folder = RunFolder.create(out, name)
    folder.write_json("machine.json", {"cpu": "A & B", "gpus": [], "date": "2026-01-01T00:00:00+00:00"})
    folder.write_json("dataset.json", {"train_samples": 6})
    for row in rows:
        folder.log(row)
    for epoch, ids in selections.items():
        folder.save_selection(epoch, np.array(ids, dtype=np.int64))
    folder.close()
    return folder.path


class Page(HTMLParser):
    """Cells of the table and sources of the images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.images: list[str] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_cell = tag == "td"
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells.append(data)
        self._in_cell = False


def test_the_report_holds_the_numbers_of_the_log_and_its_own_pictures(tmp_path: Path) -> None:
    pruned = make_run(
        tmp_path, "ucb", [log_row(0, 0.25, 1.5), log_row(1, 0.8125, 2.0)], {0: [0, 1], 10: [0, 2], 2: [0, 5]}
    )
    full = make_run(tmp_path, "full", [log_row(0, None, 4.0)], {})
    text = write_report([pruned, full], tmp_path / "r.html", title="<two>", remarks=["A < B."]).read_text()
    page = Page(text)
    assert page.cells[:6] == ["ucb", "2", "0.30", "0.70", "2,468", "0.8125"]
    assert page.cells[6:14] == ["3.5"] * 8
    assert page.cells[14:20] == ["full", "1", "0.30", "0.70", "1,234", "not tested"]
    assert len(page.images) == 3
    for source in page.images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert "&lt;two&gt;" in text
    assert "A &lt; B." in text
    assert "A &amp; B" in text
    assert "3 selections; 33.3% of the samples in none, 16.7% in all of them" in text
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing is loaded from elsewhere


def test_runs_without_selections_and_runs_cut_short_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "full", [log_row(0, 0.5, 1.0)], {})
    assert read_run(run).counts is None
    assert "No selections" in write_report([run], tmp_path / "r.html").read_text()


@pytest.mark.parametrize("damage", ["missing", "empty", "torn"])
def test_what_is_not_a_run_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path, "run", [], {})
    if damage == "missing":
        (run / "log.jsonl").unlink()
    if damage == "torn":
        (run / "log.jsonl").write_text('{"epoch": 0')
    with pytest.raises(UserError, match=re.escape(str(run))):
        write_report([run], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_the_command_writes_the_report_and_fails_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "run", [log_row(0, 0.5, 1.0)], {0: [1]})
    out = tmp_path / "new" / "r.html"
    monkeypatch.setattr(sys, "argv", ["analysis", str(run), "--out", str(out)])
    runpy.run_module("ffcv_prune.analysis", run_name="__main__")
    assert out.exists()
    monkeypatch.setattr(sys, "argv", ["analysis", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("ffcv_prune.analysis", run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_selections_are_counted_in_the_order_of_their_epochs(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", [], {12000: [3], 0: [0, 3], 40: [3, 5]})
    files = selection_files(run)
    assert [file.name for file in files] == ["epoch_0000.npy", "epoch_0040.npy", "epoch_12000.npy"]
    assert selection_counts(files, 6).tolist() == [1, 0, 0, 3, 0, 1]


def test_class_fractions_count_what_is_kept_of_each_class() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    fractions = class_fractions(np.array([0, 4, 5]), labels, np.array([4, 2, 0]))
    np.testing.assert_array_equal(fractions, [0.25, 1.0, np.nan])
