"""One self-contained HTML page about one run or several: accuracy against time, selections, time by phase."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from matplotlib.figure import Figure

from ffcv_prune.analysis.distribution import describe_groups
from ffcv_prune.analysis.mixture import GROUPS, Mixture, fit_mixture
from ffcv_prune.analysis.plots import (
    EXAMPLES,
    plot_accuracy,
    plot_against_rate,
    plot_class_rates,
    plot_examples,
    plot_phases,
    plot_selections,
)
from ffcv_prune.analysis.runs import Run, phases, read_run, repetitions, together
from ffcv_prune.analysis.verdicts import verdicts
from ffcv_prune.data.beton import check_beton
from ffcv_prune.data.images import read_images
from ffcv_prune.errors import UserError

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
<h2>What pruning cost or saved</h2>
$verdicts
$rates
<h2>Accuracy against time and samples seen</h2>
<p>Seconds since the first epoch began, testing included, static scores not; a dot is a test of the whole test set.</p>
$accuracy
<h2>Time by phase</h2>
<p>load: training waited for batches. score, select, swap: the checkpoints. train: steps. eval: tests.
save: the run's state, to resume from.</p>
$phases
<h2>How often each sample was selected</h2>
$selections
<h2>How much of each class was kept</h2>
$classes
<p class="made">$made</p>
</body>
</html>
""")


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    title: str = "",
    remarks: Sequence[str] = (),
    fit: bool = False,
) -> Path:
    """Write one HTML file, pictures included, about the runs in `folders`, which begins with `remarks`.

    The selections of runs that differ in their seeds only are counted together. `fit` fits the always, sometimes and
    never groups to them, and writes each sample's probabilities and, where the chains agree, its group to
    OUT_groups.csv: it takes PyMC, and about half a minute for each setting.

    Raises:
        UserError: no folder, a folder that is not a run folder, a file that cannot be written, no PyMC for `fit`.
    """
    if not folders:
        raise UserError("no run folder given; name one or more, such as runs/fashion_ucb")
    runs = [read_run(folder) for folder in folders]
    pruned = [run for run in runs if run.counts is not None]
    counted = [together(group) for group in repetitions(pruned)]
    fits = [_fitted(run) if fit else None for run in counted]
    compared = len({run.samples_seen for run in runs}) > 1
    page = PAGE.substitute(
        title=escape(title or ", ".join(run.name for run in runs)),
        remarks="\n".join(f"<p>{escape(remark)}</p>" for remark in remarks),
        table=_table(runs),
        verdicts=_verdicts(runs),
        rates=_picture(plot_against_rate(runs), "test accuracy against pruning rate") if compared else "",
        accuracy=_picture(plot_accuracy(runs), "test accuracy against wall-clock seconds and samples seen"),
        phases=_picture(plot_phases(runs), "seconds by phase"),
        selections=_selections(counted, fits) if pruned else "<p>No selections of a policy.</p>",
        classes=_class_rates(pruned),
        made=escape(_made(runs)),
    )
    out = Path(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
        if fit:
            write_groups(counted, [fit for fit in fits if fit], out.with_name(f"{out.stem}_groups.csv"))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    return out


def _table(runs: Sequence[Run]) -> str:
    named = phases(runs)
    head = ["run", "epochs", "keep", "pruning rate", "samples seen", "test accuracy", *named, "total"]
    scored = any(run.static_seconds != 0 for run in runs)
    head += ["static scores", "total with scores"] if scored else []
    lines = ["<tr>" + "".join(f"<th>{name}</th>" for name in head) + "</tr>"]
    for run in runs:
        last = run.rows[-1]
        cells = (
            escape(run.name),
            f"{len(run.rows)}",
            f"{last['keep']:.2f}",
            f"{last['pruning_rate']:.2f}",
            f"{run.samples_seen:,}",
            f"{run.accuracy:.4f}" if run.tested else "not tested",
            *(f"{run.seconds(phase):.1f}" for phase in named),
            f"{run.seconds('total'):.1f}",
            *(_seconds(s) for s in (run.static_seconds, run.seconds("total") + run.static_seconds) if scored),
        )
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _seconds(seconds: float) -> str:
    return "unknown" if math.isnan(seconds) else f"{seconds:.1f}"


def _verdicts(runs: Sequence[Run]) -> str:
    sentences = verdicts(runs)
    if not sentences:
        return "<p>Nothing was pruned.</p>"
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _fitted(run: Run) -> Mixture:
    assert run.counts is not None
    return fit_mixture(run.counts, run.checkpoints)


def write_groups(runs: Sequence[Run], fits: Sequence[Mixture], path: Path) -> None:
    """One row a sample: how often it was selected, the probability of each group, the most probable one, and R-hat.

    Of a fit whose chains disagree, the group is empty.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "sample", "selected", *GROUPS, "group", "rhat"])
        for run, fit in zip(runs, fits, strict=True):
            assert run.counts is not None
            probabilities = fit.responsibilities().round(4).tolist()
            groups = [GROUPS[i] if fit.agrees else "" for i in fit.label(np.arange(run.checkpoints + 1))]
            for sample, count in enumerate(run.counts.tolist()):
                writer.writerow([run.name, sample, count, *probabilities[count], groups[count], f"{fit.rhat:.3f}"])


def _selections(pruned: Sequence[Run], fits: Sequence[Mixture | None]) -> str:
    """Shares in words, the histograms, and what always and never samples look like."""
    sentences = []
    for run, fit in zip(pruned, fits, strict=True):
        assert run.counts is not None
        never, always = np.mean(run.counts == 0), np.mean(run.counts == run.checkpoints)
        sentence = (
            f"{run.name}: {run.checkpoints} selections; {never:.1%} of the samples in none, {always:.1%} in all of them"
        )
        sentence += f". Fitted groups: {describe_groups(fit)}" if fit else ""
        sentences.append(f"<li>{escape(sentence)}.</li>")
    picture = _picture(plot_selections(pruned, fits), "samples by the number of selections they are in")
    shown = "\n".join(_examples(run) for run in pruned)
    return f"<ul>{''.join(sentences)}</ul>\n{picture}\n{shown}"


def _class_rates(pruned: Sequence[Run]) -> str:
    if not pruned:
        return "<p>All of all.</p>"
    classified = [run for run in pruned if run.dataset["classes"]]
    if not classified:
        return "<p>The targets are no classes.</p>"
    return _picture(plot_class_rates(classified), "share of each class kept")


def _examples(run: Run) -> str:
    """Images of the samples selected most and least often, spread over the data set."""
    if run.method == "random":  # chance alone decided
        return ""
    assert run.counts is not None
    path, classes = Path(run.settings["data.train"]), run.dataset["classes"]
    lines = []
    try:
        labels = check_beton(path).labels
        for word, extreme in (("most", run.counts.max()), ("least", run.counts.min())):
            ids = np.flatnonzero(run.counts == extreme)
            ids = ids[np.unique(np.linspace(0, len(ids) - 1, EXAMPLES, dtype=np.int64))]
            names = ["" if labels is None or not classes else classes[labels[i]] for i in ids]
            title = f"{run.name}: selected {word} often, {extreme} of {run.checkpoints} times"
            lines.append((title, read_images(path, ids.tolist()), names))
    except UserError as error:  # the data may be gone or written again since: the report has the rest
        return f"<p>{escape(f'{run.name}: no example images: {error}')}.</p>"
    return _picture(plot_examples(lines), "images of always and of never samples")


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
