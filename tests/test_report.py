"""The report: its numbers are the log's, its pictures are pictures, and it reads runs that were cut short."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import runpy
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_prune.analysis import report
from ffcv_prune.analysis.counts import class_fractions, selection_counts, selection_files
from ffcv_prune.analysis.distribution import describe_groups
from ffcv_prune.analysis.mixture import GROUPS, RHAT_LIMIT, Mixture
from ffcv_prune.analysis.report import write_groups, write_report
from ffcv_prune.analysis.runs import Run, _result, _static_seconds, differing_keys, read_run, repetitions
from ffcv_prune.analysis.verdicts import verdicts
from ffcv_prune.data.images import read_images
from ffcv_prune.errors import UserError
from ffcv_prune.training.run_folder import RunFolder
from tests.betons import Beton

PHASES = ("load", "score", "select", "swap", "train", "eval", "save", "total")


def log_row(epoch: int, accuracy: float | None, seconds: float, phase: str = "method") -> dict[str, Any]:
    return {
        "epoch": epoch,
        "phase": phase,
        "keep": 0.3,
        "pruning_rate": 0.7,
        "samples_seen": 1234 * (epoch + 1),
        "test_accuracy": accuracy,
        "seconds": dict.fromkeys(PHASES, seconds),
        "class_fraction": {"cat": 0.25, "dog": None},
        "class_accuracy": {} if accuracy is None else {"cat": accuracy, "dog": None},
        "train_loss": 1.0,
        "lr": 0.1,
    }


def make_run(
    out: Path,
    name: str,
    rows: list[dict[str, Any]],
    selections: dict[int, list[int]],
    method: str = "ucb",
    data: str = "gone.beton",
    seed: int = 0,
    scores: Path = Path("gone.npy"),
) -> Path:
    folder = RunFolder.create(out, name)
    prune = f"{{method: {method}{f', scores: {scores}' if method == 'static' else ''}}}"
    folder.write_config(f"run: {{seed: {seed}}}\ndata: {{train: {data}}}\nprune: {prune}\n")
    folder.write_json("machine.json", {"cpu": "A & B", "gpus": [], "date": "2026-01-01T00:00:00+00:00"})
    folder.write_json("dataset.json", {"train_samples": 6, "test_samples": 10_000, "classes": ["cat", "dog"]})
    for row in rows:
        folder.log(row)
    for epoch, ids in selections.items():
        folder.save_selection(epoch, np.array(ids, dtype=np.int64))
    folder.close()
    return folder.path


class Page(HTMLParser):
    """Cells of the table of runs, which is the first, and sources of the images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.images: list[str] = []
        self._in_cell = False
        self._tables = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tables += tag == "table"
        self._in_cell = tag == "td" and self._tables == 1
        if tag == "img":
            self.images.append(dict(attrs)["src"] or "")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.cells.append(data)
        self._in_cell = False


def npy(values: list[float]) -> bytes:
    content = io.BytesIO()
    np.save(content, np.array(values))
    return content.getvalue()


def test_the_report_holds_the_numbers_of_the_log_and_its_own_pictures(tmp_path: Path) -> None:
    rows = [log_row(epoch, accuracy, 1.0) for epoch, accuracy in enumerate([0.25, None, None, 0.8125])]
    rows[3]["phase"] = "random"
    full_row = log_row(0, None, 4.0, "full") | {"keep": 1.0}
    for row in (*rows, full_row):
        row["seconds"]["eval"] = 0.25
    pruned = make_run(tmp_path, "ucb", rows, {0: [0, 1], 2: [0, 2], 1: [0, 5], 3: [3, 4]})
    full = make_run(tmp_path, "full", [full_row], {}, "full")
    text = write_report([pruned, full], tmp_path / "r.html", title="<two>", remarks=["A < B."]).read_text()
    page = Page(text)
    assert page.cells[::5][0] == "full" and page.cells[2:6] == [
        "0.00 %",
        "1,234",
        "not tested",
        "3.8",
    ]  # the honest row first
    assert page.cells[6:8] == ["ucb", "4"] and page.cells[8:] == ["70.00 %", "4,936", "81.25 %", "3.0"]
    assert len(page.images) == 7  # against rate and time, accuracy by class, curves, phases, selections, classes
    assert text.index("What pruning cost or saved") < text.index("<table>")
    differing = re.findall(r"<tr><td>(prune.method)</td><td>(.*?)</td><td>(.*?)</td></tr>", text)
    assert differing == [("prune.method", "full", "ucb")] and "<td>data.train" not in text
    assert "no example images: gone.beton does not exist" in text
    for source in page.images:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    assert "&lt;two&gt;" in text
    assert "A &lt; B." in text
    assert "A &amp; B" in text
    assert "3 selections; 33.33 % of the samples in none, 16.67 % in all of them" in text
    assert not re.search(r'(src|href)="(?!data:)', text)  # nothing is loaded from elsewhere


