"""How much of the time that pruning promises arrives: full data against random and UCB, end to end.

    python -m benchmarks.speedup                            CIFAR-10, 5 repeats: about 35 minutes on 2 cores
    python -m benchmarks.speedup --data.train=betons/cifar10_downsampled/train.beton --csv glance.csv --repeats 1
    python -m benchmarks.speedup --config rn_configs/rn18_full.yaml --csv rn18.csv      any data set and model
    python -m benchmarks.speedup --redraw                   the table and the plot again, from the CSV

Each run trains one epoch, which is not measured, and then a period of T_p = 10 epochs with one checkpoint at its
start: what a long run does again and again. The repeats are interleaved, and each method is compared with the full
data of its own repeat. Read "share of ideal": 1.00 would mean that an epoch takes no longer than its samples do
on full data; below it is what scoring, selecting, swapping and the fixed costs of an epoch take. Samples are
counted as trained on: whole batches. Tests and checkpoints of the run are not charged, but stated, as is the
compilation of the loaders. A run whose row is in the CSV is not repeated: stop with Ctrl-C, start again.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks import tables
from benchmarks.figures import save
from benchmarks.results import markdown
from benchmarks.tables import Results, Row, error_bars, groups, measured_with, ratios, spread
from ffcv_prune import config
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.loader import usable_cores
from ffcv_prune.training.loaders import Loaders, settings_of
from ffcv_prune.training.trainer import train
from ffcv_prune.training.world import World, choose_device

ROOT = Path(__file__).resolve().parent.parent
CHARGED = ("load", "score", "select", "swap", "train", "other")
NOT_CHARGED = ("eval", "save")
COLUMNS = (
    *("method", "keep", "repeat", "period", "samples"),
    *(f"{phase}_seconds" for phase in (*CHARGED, *NOT_CHARGED, "compile", "setup")),
    "accuracy",
)
TARGET = 0.95  # of the ideal


@dataclass(frozen=True)
class Variant:
    """A method: its keys of the training config, and how many periods it trains, of which the last is measured.

    The epoch before them selects at random. A method whose first checkpoint costs more than those that follow
    needs two periods.
    """

    label: str
    keys: Mapping[str, str]
    periods: int = 1


FULL = "full"
UCB = {"prune.policy": "ucb"}
VARIANTS = {
    FULL: Variant("full data", {"prune.policy": "none"}),
    "random": Variant("random", {"prune.policy": "random"}),
    "ucb": Variant("UCB", UCB),
    "ucb_both": Variant("UCB, training losses and a pass over the rest", UCB | {"prune.score_source": "both"}),
    # The first checkpoint scores all samples: they have no statistics yet.
    "ucb_budget": Variant("UCB, a budget of 0.3", UCB | {"prune.score_budget": "0.3"}, periods=2),
    "ucb_small": Variant("UCB, scored at 16 px", UCB | {"data.score_size": "16"}),
    # Costs what random does, but for an epoch on full data, once in a run however long: the one that is not measured.
    "ucb_training": Variant(
        "UCB, training losses only", UCB | {"prune.score_source": "training", "prune.warmup_mode": "full"}
    ),
}


@dataclass(frozen=True)
class Case:
    """One run of the benchmark."""

    method: str
    keep: float
    repeat: int

    def __str__(self) -> str:
        return f"{self.method} {self.keep:g} #{self.repeat}"

    def options(self, period: int, out: Path) -> list[str]:
        """What the run's configuration changes in that of the benchmark."""
        variant = VARIANTS[self.method]
        common = {"keep": f"{self.keep}", "period": f"{period}", "warmup": "1", "final": "0"}
        keys = {f"prune.{name}": value for name, value in common.items()} | variant.keys
        return [
            *(f"--{name}={value}" for name, value in keys.items()),
            f"--train.epochs={1 + period * variant.periods}",
            f"--train.eval_every={1 + period * variant.periods}",
            f"--run.seed={self.repeat}",
            f"--run.out={out}",
            f"--run.name={self.method}_{self.keep:g}_{self.repeat}",
        ]


def main() -> None:
    parser = tables.command("speedup", __doc__)
    parser.add_argument(
        "--config", type=Path, default=Path("rn_configs/cifar10_small.yaml"), help="default: %(default)s"
    )
    tables.add_repeats(parser)
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.3, 0.2, 0.1], help="default: %(default)s")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[method for method in VARIANTS if method != FULL],
        default=["random", "ucb", "ucb_both", "ucb_budget", "ucb_small"],
        help="beside full data; default: %(default)s",
    )
    parser.add_argument("--period", type=tables.positive, default=10, help="T_p, epochs; default: %(default)s")
    spare = max(1, usable_cores() - 1)
    parser.add_argument("--threads", type=tables.positive, default=spare, help="of torch; default: all cores but one")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/speedup"), help="folder of the runs; default: %(default)s"
    )
    args, overrides = parser.parse_known_args()
    settings = " ".join([tables.settings(args, "config", "period", "threads"), *overrides])
    results, out = Results(args.csv.absolute(), COLUMNS, settings), args.out.absolute()
    os.chdir(ROOT)  # the configs' paths are relative to it
    if not args.redraw:
        torch.set_num_threads(args.threads)
        cases = results.left(plan(args.methods, args.keeps, args.repeats), case_of)
        run_all(cases, ["--config", str(args.config), *overrides], args.period, out, results)
    rows = results.read()
    results.publish("Speedup, end to end", summary(rows), draw(rows, results.path.with_suffix(".svg")))


