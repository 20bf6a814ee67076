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

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from benchmarks.figures import save
from benchmarks.results import RESULTS, Row, markdown, read_rows
from ffcv_prune import config
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.loader import usable_cores
from ffcv_prune.training.loaders import Loaders, settings_of
from ffcv_prune.training.run_folder import append_csv, provenance
from ffcv_prune.training.trainer import train
from ffcv_prune.training.world import World, choose_device

ROOT = Path(__file__).resolve().parent.parent
CHARGED = ("load", "score", "select", "swap", "train", "other")
NOT_CHARGED = ("eval", "save")
TARGET = 0.95  # of the ideal


@dataclass(frozen=True)
class Variant:
    """A method: its keys of section `prune`, and how many periods it trains, of which the last is measured.

    The epoch before them selects at random. A method whose first checkpoint costs more than those that follow
    needs two periods.
    """

    label: str
    prune: Mapping[str, str]
    periods: int = 1


FULL = "full"
VARIANTS = {
    FULL: Variant("full data", {"policy": "none"}),
    "random": Variant("random", {"policy": "random"}),
    "ucb": Variant("UCB", {"policy": "ucb"}),
    "ucb_both": Variant("UCB, training losses and a pass over the rest", {"policy": "ucb", "score_source": "both"}),
    # Costs what random does, but for an epoch on full data, once in a run however long: the one that is not measured.
    "ucb_training": Variant(
        "UCB, training losses only", {"policy": "ucb", "score_source": "training", "warmup_mode": "full"}
    ),
}


@dataclass(frozen=True)
class Case:
    """One run of the benchmark."""

    method: str
    keep: float
    repeat: int

    @property
    def key(self) -> str:
        return f"{self.method} {self.keep:g} #{self.repeat}"

    def options(self, period: int, out: Path) -> list[str]:
        """What the run's configuration changes in that of the benchmark."""
        variant = VARIANTS[self.method]
        prune = {"keep": f"{self.keep}", "period": f"{period}", "warmup": "1", "final": "0"} | variant.prune
        return [
            *(f"--prune.{name}={value}" for name, value in prune.items()),
            f"--train.epochs={1 + period * variant.periods}",
            f"--train.eval_every={1 + period * variant.periods}",
            f"--run.seed={self.repeat}",
            f"--run.out={out}",
            f"--run.name={self.method}_{self.keep:g}_{self.repeat}",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speedup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", type=Path, default=Path("rn_configs/cifar10_small.yaml"), help="default: %(default)s"
    )
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--keeps", nargs="+", type=float, default=[0.5, 0.3, 0.2, 0.1], help="default: %(default)s")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=[method for method in VARIANTS if method != FULL],
        default=["random", "ucb", "ucb_both"],
        help="beside full data; default: %(default)s",
    )
    parser.add_argument("--period", type=int, default=10, help="T_p, epochs; default: %(default)s")
    parser.add_argument(
        "--threads", type=int, default=max(1, usable_cores() - 1), help="of torch; default: all cores but one"
    )
    parser.add_argument(
        "--csv", type=Path, default=RESULTS / "speedup.csv", help="default: benchmarks/results/speedup.csv"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/speedup"), help="folder of the runs; default: %(default)s"
    )
    parser.add_argument("--redraw", action="store_true", help="only the table and the plot, from the CSV")
    args, overrides = parser.parse_known_args()
    csv_file, out = args.csv.resolve(), args.out.absolute()
    os.chdir(ROOT)  # the configs' paths are relative to it
    if not args.redraw:
        torch.set_num_threads(args.threads)
        base = ["--config", str(args.config), *overrides]
        run_all(plan(args.methods, args.keeps, args.repeats), base, args.period, out, csv_file)
    rows = list(read_rows(csv_file).values())
    if not rows:
        raise UserError(f"no run is in {csv_file} yet; leave --redraw away")
    text = summary(rows, draw(rows, csv_file.with_suffix(".svg")))
    csv_file.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}\n{csv_file.with_suffix('.md')}")


def plan(methods: Sequence[str], keeps: Sequence[float], repeats: int) -> list[Case]:
    """All runs, repeat by repeat; each repeat begins with another one, so that none is always first."""
    cases = [(FULL, 1.0), *((method, keep) for keep in keeps for method in methods)]
    return [
        Case(*cases[(place + repeat) % len(cases)], repeat) for repeat in range(repeats) for place in range(len(cases))
    ]


