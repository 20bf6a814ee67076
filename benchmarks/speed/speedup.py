"""How much of the time that pruning promises arrives: full data against random and UCB, end to end.

    python -m benchmarks.speed.speedup                            CIFAR-10, 5 repeats: about an hour on 2 cores
    python -m benchmarks.speed.speedup --data.train=betons/cifar10_downsampled/train.beton      a fifth: 15 minutes
    python -m benchmarks.speed.speedup --config rn_configs/rn18_full.yaml --csv rn18.csv      any data set and model
    python -m benchmarks.speed.speedup --redraw                   the table and the plot again, from the CSV

Each run trains one epoch, which is not measured. Then it trains a period of T_p = 10 epochs with one selection at its
start, as a long run does again and again. Full data, whose epochs are alike, are trained on for FULL_EPOCHS beside the
runs of each keep. Samples are counted as trained on: whole batches. docs/speed.md says how to read the table.
--score-size is for images that are larger than CIFAR's: 80 for those of ImageNet.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.harness.machine import ROOT, measured_with
from benchmarks.harness.plots import error_bars, save
from benchmarks.harness.rows import Results, benchmark, positive, rotated
from benchmarks.harness.tables import Row, groups, ratios, spread, table, values
from benchmarks.harness.training import SharedLoaders
from ffcv_prune import config
from ffcv_prune.analysis.runs import read_run
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.arguments import usable_cores
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.trainer import train

TITLE = "Speedup, end to end"
CHARGED = ("load", "score", "select", "swap", "train", "other")
NOT_CHARGED = ("eval", "save")
COLUMNS = (
    *("method", "keep", "repeat", "epochs", "samples"),
    *(f"{phase}_seconds" for phase in (*CHARGED, *NOT_CHARGED, "compile", "setup")),
    "accuracy",
)
SETTINGS = ("config", "period", "threads", "score_size", "overrides")
SCORE_SIZE = 16  # px, of the images in the smaller of the two scoring passes
LATER = {"score_size": SCORE_SIZE}
TARGET = 0.95  # of the ideal
FULL_EPOCHS = 2


@dataclass(frozen=True)
class Variant:
    """A method: its keys of the training config, and how many periods it trains, of which the last is measured.

    The epoch before them selects at random. A method whose first selection costs more than those that follow
    needs two periods. In both, {side} stands for --score-size.
    """

    label: str
    keys: Mapping[str, str]
    periods: int = 1


FULL = "full"
UCB = {"prune.method": "ucb"}
SMALL = {"data.score_size": "{side}"}
VARIANTS = {
    FULL: Variant("full data", {"prune.method": "full"}),
    "random": Variant("random", {"prune.method": "random"}),
    "ucb": Variant("UCB", UCB),
    "ucb_both": Variant("UCB, training losses and a pass over the rest", UCB | {"prune.score_source": "both"}),
    # The first selection scores all samples: they have no statistics yet.
    "ucb_budget": Variant("UCB, a budget of 0.3", UCB | {"prune.score_budget": "0.3"}, periods=2),
    "ucb_small": Variant("UCB, scored at {side} px", UCB | SMALL),
    "ucb_budget_small": Variant(
        "UCB, a budget of 0.3, scored at {side} px", UCB | {"prune.score_budget": "0.3"} | SMALL, periods=2
    ),
    # Costs what random does, but for an epoch on full data, once in a run however long: the one that is not measured.
    "ucb_training": Variant(
        "UCB, training losses only", UCB | {"prune.score_source": "training", "prune.warmup_mode": "full"}
    ),
}


@dataclass(frozen=True)
class Case:
    """One run of the benchmark; on full data, `keep` is that of the runs it stands beside."""

    method: str
    keep: float
    repeat: int

    def __str__(self) -> str:
        return f"{self.method} {self.keep:g} #{self.repeat}"

    def measured(self, period: int) -> int:
        """The epochs that are measured, the last of the run."""
        return FULL_EPOCHS if self.method == FULL else period

    def options(self, period: int, out: Path, score_size: int) -> list[str]:
        """What the run's configuration changes in that of the benchmark."""
        variant = VARIANTS[self.method]
        keys = {name: value.format(side=score_size) for name, value in variant.keys.items()}
        if self.method != FULL:
            keys |= {"prune.keep": f"{self.keep}", "prune.period": f"{period}", "prune.warmup": "1", "prune.final": "0"}
        epochs = 1 + self.measured(period) * variant.periods
        return [
            *(f"--{name}={value}" for name, value in keys.items()),
            f"--train.epochs={epochs}",
            f"--train.eval_every={epochs}",
            f"--run.seed={self.repeat}",
            f"--run.out={out}",
            f"--run.name={self.method}_{self.keep:g}_{self.repeat}",
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    methods = [method for method in VARIANTS if method != FULL]
    cheaper = ["ucb_both", "ucb_budget", "ucb_small", "ucb_budget_small"]
    spare = max(1, usable_cores() - 1)
    parser.add_argument("--config", type=Path, default=Path("rn_configs/cifar10_small.yaml"), help="of all runs")
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.3, 0.2, 0.1], help="of --methods")
    parser.add_argument("--methods", nargs="+", choices=methods, default=["random", "ucb"], help="beside full data")
    parser.add_argument("--cheaper", nargs="*", choices=methods, default=cheaper, help="more methods")
    parser.add_argument("--cheaper-keeps", nargs="+", type=float, default=[0.2], help="of --cheaper")
    parser.add_argument("--period", type=positive, default=10, help="T_p, epochs")
    parser.add_argument("--threads", type=positive, default=spare, help="of torch")
    parser.add_argument("--score-size", type=positive, default=SCORE_SIZE, help="side of smaller images to score, px")
    parser.add_argument("--out", type=Path, default=Path("runs/speedup"), help="folder of the runs")