def plan(methods: Sequence[str], keeps: Sequence[float], repeats: int) -> list[Case]:
    """All runs, repeat by repeat; each repeat begins with another one, so that none is always first."""
    cases = [(FULL, 1.0), *((method, keep) for keep in keeps for method in methods)]
    return [
        Case(*cases[(place + repeat) % len(cases)], repeat) for repeat in range(repeats) for place in range(len(cases))
    ]


def case_of(row: Row) -> Case:
    return Case(row["method"], float(row["keep"]), int(row["repeat"]))


def run_all(cases: Sequence[Case], base: Sequence[str], period: int, out: Path, results: Results) -> None:
    """Do the runs on shared loaders, and add their rows."""
    configs = [config.load([*base, *case.options(period, out)]) for case in cases]
    loaders: dict[object, Loaders] = {}
    compile_seconds: dict[object, float] = {}
    try:
        for i, (case, run_config) in enumerate(zip(cases, configs, strict=True)):
            own = settings_of(run_config, World(choose_device(run_config.train.device)))
            if own not in loaders:
                loaders[own] = Loaders(run_config)
                compile_seconds[own] = warm_up([*base, *case.options(1, out)], loaders[own])
            print(f"\nrun {i + 1} of {len(cases)}: {case}", flush=True)
            result = train(run_config, loaders[own])
            with (result.folder / "log.jsonl").open(encoding="utf-8") as file:
                epochs = [json.loads(line) for line in file]
            facts = {"compile_seconds": round(compile_seconds[own], 3), "setup_seconds": result.seconds["setup"]}
            results.append([row_of(case, epochs, period) | facts])
    finally:
        for opened in loaders.values():
            opened.close()


def warm_up(options: Sequence[str], loaders: Loaders) -> float:
    """Compile the loaders and let torch and numba do what they do once; return the seconds of the compilation."""
    print("warming up", flush=True)
    settings = config.load([*options, "--prune.policy=ucb", "--prune.keep=0.5", "--run.name=warm_up"])
    return train(settings, loaders).seconds["setup"]


def row_of(case: Case, epochs: Sequence[Mapping[str, Any]], period: int) -> dict[str, Any]:
    """Samples and seconds of the last `period` epochs of a log."""
    before, measured = epochs[-period - 1], epochs[-period:]
    seconds = {name: sum(epoch["seconds"][name] for epoch in measured) for name in measured[0]["seconds"]}
    seconds["other"] = seconds["total"] - sum(value for name, value in seconds.items() if name != "total")
    return {
        "method": case.method,
        "keep": case.keep,
        "repeat": case.repeat,
        "period": period,
        "samples": measured[-1]["samples_seen"] - before["samples_seen"],
        **{f"{name}_seconds": round(seconds[name], 4) for name in (*CHARGED, *NOT_CHARGED)},
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
    def shares(self) -> list[float]:
        """Of the ideal speedup."""
        return [speedup / ideal for speedup, ideal in zip(self.speedups, self.ideals, strict=True)]

    def seconds(self, *phases: str) -> float:
        """Of an epoch, median over the repeats."""
        return statistics.median(_seconds(row, phases) / int(row["period"]) for row in self.rows)


def _seconds(row: Row, phases: Sequence[str] = CHARGED) -> float:
    return sum(float(row[f"{phase}_seconds"]) for phase in phases)


def _samples(row: Row) -> float:
    return float(row["samples"])


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """One line for each method and keep; repeats without a run on full data are left out."""
    full = [row for row in rows if row["method"] == FULL]
    complete = {row["repeat"] for row in full}
    by_case = groups([row for row in rows if row["repeat"] in complete], "method", "keep")
    lines = [
        Line(method, float(keep), own, ratios(full, own, _seconds), ratios(full, own, _samples))
        for (method, keep), own in by_case.items()
    ]
    lines.sort(key=lambda line: (line.method != FULL, -line.keep))
    if not lines:
        raise UserError("no repeat has a run on full data yet, to compare with; go on with the benchmark")
    return lines


def summary(rows: Sequence[Row]) -> str:
    """The table, and what it was measured with."""
    head = ["method", "keep", *CHARGED, "epoch", "tests and saves", "speedup", "ideal", "share of ideal"]
    body = [
        [
            VARIANTS[line.method].label,
            f"{line.keep:g}",
            *(f"{line.seconds(phase):.3f}" for phase in CHARGED),
            f"{line.seconds(*CHARGED):.3f}",
            f"{line.seconds(*NOT_CHARGED):.3f}",
            spread(line.speedups),
            f"{statistics.median(line.ideals):.2f}",
            spread(line.shares),
        ]
        for line in lines_of(rows)
    ]
    compiled = statistics.median(float(row["compile_seconds"]) for row in rows)
    words = (
        f"Seconds of a mean epoch in a period of T_p = {rows[0]['period']}, medians. Not charged: tests and saves, "
        f"{compiled:.1f} s of compiling the loaders, once a process. {measured_with(rows)}"
    )
    return f"{markdown(head, body)}\n\n{words}"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Write the plot (SVG): the speedup and its share of the ideal, against keep."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    speedup, share = figure.subplots(1, 2)
    pruned = [line for line in lines_of(rows) if line.method != FULL]
    for method in dict.fromkeys(line.method for line in pruned):
        own = [line for line in pruned if line.method == method]
        keeps = [line.keep for line in own]
        for axes, values in ((speedup, [line.speedups for line in own]), (share, [line.shares for line in own])):
            middle, around = error_bars(values)
            axes.errorbar(keeps, middle, around, marker="o", capsize=3, label=VARIANTS[method].label)
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
    run_command(main)