def test_runs_without_selections_and_runs_cut_short_are_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "full", [log_row(0, 0.5, 1.0, "full")], {}, "full")
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
    for _ in range(2):  # a report of ours may be replaced
        runpy.run_module("ffcv_prune.analysis", run_name="__main__")
        assert capsys.readouterr().out == f"report: {out}\n"
    assert out.exists()
    monkeypatch.setattr(sys, "argv", ["analysis", str(tmp_path / "nothing")])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("ffcv_prune.analysis", run_name="__main__")
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("content", ["<html>thesis</html>", "", "run,sample\n"])
@pytest.mark.parametrize("name", ["r.html", "r_groups.csv"])
def test_a_file_of_somebody_else_s_is_not_replaced(tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path, "run", [log_row(0, 0.5, 1.0)], {0: [1]})
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=rf"{name} was not written by this command: .*--out"):
        write_report([run], tmp_path / "r.html", fit=True)
    assert (tmp_path / name).read_text() == content
    assert len([*tmp_path.glob("r*.*")]) == 1  # nothing else was written


def test_selections_are_counted_in_the_order_of_their_epochs(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", [], {12000: [3], 0: [0, 3], 40: [3, 5]})
    files = selection_files(run)
    assert [file.name for file in files] == ["epoch_0000.npy", "epoch_0040.npy", "epoch_12000.npy"]
    assert selection_counts(files, 6).tolist() == [1, 0, 0, 3, 0, 1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x", ".*"),
        (npy([0, 9]), "id 9 is outside the data set's positions 0 … 5"),
        (npy([0.5]), "a selection holds int64 dataset positions, not float64"),
        (None, "Is a directory"),
    ],
)
def test_a_damaged_selection_is_one_line(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "epoch_0001.npy"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read the selection {path}: {reason}.*; remove the file") as caught:
        selection_counts([path], 6)
    assert "\n" not in str(caught.value)


def test_class_fractions_count_what_is_kept_of_each_class() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1])
    fractions = class_fractions(np.array([0, 4, 5]), labels, np.array([4, 2, 0]))
    np.testing.assert_array_equal(fractions, [0.25, 1.0, np.nan])