def run(args: argparse.Namespace, results: Results) -> None:
    """Do the runs that have no row yet, on shared loaders, and add their rows."""
    methods_of = {keep: [FULL, *args.methods] for keep in args.keeps}
    for keep in args.cheaper_keeps if args.cheaper else []:
        methods_of[keep] = list(dict.fromkeys([*methods_of.get(keep, [FULL]), *args.cheaper]))
    cases = results.left(plan(methods_of, args.repeats), case_of)
    base, out = ["--config", str(args.config), *args.overrides], args.out.absolute()
    os.chdir(ROOT)  # the configs' paths are relative to it
    torch.set_num_threads(args.threads)
    configs = [config.load([*base, *case.options(args.period, out, args.score_size)]) for case in cases]
    compile_seconds: dict[tuple[object, str], float] = {}
    with SharedLoaders() as shared:
        for i, (case, run_config) in enumerate(zip(cases, configs, strict=True)):
            loaders = shared.of(run_config)
            first = loaders.settings, case.method
            if first not in compile_seconds:
                compile_seconds[first] = warm_up([*base, *case.options(1, out, args.score_size)], loaders)
            print(f"\nrun {i + 1} of {len(cases)}: {case}", flush=True)
            result = train(run_config, loaders)
            row = row_of(case, read_run(result.folder).rows, case.measured(args.period))
            row |= {"compile_seconds": compile_seconds[first], "setup_seconds": result.seconds["setup"]}
            results.append([row])


def plan(methods_of: Mapping[float, Sequence[str]], repeats: int) -> list[Case]:
    """All runs, repeat by repeat and keep by keep; each repeat begins with others, so that none is always first."""
    cases = []
    for repeat in range(repeats):
        for keep in rotated([*methods_of], repeat):
            cases += [Case(method, keep, repeat) for method in rotated(methods_of[keep], repeat)]
    return cases


def case_of(row: Row) -> Case:
    return Case(row["method"], float(row["keep"]), int(row["repeat"]))


def warm_up(options: Sequence[str], loaders: Loaders) -> float:
    """Let numba, torch and the loaders do what they do once for a method; return the seconds until the first step."""
    print("warming up", flush=True)
    return train(config.load([*options, "--run.name=warm_up"]), loaders).seconds["setup"]


def row_of(case: Case, epochs: Sequence[Mapping[str, Any]], number: int) -> dict[str, Any]:
    """Samples and seconds of the last `number` epochs of a log."""
    before, measured = epochs[-number - 1], epochs[-number:]
    seconds = {name: sum(epoch["seconds"][name] for epoch in measured) for name in measured[0]["seconds"]}
    seconds["other"] = seconds["total"] - sum(value for name, value in seconds.items() if name != "total")
    return {
        "method": case.method,
        "keep": case.keep,
        "repeat": case.repeat,
        "epochs": number,
        "samples": measured[-1]["samples_seen"] - before["samples_seen"],
        **{f"{name}_seconds": seconds[name] for name in (*CHARGED, *NOT_CHARGED)},
        "accuracy": measured[-1]["test_accuracy"],
    }


