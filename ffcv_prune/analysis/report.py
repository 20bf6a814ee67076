"""One self-contained HTML page about one run or several: accuracy against time, selections, time by phase."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from ffcv_prune.analysis.distribution import describe_groups
from ffcv_prune.analysis.mixture import GROUPS, Mixture, fit_mixture
from ffcv_prune.analysis.plots import (
    EXAMPLES,
    plot_accuracy,
    plot_against_rate,
    plot_by_class,
    plot_curves,
    plot_examples,
    plot_phases,
    plot_selections,
)
from ffcv_prune.analysis.runs import Run, differing_keys, read_run, repetitions, together
from ffcv_prune.analysis.verdicts import savings, verdicts
from ffcv_prune.data.manifest import read_sources
from ffcv_prune.errors import UserError
from ffcv_prune.words import percent

PAGES = Environment(loader=PackageLoader("ffcv_prune", "analysis"), autoescape=True)
MARK = Markup('<meta name="generator" content="ffcv_prune">')  # a page of ours, which a later one may replace
SHOWN = """{% for title, samples in named %}<details><summary>{{ title }}, of which these are shown, by id</summary>
<ul>{% for sample in samples %}<li>{{ sample }}</li>{% endfor %}</ul></details>{% endfor %}"""
GROUPS_HEAD = ("run", "sample", "selected", *GROUPS, "group", "rhat")


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
        UserError: no folder, a folder that is not a run folder, a file that cannot be written or is not ours to
            replace, no PyMC for `fit`.
    """
    if not folders:
        raise UserError("no run folder given; name one or more, such as runs/fashion_ucb")
    out = Path(out)
    groups_file = groups_path(out)
    _check_replaceable(out, MARK)
    if fit:
        _check_replaceable(groups_file, ",".join(GROUPS_HEAD))
    runs = sorted((read_run(folder) for folder in folders), key=lambda run: run.pruned)  # full data first
    pruned = [run for run in runs if run.counts is not None]
    classified = [run for run in pruned if run.dataset["classes"]]
    tested = [run for run in runs if any(row.get("class_accuracy") for row in run.rows)]
    counted = [together(group) for group in repetitions(pruned)]
    fits = [_fitted(run) if fit else None for run in counted]
    groups = repetitions(runs)
    measured = any(run.tested for run in runs)
    compared = measured and len({run.samples_seen for run in runs}) > 1
    head, table = _table(runs)
    page = PAGES.get_template("report.html.j2").render(
        mark=MARK,
        title=title or ", ".join(run.name for run in runs),
        remarks=[*remarks, *savings(runs)],
        head=head,
        table=table,
        verdicts=verdicts(runs),
        rates=_picture(plot_against_rate(runs), "test accuracy against pruning rate") if compared else "",
        accuracy=_picture(plot_accuracy(runs), "test accuracy against wall-clock seconds and samples seen")
        if measured
        else "",
        groups=[together(group).name for group in groups],
        differing=differing_keys(groups),
        curves=_picture(plot_curves(runs), "training loss and what else moved against the epoch"),
        phases=_picture(plot_phases(runs), "seconds by phase"),
        selections=[_selected(run, fit) for run, fit in zip(counted, fits, strict=True)],
        histograms=_picture(plot_selections(counted, fits), "samples by selections they are in") if pruned else "",
        examples=[_examples(run) for run in counted],
        classes=_by_class(classified, "class_fraction", "share kept"),
        class_accuracy=_by_class(tested, "class_accuracy", "test accuracy"),
        made=_made(runs),
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
        if fit:
            write_groups(counted, [fit for fit in fits if fit], groups_file)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from None
    return out


def groups_path(out: Path) -> Path:
    """Where the report `out` with `fit` writes the groups: OUT_groups.csv beside it."""
    return out.with_name(f"{out.stem}_groups.csv")


def _check_replaceable(path: Path, mark: str) -> None:
    """UserError for a file that does not begin as ours do: somebody else's."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            ours = mark in file.read(1000)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file with --out") from None
    if not ours:
        raise UserError(f"{path} was not written by this command: name another file with --out")


def _table(runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Head and rows. A run has one time, that of the verdicts. Its parts are in the picture of the phases."""
    head = ["run", "epochs", "pruning rate", "samples seen", "test accuracy", "seconds without tests"]
    scored = any(run.static_seconds != 0 for run in runs)
    head += ["static scores", "seconds with scores"] if scored else []
    rows = [
        [
            run.name,
            f"{len(run.rows)}",
            percent(1 - run.kept),
            f"{run.samples_seen:,}",
            _tested(run),
            f"{run.training_seconds:.1f}",
            *(_seconds(s) for s in (run.static_seconds, run.training_seconds + run.static_seconds) if scored),
        ]
        for run in runs
    ]
    return head, rows


def _tested(run: Run) -> str:
    if run.tested:
        return percent(run.accuracy)
    others = ", ".join(f"{name.removeprefix('test_')} {value:.4g}" for name, value in run.other_metrics.items())
    return f"none; {others}" if others else "not tested"


def _seconds(seconds: float) -> str:
    return "unknown" if math.isnan(seconds) else f"{seconds:.1f}"


def _fitted(run: Run) -> Mixture:
    assert run.counts is not None
    return fit_mixture(run.counts, run.selections)


def write_groups(runs: Sequence[Run], fits: Sequence[Mixture], path: Path) -> None:
    """One row a sample: how often it was selected, the probability of each group, the most probable one, and R-hat.

    Of a fit whose chains disagree, the group is empty.
    """
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(GROUPS_HEAD)
        for run, fit in zip(runs, fits, strict=True):
            assert run.counts is not None
            probabilities = fit.responsibilities().round(4).tolist()
            groups = [GROUPS[i] if fit.agrees else "" for i in fit.label(np.arange(run.selections + 1))]
            for sample, count in enumerate(run.counts.tolist()):
                writer.writerow([run.name, sample, count, *probabilities[count], groups[count], f"{fit.rhat:.3f}"])


def _selected(run: Run, fit: Mixture | None) -> str:
    """Shares in words."""
    assert run.counts is not None
    never, always = (float(np.mean(run.counts == count)) for count in (0, run.selections))
    shares = f"{percent(never)} of the samples in none, {percent(always)} in all of them"
    groups = f". Fitted groups: {describe_groups(fit)}" if fit else ""
    return f"{run.name}: {run.selections} selections; {shares}{groups}."


def _examples(run: Run) -> str:
    """Images of the samples selected most and least often, spread over the data set, with their ids and files."""
    assert run.counts is not None
    share = float(np.mean(run.counts)) / run.selections
    if run.selections > 1 and np.var(run.counts) <= 1.1 * run.selections * share * (1 - share):
        return ""  # the counts vary no more than chance makes them
    path, classes = Path(run.settings["data.train"]), run.dataset["classes"]
    lines, named = [], []
    try:
        from ffcv_prune.data.beton import check_beton  # needs FFCV, which the rest of the report does not
        from ffcv_prune.data.images import read_images

        labels, files = check_beton(path).labels, read_sources(path, run.counts.size)
        for word, extreme in (("most", run.counts.max()), ("least", run.counts.min())):
            ids = np.flatnonzero(run.counts == extreme)
            found = len(ids)
            ids = ids[np.unique(np.linspace(0, len(ids) - 1, EXAMPLES, dtype=np.int64))]
            names = ["" if labels is None or not classes else classes[labels[i]] for i in ids]
            title = f"{run.name}: selected {word} often, {extreme} of {run.selections} times"
            lines.append((title, read_images(path, ids.tolist()), names))
            named.append(
                (f"{title}: {found:,} samples", [f"{i} {files[i]}" if files else f"{i}" for i in ids.tolist()])
            )
    except UserError as error:  # the data may be gone or written again since: the report has the rest
        return Markup("<p>{}: no example images: {}.</p>").format(run.name, error)
    picture = _picture(plot_examples(lines), "images of always and of never samples")
    return picture + Markup(PAGES.from_string(SHOWN).render(named=named))


def _by_class(runs: Sequence[Run], key: str, label: str) -> str:
    return _picture(plot_by_class(runs, key, label), f"{label} of each class") if runs else ""


def _picture(figure: Figure, description: str) -> str:
    """The figure as an <img> that carries its PNG. A `Figure` made without pyplot draws with Agg."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img alt="{}" src="data:image/png;base64,{}">').format(description, data)


def _made(runs: Sequence[Run]) -> str:
    """Where the numbers come from: one line for each different machine and set of versions."""
    lines = []
    for run in runs:
        facts = {name: value for name, value in run.machine.items() if value and name != "date"}
        line = ", ".join(f"{name} {'; '.join(v) if isinstance(v, list) else v}" for name, v in facts.items())
        if line not in lines:
            lines.append(line)
    return f"Last run of {max(run.machine['date'] for run in runs)}. " + " | ".join(lines)