def test_always_and_never_samples_are_shown_with_their_classes(
    tmp_path: Path, beton: Beton, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(beton.path)
    run = make_run(tmp_path, "run", [log_row(0, 0.5, 1.0), log_row(1, 0.5, 1.0)], {0: [1, 2], 1: [2, 5]}, data=data)
    dataset = {"train_samples": len(beton), "test_samples": 10, "classes": [f"class {c}" for c in range(10)]}
    (run / "dataset.json").write_text(json.dumps(dataset))
    text = write_report([run], tmp_path / "r.html").read_text()
    page = Page(text)
    assert len(page.images) == 7  # one picture of examples more, none against the rate of a single run
    assert "Keys that differ" not in text
    always, never = re.findall(r"<details><summary>(.*?)</summary>\s*<ul>(.*?)</ul>", text)
    assert always == (
        "run: selected most often, 2 of 2 times: 1 samples, of which these are shown, by id",
        "<li>2</li>",
    )
    assert f"{len(beton) - 3} samples" in never[0] and never[1].startswith("<li>0</li>")
    monkeypatch.setattr(report, "read_sources", lambda path, n: [f"cat/{i}.png" for i in range(n)])
    assert "<li>2 cat/2.png</li>" in write_report([run], tmp_path / "r.html").read_text()
    chance = make_run(
        tmp_path, "chance", [log_row(e, 0.5, 1.0) for e in (0, 1)], {0: [1, 2], 1: [3, 4]}, "random", data
    )
    (chance / "dataset.json").write_text(json.dumps(dataset))
    assert len(Page(write_report([chance], tmp_path / "r.html").read_text()).images) == 6


@pytest.mark.parametrize("which", ["beton", "jpg_beton"])
def test_single_images_come_back_as_they_were_written(which: str, request: pytest.FixtureRequest) -> None:
    data: Beton = request.getfixturevalue(which)
    ids = [7, 0, len(data) - 1]
    for i, image in zip(ids, read_images(data.path, ids), strict=True):
        if which == "beton":
            np.testing.assert_array_equal(image, data.images[i])
        else:
            assert np.abs(image.astype(int).mean((0, 1)) - data.images[i].mean((0, 1))).max() < 3
    for wrong in (-1, len(data)):
        with pytest.raises(UserError, match="is not among them"):
            read_images(data.path, [wrong])


def full_and_pruned(out: Path, full: list[float], pruned: list[float], steps: int = 10) -> list[str]:
    """Verdicts on runs with these accuracies, one a seed: full data in 1 epoch of 2 s, pruned in 3 of 1 s."""
    folders = []
    for seed, accuracy in enumerate(full):
        row = log_row(0, accuracy, 2.0, "full") | {"samples_seen": 1234 * steps}
        folders.append(make_run(out, f"full_{seed}", [row], {}, "full", seed=seed))
    for seed, accuracy in enumerate(pruned):
        rows = [log_row(e, accuracy, 1.0) | {"samples_seen": 1234 * 10 * (e + 1) // 3} for e in range(3)]
        folders.append(make_run(out, f"ucb_{seed}", rows, {0: [0]}, seed=seed))
    return verdicts([read_run(folder) for folder in folders])


@pytest.mark.parametrize(
    ("full", "pruned", "words"),
    [
        ([0.80], [0.75], "Pruning lost 5.00 points and took 0.0 s less time"),
        ([0.80], [0.85], "Pruning won 5.00 points"),
        ([0.80], [0.75], "-5.00 ± 1.16 points, by the size of the test set alone (one seed: others may"),
        ([0.80], [0.803], "Pruning bought no accuracy that the test set could show"),
        ([0.80, 0.801], [0.82], "one seed: others may differ by more"),
        ([0.80, 0.90], [0.92, 0.82], "Pruning bought no accuracy beyond noise"),  # ten points apart by chance alone
        ([0.80, 0.90], [0.82, 0.921], "Pruning won 2.05 points"),  # seed by seed they are not
        ([0.80, 0.90], [0.82, 0.921], "+2.05 ± 0.64 points, over the seeds: the 95 % interval)"),
        ([0.80, 0.801], [0.802, 0.804], "Pruning bought no accuracy beyond noise"),  # at 5 standard errors, of two
    ],
)
def test_the_verdict_on_a_run_follows_from_its_numbers(
    tmp_path: Path, full: list[float], pruned: list[float], words: str
) -> None:
    (sentence,) = full_and_pruned(tmp_path, full, pruned)
    assert words in sentence
    assert sentence.startswith(f"ucb_0 reached {100 * np.mean(pruned):.2f} %")
    assert f"full_0, reached {100 * np.mean(full):.2f} %" in sentence
    assert ("one run" in sentence) == (1 in (len(full), len(pruned)))
    assert not ("one run" in sentence and "beyond noise" in sentence)


def run_of(name: str, accuracy: float, method: str = "full", seed: int = 0, epochs: int = 3, **more: Any) -> Run:
    """A run of three epochs in its log; `more`: other settings, and "dataset" facts."""
    phase = more.pop("phase", "full" if method == "full" else "method")
    rows = [log_row(epoch, accuracy, 1.0, phase) for epoch in range(3)]
    dataset = {"train_samples": 6, "test_samples": 10_000, "classes": ["cat", "dog"]} | more.pop("dataset", {})
    settings = {"data.train": "a.beton", "data.test": "b.beton", "model.name": "resnet18"}
    settings |= {"prune.method": method, "run.seed": str(seed), "train.epochs": str(epochs), **more}
    counts = None if method == "full" else np.ones(dataset["train_samples"], np.int64)
    return Run(name, settings, rows, dataset, counts, 3, {"cpu": "A", "date": "2026-01-01"})


def test_an_interrupted_run_of_full_data_is_no_baseline() -> None:
    """Its learning rate is still high: shorter training means a whole schedule."""
    ucb = run_of("ucb", 0.85, "ucb")
    (sentence,) = verdicts([run_of("full", 0.70, epochs=9), ucb])
    assert "no finished run of full data" in sentence and "won" not in sentence
    (sentence,) = verdicts([run_of("cut", 0.70, "ema", epochs=9, phase="full"), run_of("full", 0.80, epochs=9), ucb])[
        1:
    ]
    assert "no finished run of full data" in sentence  # nor is a method that was cut in its warm-up on all data
    (sentence,) = verdicts([run_of("full", 0.80), run_of("ucb", 0.70, "ucb", epochs=9)])
    assert "reached 70.00 % in 0.0 s (one run), stopped after 3 of 9 epochs. Full data at" in sentence


def test_the_better_of_two_baselines_judges_in_any_order() -> None:
    low, high, ucb = run_of("low", 0.8), run_of("high", 0.9, **{"train.lr": "1"}), run_of("ucb", 0.85, "ucb")
    for runs in ([low, high, ucb], [high, ucb, low]):
        (sentence,) = verdicts(runs)
        assert "high, reached 90.00 %" in sentence and "lost 5.00 points" in sentence


@pytest.mark.parametrize(
    "other",
    [
        {"model.name": "resnet50"},
        {"data.test": "c.beton"},
        {"data.train": "c.beton"},
        {"dataset": {"train_samples": 9}},
    ],
)
def test_a_run_of_another_model_or_other_data_is_no_baseline(other: dict[str, Any]) -> None:
    (sentence,) = verdicts([run_of("full", 0.7, **other), run_of("ucb", 0.85, "ucb")])
    assert sentence.endswith("no finished run of full data, of the same files and model, to judge it by.")


def test_runs_of_one_seed_are_judged_as_one() -> None:
    full = [run_of(f"full_{i}", 0.70 + 0.01 * i) for i in range(2)]
    ucb = [run_of(f"ucb_{i}", 0.85 + 0.01 * i, "ucb") for i in range(2)]
    (sentence,) = verdicts(full + ucb)
    assert "mean of 2 runs" in sentence and "won 15.00 points" in sentence
    assert "by the size of the test set alone (one seed: others may differ by more)" in sentence


def test_a_data_set_that_was_written_again_makes_other_runs() -> None:
    runs = [run_of("a", 0.8, "ucb"), run_of("b", 0.8, "ucb", seed=1, dataset={"train_samples": 4})]
    assert [len(group) for group in repetitions(runs)] == [1, 1]


def test_metrics_of_a_task_without_accuracy_are_shown(tmp_path: Path) -> None:
    rows = [log_row(0, None, 1.0) | {"test_rmse": 0.512345, "test_mae": 0.25}]
    text = write_report([make_run(tmp_path, "a", rows, {0: [0]})], tmp_path / "r.html").read_text()
    assert "none; rmse 0.5123, mae 0.25" in Page(text).cells
    assert "not tested" not in text and "wall-clock seconds and samples seen" not in text


def test_verdicts_and_their_intervals_are_corrected_for_their_number(tmp_path: Path) -> None:
    full = {seed: 0.80 + 0.01 * seed for seed in range(4)}
    folders = [
        make_run(tmp_path, f"full_{seed}", [log_row(0, accuracy, 1.0, "full")], {}, "full", seed=seed)
        for seed, accuracy in full.items()
    ]
    gains = {"ucb": (0.010, 0.014, 0.022, 0.036), "ema": (-0.02, 0.01, 0.0, 0.01)}  # p of 0.037 and 1
    for method, own in gains.items():
        for seed, gain in enumerate(own):
            row = log_row(0, full[seed] + gain, 1.0)
            folders.append(make_run(tmp_path, f"{method}_{seed}", [row], {0: [0]}, method, seed=seed))
    runs = [read_run(folder) for folder in folders]
    (alone,) = verdicts([run for run in runs if run.method != "ema"])
    beside, _ = verdicts(runs)
    assert "won 2.05 points" in alone and "+2.05 ± 1.83 points, over the seeds: the 95 % interval)" in alone
    assert "bought no accuracy beyond noise" in beside
    assert "+2.05 ± 2.40 points, over the seeds: the 97.5 % interval, corrected for 2 comparisons)" in beside


@pytest.mark.parametrize("source", ["result.csv", "the score file", "nowhere"])
def test_static_scores_are_charged_beside_the_training(tmp_path: Path, source: str) -> None:
    """Training took 2.0 s and the scores 100 s: by the finished run, or of one cut short by its score file."""
    scores = tmp_path / "scores.npy"
    full = make_run(tmp_path, "full", [log_row(0, 0.8, 2.0, "full")], {}, "full")
    static = make_run(tmp_path, "static", [log_row(0, 0.7, 1.0)], {0: [0]}, "static", scores=scores)
    full_log = json.loads((full / "log.jsonl").read_text())
    full_log["seconds"] |= {"total": 4.0, "eval": 1.0}
    (full / "log.jsonl").write_text(json.dumps(full_log))
    static_log = json.loads((static / "log.jsonl").read_text())
    static_log["seconds"] |= {"total": 2.5, "eval": 0.5}
    (static / "log.jsonl").write_text(json.dumps(static_log))
    if source == "result.csv":
        (static / "result.csv").write_text("method,static_seconds\nel2n,100.0\n")
    if source == "the score file":
        scores.with_suffix(".json").write_text('{"seconds": {"total": 100.0}}')
    text = write_report([full, static], tmp_path / "r.html").read_text()
    cells = Page(text).cells
    if source == "nowhere":
        assert cells[-2:] == ["unknown", "unknown"]
        assert "took 1.0 s less time; what its static scores cost is not on record" in text
        return
    assert cells[-2:] == ["100.0", "102.0"]  # the time of the verdict
    assert cells[len(cells) // 2 - 2 : len(cells) // 2] == ["0.0", "3.0"]
    assert "static reached 70.00 % in 2.0 s, 102.0 s with its static scores (one run)" in text
    assert "took 1.0 s less time, 99.0 s more with its static scores" in text


def test_without_a_baseline_at_the_same_samples_seen_nothing_is_claimed(tmp_path: Path) -> None:
    (sentence,) = full_and_pruned(tmp_path, [0.8], [0.9], steps=30)
    told = (
        "no finished run of full data at the same samples seen to judge it by: the nearest, full_0, saw 200.00 % more"
    )
    assert told in sentence
    assert "won" not in sentence


def test_a_baseline_that_lost_a_little_to_drop_last_is_compared_and_the_gap_told(tmp_path: Path) -> None:
    (sentence,) = full_and_pruned(tmp_path, [0.8], [0.9], steps=9)
    assert "Full data at 10.00 % fewer samples seen, full_0, reached 80.00 %" in sentence
    assert "Pruning won 10.00 points" in sentence


def test_the_pruning_rate_is_that_of_the_console_whatever_drop_last_left_out(tmp_path: Path) -> None:
    rows = [log_row(e, 0.5, 1.0) | {"samples_seen": 1 * (e + 1), "keep": keep} for e, keep in enumerate([0.3, 1.0])]
    assert read_run(make_run(tmp_path, "a", rows, {0: [0]})).kept == pytest.approx(0.65)


def test_keys_that_only_one_method_has_are_no_difference(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path, name, [log_row(0, 0.5, 1.0)], {0: [0]})) for name in "abc"]
    for run, keys in zip(runs, ({"keep": "0.3", "c": "1"}, {"keep": "0.5", "c": "1"}, {}), strict=True):
        run.settings.update({f"prune.{name}": value for name, value in keys.items()})
    assert differing_keys([[run] for run in runs]) == [("prune.keep", ["0.3", "0.5", ""])]


def test_repetitions_are_counted_together(tmp_path: Path) -> None:
    rows = [log_row(e, 0.5, 1.0) for e in range(2)]
    folders = [
        make_run(tmp_path, "a", rows, {0: [0, 1], 1: [1]}, seed=0),
        make_run(tmp_path, "b", rows, {0: [1, 2], 1: [1]}, seed=1),
        make_run(tmp_path, "c", rows, {0: [5], 1: [5]}, method="ema"),
    ]
    text = write_report(folders, tmp_path / "r.html").read_text()
    assert "a and 1 more: 4 selections; 50.00 % of the samples in none, 16.67 % in all of them" in text
    assert "c: 2 selections; 83.33 % of the samples in none, 16.67 % in all of them" in text
    cell = "<t[hd]>(.*?)</t[hd]>"
    rows = re.findall(f"<tr><t[hd]>(key|run.seed|prune.method)</t[hd]>{cell}{cell}</tr>", text)
    assert rows == [("key", "a and 1 more", "c"), ("run.seed", "0, 1", "0"), ("prune.method", "ucb", "ema")]


@pytest.mark.parametrize("rhat", [RHAT_LIMIT - 0.05, RHAT_LIMIT + 0.05])
def test_no_label_is_written_where_the_chains_disagree(tmp_path: Path, rhat: float) -> None:
    run = read_run(make_run(tmp_path, "run", [log_row(e, 0.5, 1.0) for e in range(10)], {e: [0] for e in range(10)}))
    fit = Mixture(10, np.full((2, 3), 1 / 3), np.array([[0.0, 5, 10]] * 2), np.full((2, 3), 0.5), rhat)
    write_groups([run], [fit], tmp_path / "groups.csv")
    with (tmp_path / "groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["selected"] for row in rows] == ["10", *["0"] * 5]
    assert {row["rhat"] for row in rows} == {f"{rhat:.3f}"}
    assert [row["group"] for row in rows] == (["always", *["never"] * 5] if rhat < RHAT_LIMIT else [""] * 6)
    assert ("the chains disagree" in describe_groups(fit)) == (rhat > RHAT_LIMIT)
    assert [float(rows[0][group]) for group in GROUPS] == [0, 0, 1]


@pytest.mark.slow
def test_each_sample_gets_its_group(tmp_path: Path) -> None:
    pytest.importorskip("pymc")
    selections = {e: [0, 1 + e % 3] for e in range(12)}  # 0 always, 1 to 3 sometimes, 4 and 5 never
    run = make_run(tmp_path, "run", [log_row(e, 0.5, 1.0) for e in range(12)], selections)
    text = write_report([run], tmp_path / "r.html", fit=True).read_text()
    assert "Fitted groups: never " in text
    with (tmp_path / "r_groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["selected"] for row in rows] == ["12", "4", "4", "4", "0", "0"]
    assert [row["group"] for row in rows] == ["always", *["sometimes"] * 3, *["never"] * 2]
    for row in rows:
        assert sum(float(row[group]) for group in ("never", "sometimes", "always")) == pytest.approx(1, abs=1e-3)


def test_the_fit_is_made_when_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", [log_row(e, 0.5, 1.0) for e in range(3)], {e: [e] for e in range(3)})
    with pytest.raises(UserError, match="3 selections are too few"):
        write_report([run], tmp_path / "r.html", fit=True)
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("content", ["", "a,static_seconds\n1\n", "static_seconds\nmany\n", "other\n1\n"])
@pytest.mark.parametrize("description", ["", "[]", '{"seconds": 3}', '{"seconds": {"total": null}}'])
def test_a_damaged_record_leaves_the_cost_of_static_scores_unknown(
    content: str, description: str, tmp_path: Path
) -> None:
    (tmp_path / "result.csv").write_text(content)
    (tmp_path / "scores.json").write_text(description)
    settings = {"prune.method": "static", "prune.scores": str(tmp_path / "scores.npz")}
    assert math.isnan(_static_seconds(_result(tmp_path), settings))