@dataclass(frozen=True)
class Line:
    """The rows of a method at a keep, with what they are compared to: one entry a repeat."""

    method: str
    keep: float
    rows: list[Row]
    speedups: list[float]
    ideals: list[float]

    @property
    def label(self) -> str:
        return VARIANTS[self.method].label.format(side=score_size_of(self.rows[0]))

    @property
    def shares(self) -> list[float]:
        """Of the ideal speedup."""
        return [speedup / ideal for speedup, ideal in zip(self.speedups, self.ideals, strict=True)]

    def seconds(self, *phases: str) -> float:
        """Of an epoch, median over the repeats."""
        return statistics.median(_seconds(row, phases) for row in self.rows)


def score_size_of(row: Row) -> int:
    """Of the runs that a row is of; older rows do not name it."""
    named = [word.removeprefix("score_size=") for word in row["settings"].split() if word.startswith("score_size=")]
    return int(named[0]) if named else SCORE_SIZE


def _seconds(row: Row, phases: Sequence[str] = CHARGED) -> float:
    """Of an epoch."""
    return sum(float(row[f"{phase}_seconds"]) for phase in phases) / int(row["epochs"])


def _samples(row: Row) -> float:
    """Of an epoch."""
    return float(row["samples"]) / int(row["epochs"])


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """One line for full data, and one for each method and keep; what has no full data beside it is left out."""
    full = [row for row in rows if row["method"] == FULL]
    lines = [Line(FULL, 1.0, full, [1.0] * len(full), [1.0] * len(full))] if full else []
    for (method, keep), own in groups(rows, "method", "keep").items():
        beside = [row for row in full if row["keep"] == keep]
        complete = {row["repeat"] for row in beside}
        own = [row for row in own if row["repeat"] in complete]
        if method != FULL and own:
            lines.append(Line(method, float(keep), own, ratios(beside, own, _seconds), ratios(beside, own, _samples)))
    lines.sort(key=lambda line: (line.method != FULL, -line.keep, [*VARIANTS].index(line.method)))
    if len(lines) < 2:
        raise UserError("no repeat has a run on full data yet, to compare with; go on with the benchmark")
    return lines


def summary(rows: Sequence[Row]) -> str:
    """The table, and what it was measured with."""
    lines = [
        {
            "method": line.label,
            "keep": f"{line.keep:g}",
            **{phase: f"{line.seconds(phase):.3f}" for phase in CHARGED},
            "epoch": f"{line.seconds(*CHARGED):.3f}",
            "a test": f"{statistics.median(values(line.rows, 'eval_seconds')):.3f}",
            "a save": f"{line.seconds('save'):.3f}",
            "speedup": spread(line.speedups),
            "ideal": f"{statistics.median(line.ideals):.2f}",
            "share of ideal": spread(line.shares),
            "in training": spread([_seconds(row, ("train",)) / _seconds(row) for row in line.rows]),
        }
        for line in lines_of(rows)
    ]
    first = max(values(rows, "compile_seconds"))
    setup = statistics.median(values(rows, "setup_seconds"))
    words = (
        "Seconds of a mean epoch, medians. Not charged: a test, here at the end of each run, a save, one after each "
        f"epoch, and the set-up, imports apart: {first:.1f} s in the first run of a process, {setup:.2f} s in those "
        f"after it. {measured_with(rows)}"
    )
    return f"{table(lines)}\n\n{words}"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Write the plot (SVG): the speedup and its share of the ideal, against keep."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    speedup, share = figure.subplots(1, 2)
    pruned = [line for line in lines_of(rows) if line.method != FULL]
    for method in dict.fromkeys(line.method for line in pruned):
        own = [line for line in pruned if line.method == method]
        keeps = [line.keep for line in own]
        for axes, repeats in ((speedup, [line.speedups for line in own]), (share, [line.shares for line in own])):
            middle, around = error_bars(repeats)
            axes.errorbar(keeps, middle, around, marker="o", capsize=3, label=own[0].label)
    ideal = sorted({(line.keep, statistics.median(line.ideals)) for line in pruned})
    speedup.plot([keep for keep, _ in ideal], [value for _, value in ideal], "k--", label="ideal")
    share.axhline(TARGET, color="k", linestyle=":", label=f"{TARGET:g} of the ideal")
    speedup.set_ylabel("times as fast as full data")
    share.set_ylabel("share of the ideal speedup")
    for axes in (speedup, share):
        axes.set_xlabel("keep, fraction of the samples")
        axes.grid(alpha=0.3)
    speedup.legend(fontsize="small")
    share.legend(fontsize="small")
    return save(figure, path)


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
