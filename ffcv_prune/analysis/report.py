"""One self-contained HTML page about one run or several: accuracy against time, selections, time by phase."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ffcv_prune.analysis.counts import selection_counts, selection_files
from ffcv_prune.errors import UserError

PHASES = ("load", "score", "select", "swap", "train", "eval", "save")
COLORS = matplotlib.color_sequences["tab10"]

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>$title</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; color: #222 }
table { border-collapse: collapse; font-size: .9rem } th, td { padding: .3rem .7rem; text-align: right }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left } img { max-width: 100% } .wide { overflow-x: auto }
.made { color: #666; font-size: .85rem }
</style>
</head>
<body>
<h1>$title</h1>
$remarks
<div class="wide">$table</div>
<h2>Accuracy against wall-clock time</h2>
<p>Seconds since the first epoch began, testing included; a dot is a test of the whole test set.</p>
$accuracy
<h2>Time by phase</h2>
<p>load: training waited for batches. score, select, swap: the checkpoints. train: steps. eval: tests.
save: the run's state, to resume from.</p>
$phases
<h2>How often each sample was selected</h2>
$selections
<p class="made">$made</p>
</body>
</html>
""")


@dataclass(frozen=True)
class Run:
    """What a run folder holds: the log's rows, and in how many of its selections each sample is."""

    name: str
    rows: list[dict[str, Any]]
    counts: np.ndarray | None  # int64[n]; None without a checkpoint (full data)
    checkpoints: int
    machine: dict[str, Any]

    @property
    def tested(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["test_accuracy"] is not None]

    def seconds(self, phase: str) -> float:
        return sum(row["seconds"][phase] for row in self.rows)


def read_run(folder: str | Path) -> Run:
    """Read a run folder. A run that was interrupted is read as far as it came.

    Raises:
        UserError: not a run folder, or one whose first epoch did not end.
    """
    folder = Path(folder)
    try:
        lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [json.loads(line) for line in lines]
        machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
        dataset = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} is not a run folder: {Path(error.filename).name} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the run folder {folder}: {error}") from None
    if not rows:
        raise UserError(f"{folder} has no finished epoch; there is nothing to report")
    files = selection_files(folder)
    counts = selection_counts(files, dataset["train_samples"]) if files else None
    return Run(folder.name, rows, counts, len(files), machine)


def write_report(folders: Sequence[str | Path], out: str | Path, title: str = "", remarks: Sequence[str] = ()) -> Path:
    """Write one HTML file, pictures included, about the runs in `folders`, which begins with `remarks`.

    Raises:
        UserError: no folder, a folder that is not a run folder, or a file that cannot be written.
    """
    if not folders:
        raise UserError("no run folder given; name one or more, such as runs/fashion_ucb")
    runs = [read_run(folder) for folder in folders]
    page = PAGE.substitute(
        title=escape(title or ", ".join(run.name for run in runs)),
        remarks="\n".join(f"<p>{escape(remark)}</p>" for remark in remarks),
        table=_table(runs),
        accuracy=_picture(_plot_accuracy(runs), "test accuracy against wall-clock seconds"),
        phases=_picture(_plot_phases(runs), "seconds by phase"),
        selections=_selections(runs),
        made=escape(_made(runs)),
    )
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    return out


def _table(runs: Sequence[Run]) -> str:
    head = ("run", "epochs", "keep", "pruning rate", "samples seen", "test accuracy", *PHASES, "total")
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"]
    for run in runs:
        last = run.rows[-1]
        accuracy = f"{run.tested[-1]['test_accuracy']:.4f}" if run.tested else "not tested"
        cells = (
            escape(run.name),
            f"{len(run.rows)}",
            f"{last['keep']:.2f}",
            f"{last['pruning_rate']:.2f}",
            f"{last['samples_seen']:,}",
            accuracy,
            *(f"{run.seconds(phase):.1f}" for phase in PHASES),
            f"{run.seconds('total'):.1f}",
        )
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _plot_accuracy(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for i, run in enumerate(runs):
        ends = np.cumsum([row["seconds"]["total"] for row in run.rows])
        points = [(t, row["test_accuracy"]) for t, row in zip(ends, run.rows, strict=True)]
        points = [(t, accuracy) for t, accuracy in points if accuracy is not None]
        if points:
            axes.plot(*zip(*points, strict=True), "o-", color=COLORS[i % 10], label=run.name, markersize=4)
    axes.set(xlabel="wall-clock seconds", ylabel="test accuracy", xlim=(0, None))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower right")
    return figure


def _plot_phases(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(9, 1.2 + 0.45 * len(runs)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(runs))
    for i, phase in enumerate(PHASES):
        seconds = np.array([run.seconds(phase) for run in runs])
        axes.barh([run.name for run in runs], seconds, left=left, color=COLORS[i], label=phase)
        left += seconds
    axes.invert_yaxis()
    axes.set(xlabel="seconds")
    axes.legend(ncols=len(PHASES), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def _selections(runs: Sequence[Run]) -> str:
    pruned = [run for run in runs if run.counts is not None]
    if not pruned:
        return "<p>No selections: all samples were trained on in every epoch.</p>"
    sentences = []
    for run in pruned:
        assert run.counts is not None
        never, always = np.mean(run.counts == 0), np.mean(run.counts == run.checkpoints)
        sentences.append(
            f"<li>{escape(run.name)}: {run.checkpoints} selections; {never:.1%} of the samples in none, "
            f"{always:.1%} in all of them.</li>"
        )
    picture = _picture(_plot_selections(pruned), "samples by the number of selections they are in")
    return f"<ul>{''.join(sentences)}</ul>\n{picture}"


def _plot_selections(runs: Sequence[Run]) -> Figure:
    figure = Figure(figsize=(9, 2.4 * len(runs)), layout="constrained")
    for axes, run in zip(np.atleast_1d(figure.subplots(len(runs), 1)), runs, strict=True):
        assert run.counts is not None
        samples = np.bincount(run.counts, minlength=run.checkpoints + 1)
        axes.bar(np.arange(run.checkpoints + 1), samples, color=COLORS[0])
        axes.set(title=run.name, xlabel=f"times selected, of {run.checkpoints}", ylabel="samples")
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _picture(figure: Figure, description: str) -> str:
    """The figure as an <img> that carries its PNG. A `Figure` made without pyplot draws with Agg."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{description}" src="data:image/png;base64,{data}">'


def _made(runs: Sequence[Run]) -> str:
    """Where the numbers come from: one line for each different machine and set of versions."""
    lines = []
    for run in runs:
        facts = {name: value for name, value in run.machine.items() if value and name != "date"}
        line = ", ".join(f"{name} {'; '.join(v) if isinstance(v, list) else v}" for name, v in facts.items())
        if line not in lines:
            lines.append(line)
    return f"Last run of {max(run.machine['date'] for run in runs)}. " + " | ".join(lines)
