"""Cheaper scores: how far the selection agrees with that of a full scoring pass, what it costs, what accuracy it gives.

    python -m benchmarks.speed.agreement                              about an hour on one core; resumable
    python -m benchmarks.speed.agreement --methods ema_guarded        the same for guarded EMA: adds its rows
    python -m benchmarks.speed.agreement --redraw                     the table again, without training
    python -m benchmarks.speed.agreement --epochs 10 --period 2 --seeds 1 --csv glance.csv
    python -m benchmarks.speed.agreement --options "full pass;both, budget 0.3"       any of OPTIONS

CIFAR-10, resnet_tiny, keep 0.2, 30 epochs, T_p = 2, methods of paper/experiments/methods.yaml. Each option trains by
its own selections. At each of its selections a shadow also scores all samples with the same model, and keeps a table
of its own. The shadow does not affect the training, and its time is not counted. "training" needs a first loss of
every sample, from a warm-up on all data. So it is compared with a full pass of its own, which trains on as many
samples. docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from benchmarks.harness.machine import ROOT, measured_on
from benchmarks.harness.rows import Results, benchmark, positive
from benchmarks.harness.tables import Row, groups, mean_and_spread, table, values
from benchmarks.harness.training import SharedLoaders, write_once
from benchmarks.paper import grid
from ffcv_prune import PrunedLoader, Pruner, config, score_dataset
from ffcv_prune.analysis.intervals import correction, difference
from ffcv_prune.data.beton import check_beton, require_labels
from ffcv_prune.data.sources import Split
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.methods import Method
from ffcv_prune.methods.table import ScoreTable
from ffcv_prune.pruner import Swap
from ffcv_prune.training.loaders import Loaders
from ffcv_prune.training.loop import Trainer
from ffcv_prune.training.run_folder import RunFolder
from ffcv_prune.training.stop import StopSignals

TITLE = "Cheaper scores"
PASS, PASS_FULL_WARMUP = "full pass", "full pass, full warm-up"
OPTIONS: dict[str, dict[str, Any]] = {  # what the table calls it -> keys of the training config; "side": scored at
    PASS: {},
    "both": {"prune.score_source": "both"},
    "budget 0.5": {"prune.score_budget": 0.5},
    "budget 0.3": {"prune.score_budget": 0.3},
    "both, budget 0.3": {"prune.score_source": "both", "prune.score_budget": 0.3},
    "24 px": {"side": 24},
    "16 px": {"side": 16},
    "budget 0.3, 16 px": {"prune.score_budget": 0.3, "side": 16},
    PASS_FULL_WARMUP: {"prune.warmup_mode": "full"},
    "training": {"prune.score_source": "training", "prune.warmup_mode": "full"},
}
AGAINST = {"training": PASS_FULL_WARMUP}  # else PASS
MEASURED = (PASS, "both", "budget 0.3", "16 px", "budget 0.3, 16 px")
LARGEST_LOSS = 1.0  # points of accuracy
COLUMNS = (
    *("method", "option", "seed", "accuracy", "overlap", "overlap_min", "overlaps", "scored"),
    *("score_seconds", "total_seconds", "samples_seen"),
)
SETTINGS = ("data", "epochs", "keep", "period")


class Shadow:
    """Stands in a pruner's place in the trainer and, after each scored selection, makes the full pass beside it.

    Attributes:
        overlaps: of each scored selection, the share of what was chosen by score that a full pass chooses too.
        scored: of each, the share of the samples that the pruner's own pass scored.
        score_seconds: of the pruner's own scoring, in all.
    """

    def __init__(self, pruner: Pruner, loader: PrunedLoader, amp_dtype: torch.dtype | None, passes: bool) -> None:
        self.pruner, self.full_loader, self.amp_dtype, self.passes = pruner, loader, amp_dtype, passes
        self.table = ScoreTable(pruner.state.n, pruner.state.table.alpha)
        self.overlaps: list[float] = []
        self.scored: list[float] = []
        self.score_seconds = self.shadow_seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pruner, name)

    def begin_epoch(self, epoch: int, model: nn.Module) -> Swap | None:
        made = self.pruner.begin_epoch(epoch, model)
        if made is None or made.phase != "method":
            return made
        own = self.pruner.state.table
        self.score_seconds += made.score_seconds
        self.scored.append(np.count_nonzero(own.last_scored == own.updates - 1) / own.n if self.passes else 0.0)
        start = time.perf_counter()
        self.table.update(score_dataset(model, self.full_loader, amp_dtype=self.amp_dtype))
        k = self.pruner.method.kept(self.pruner.state.n, 0, self.pruner.state.epochs)
        self.overlaps.append(overlap(*(by_score(self.pruner.method, table, k) for table in (own, self.table))))
        self.shadow_seconds += time.perf_counter() - start
        return made


def by_score(method: Method, table: ScoreTable, k: int) -> NDArray[np.int64]:
    """What `method` chooses by score among k: without the part that is drawn at random, which tells nothing."""
    k -= round(method.values["random_share"] * k)
    return method.statistic.top(table, k, None)


def overlap(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """|A ∩ B| / k of two sets of k ids."""
    return np.intersect1d(a, b, assume_unique=True).size / a.size


def write_smaller(source: Path, side: int, path: Path) -> Path:
    """Write the images of a .beton once more, shrunk to side x side, raw, in the same order."""
    info = check_beton(source)
    loader = PrunedLoader(source, 1024, pipelines=score_pipelines(info), shuffle=False, drop_last=False)
    images = [
        cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        for batch, _ in loader
        for image in batch.permute(0, 2, 3, 1).numpy()  # [B, H, W, 3]
    ]
    return write_once(Split(require_labels(info)[1], lambda i: Image.fromarray(images[i]), str), path, workers=1)


def run_config(
    method: str, option: str, seed: int, args: argparse.Namespace, smaller: Mapping[int, Path]
) -> config.Config:
    """The training config of one run."""
    guard, keys = grid.methods()[method][0].guard, grid.methods()[method][1]
    phase = round(guard * args.epochs)
    settings: dict[str, Any] = {name: setting.text for name, setting in keys.items()}
    settings |= {
        "data.train": args.data / "train.beton",
        "data.test": args.data / "test.beton",
        "prune.keep": args.keep,
        "prune.period": args.period,
        "prune.warmup": phase,
        "prune.final": phase,
        "train.epochs": args.epochs,
        "run.seed": seed,
        "run.name": f"{method}_{option}_{seed}".replace(" ", "_"),
    }
    settings |= {name: value for name, value in OPTIONS[option].items() if name != "side"}
    if "side" in OPTIONS[option]:
        settings["data.score"] = smaller[OPTIONS[option]["side"]]
    arguments = [f"--{name}={value}" for name, value in settings.items()]
    return config.load(["--config", str(ROOT / "rn_configs" / "cifar10_small.yaml"), *arguments])


def run_one(settings: config.Config, loaders: Loaders, full_loader: PrunedLoader, out: Path) -> dict[str, Any]:
    """Train once under the shadow; return what was found."""
    with ExitStack() as stack:
        folder = stack.enter_context(closing(RunFolder.create(out, settings.run.name)))
        stop = stack.enter_context(StopSignals())
        trainer = Trainer(settings, loaders)
        passes = settings.prune.makes_passes
        trainer.pruner = shadow = Shadow(trainer.pruner, full_loader, trainer.stepper.amp_dtype, passes)
        start = time.perf_counter()
        trainer.run(folder, stop)
        rows = folder.rows
        seconds = time.perf_counter() - start - shadow.shadow_seconds - sum(row["seconds"]["eval"] for row in rows)
    if not shadow.overlaps:
        raise UserError("no scored selection in so few epochs: raise --epochs")
    return {
        "accuracy": rows[-1]["test_accuracy"],
        "overlap": statistics.mean(shadow.overlaps),
        "overlap_min": min(shadow.overlaps),
        "overlaps": " ".join(f"{value:.4f}" for value in shadow.overlaps),
        "scored": statistics.mean(shadow.scored),
        "score_seconds": shadow.score_seconds,
        "total_seconds": seconds,
        "samples_seen": rows[-1]["samples_seen"],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, default=Path("betons/cifar10"), help="folder")
    parser.add_argument("--methods", default="ucb_guarded", help="of benchmarks/paper's methods.yaml")
    parser.add_argument("--options", default=";".join(MEASURED), help="separated by ;")
    parser.add_argument("--keep", type=float, default=0.2, help="fraction kept")
    parser.add_argument("--period", type=positive, default=2, help="T_p, epochs")
    parser.add_argument("--epochs", type=positive, default=30, help="of each run")
    parser.add_argument("--seeds", type=positive, default=5, help="runs of each method and option")


def run(args: argparse.Namespace, results: Results) -> None:
    """Make the runs that have no row yet, seed by seed."""
    methods, options = args.methods.split(","), args.options.split(";")
    for method in methods:
        grid.find_method(method, "--methods")
    for option in options:
        if option not in OPTIONS:
            raise UserError(f'--options: unknown "{option}"; known: {"; ".join(OPTIONS)}')
    torch.set_num_threads(1)  # a second thread gains a net this small little, and makes its times noisy
    runs = [(method, option, seed) for seed in range(args.seeds) for method in methods for option in options]
    left = results.left(runs, lambda row: (row["method"], row["option"], int(row["seed"])))
    sides = {OPTIONS[option]["side"] for _, option, _ in left if "side" in OPTIONS[option]}
    with tempfile.TemporaryDirectory() as folder, SharedLoaders() as loaders:
        out = Path(folder)
        smaller = {side: write_smaller(args.data / "train.beton", side, out / f"{side}.beton") for side in sides}
        for method, option, seed in left:
            print(f"\n{method}, {option}, seed {seed}", flush=True)
            base, settings = (run_config(method, o, seed, args, smaller) for o in (PASS, option))
            found = run_one(settings, loaders.of(settings), loaders.of(base).score, out)
            results.append([{"method": method, "option": option, "seed": seed} | found])


def summary(rows: Sequence[Row]) -> str:
    """The Markdown table, mean ± standard deviation over the seeds, and which options are safe."""
    by_option = groups(rows, "method", "option")
    gaps = {
        (method, option): difference(_accuracies(own), _accuracies(by_option[method, AGAINST.get(option, PASS)]))
        for (method, option), own in by_option.items()
        if option not in (PASS, PASS_FULL_WARMUP) and (method, AGAINST.get(option, PASS)) in by_option
    }
    corrected = correction(gap.p(-LARGEST_LOSS) for gap in gaps.values())
    lines, safe = [], []
    for (method, option), own in by_option.items():
        label, gap = grid.find_method(method, "the table").label, gaps.get((method, option))
        if gap and gap.mean - gap.half_width(corrected.level) >= -LARGEST_LOSS:
            safe.append(f"{option} ({label})")
        line = {"method": label, "scores": option, "overlap": mean_and_spread(values(own, "overlap"), 3)}
        line["least"] = f"{min(values(own, 'overlap_min')):.3f}"
        line["share scored"] = f"{statistics.mean(values(own, 'scored')):.2f}"
        line["score, s"] = mean_and_spread(values(own, "score_seconds"), 1)
        line["total, s"] = mean_and_spread(values(own, "total_seconds"), 0)
        line["accuracy, %"] = mean_and_spread(values(own, "accuracy", 100))
        lines.append(line | {"against the pass": gap.in_words(corrected.level) if gap else ""})
    about = f"Mean ± standard deviation of {len({row['seed'] for row in rows})} seeds. {measured_on(rows)}"
    verdict = (
        f"Safe, no loss above {LARGEST_LOSS:g} points in the {corrected}: {'; '.join(safe) or 'none shown to be'}."
    )
    return f"{table(lines)}\n\n{about}\n\n{verdict}"


def _accuracies(rows: Sequence[Row]) -> dict[int, float]:
    """In percent, by seed."""
    return {int(row["seed"]): 100 * float(row["accuracy"]) for row in rows}


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