def run_all(cases: Sequence[Case], base: Sequence[str], period: int, out: Path, csv_file: Path) -> None:
    """Do the runs that have no row yet, on shared loaders, and add their rows."""
    made = {"base": " ".join(base), "period": period, "threads": torch.get_num_threads()}
    rows = read_rows(csv_file)
    for row in rows.values():
        for name, value in made.items():
            if row.get(name) != str(value):
                raise UserError(f"{csv_file} holds runs with {name} {row.get(name)}, not {value}; name another --csv")
    left = [(case, config.load([*base, *case.options(period, out)])) for case in cases if case.key not in rows]
    loaders: dict[object, Loaders] = {}
    compile_seconds: dict[object, float] = {}
    try:
        for i, (case, settings) in enumerate(left):
            own = settings_of(settings, World(choose_device(settings.train.device)))
            if own not in loaders:
                loaders[own] = Loaders(settings)
                compile_seconds[own] = warm_up([*base, *case.options(1, out)], loaders[own])
            print(f"\nrun {i + 1} of {len(left)}: {case.key}", flush=True)
            result = train(settings, loaders[own])
            with (result.folder / "log.jsonl").open(encoding="utf-8") as file:
                epochs = [json.loads(line) for line in file]
            facts = {"compile_seconds": round(compile_seconds[own], 3), "setup_seconds": result.seconds["setup"]}
            append_csv(csv_file, {"key": case.key, **made, **row_of(case, epochs, period), **facts, **machine_facts()})
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
        "samples": measured[-1]["samples_seen"] - before["samples_seen"],
        **{f"{name}_seconds": round(seconds[name], 4) for name in (*CHARGED, *NOT_CHARGED)},
        "accuracy": measured[-1]["test_accuracy"],
    }


def machine_facts() -> dict[str, Any]:
    return {name: ", ".join(value) if isinstance(value, list) else value for name, value in provenance().items()}


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


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """One line for each method and keep; repeats without a run on full data are left out."""
    full = {row["repeat"]: row for row in rows if row["method"] == FULL}
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        if row["repeat"] in full:
            groups.setdefault((row["method"], float(row["keep"])), []).append(row)
    lines = []
    for (method, keep), own in sorted(groups.items(), key=lambda group: (group[0][0] != FULL, -group[0][1])):
        speedups = [_seconds(full[row["repeat"]]) / _seconds(row) for row in own]
        ideals = [int(full[row["repeat"]]["samples"]) / int(row["samples"]) for row in own]
        lines.append(Line(method, keep, own, speedups, ideals))
    if not lines:
        raise UserError("no repeat has a run on full data yet, to compare with; go on with the benchmark")
    return lines


def spread(values: Sequence[float], digits: str) -> str:
    """Median (min–max); of one value, the value."""
    middle = f"{statistics.median(values):{digits}}"
    return middle if len(values) == 1 else f"{middle} ({min(values):{digits}}–{max(values):{digits}})"


def summary(rows: Sequence[Row], picture: Path) -> str:
    """The page: table, what it was measured with, and the plot."""
    head = ["method", "keep", *CHARGED, "epoch", "tests and saves", "speedup", "ideal", "share of ideal"]
    body = [
        [
            VARIANTS[line.method].label,
            f"{line.keep:g}",
            *(f"{line.seconds(phase):.3f}" for phase in CHARGED),
            f"{line.seconds(*CHARGED):.3f}",
            f"{line.seconds(*NOT_CHARGED):.3f}",
            spread(line.speedups, ".2f"),
            f"{statistics.median(line.ideals):.2f}",
            spread(line.shares, ".3f"),
        ]
        for line in lines_of(rows)
    ]
    first, repeats = rows[0], len({row["repeat"] for row in rows})
    compiled = [float(row["compile_seconds"]) for row in rows]
    machines = sorted({f"{row['cpu']}, {row['cores']} cores, torch {row['torch']}, {row['date'][:10]}" for row in rows})
    words = (
        f"Seconds of a mean epoch in a period of T_p = {first['period']}, medians of {repeats} interleaved repeats; "
        f"speedup and share: median (min–max). `{first['base']}`, torch threads: {first['threads']}. "
        f"Not charged: tests and saves, {statistics.median(compiled):.1f} s of compiling the loaders, once a process. "
        f"Measured on {'; '.join(machines)}."
    )
    return "\n\n".join(["# Speedup, end to end", markdown(head, body), words, f"![]({picture.name})"]) + "\n"


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Write the plot (SVG): the speedup and its share of the ideal, against keep."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    speedup, share = figure.subplots(1, 2)
    pruned = [line for line in lines_of(rows) if line.method != FULL]
    for method in dict.fromkeys(line.method for line in pruned):
        own = [line for line in pruned if line.method == method]
        keeps = [line.keep for line in own]
        for axes, values in ((speedup, [line.speedups for line in own]), (share, [line.shares for line in own])):
            middle = [statistics.median(v) for v in values]
            below = [m - min(v) for m, v in zip(middle, values, strict=True)]
            above = [max(v) - m for m, v in zip(middle, values, strict=True)]
            axes.errorbar(keeps, middle, [below, above], marker="o", capsize=3, label=VARIANTS[method].label)
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
