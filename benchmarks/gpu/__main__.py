"""What must be known of a GPU first: python -m benchmarks.gpu COMMAND

tests     the tests that need a GPU
data      writes the files that the others read, into OUT/data; each writes what it lacks
step      a training step on a resident batch: images/s by precision and compilation
loader    what the loader delivers to the device, alone and to a model, by threads, and how images are stored
runs      whole runs: near their limits, compiled too, scoring, learning, SIGTERM and resuming
scoring   forward passes, folded or not, and the scoring pass
trace     a trace of training with the loader, and how busy the device is
all       all of these in this order, each in a process of its own

    python -m benchmarks.gpu all                                             no part begins after ten minutes
    python -m benchmarks.gpu all --small --device cpu --out runs/small       that it runs, not how fast

Each line says PASS or FAIL with its figure, and what was expected of the card beside it; it is in OUT/gpu.json and
OUT/gpu.md at once. docs/gpu.md says how to read the page.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.card import describe
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting, setting_of
from benchmarks.harness.machine import ROOT
from benchmarks.harness.rows import HelpFormatter
from ffcv_prune.errors import EXIT_TERMINATED, Arguments, run_command
from ffcv_prune.training.world import choose_device, prepare

PARTS = ("tests", "data", "step", "loader", "runs", "scoring", "trace")
LIMIT = 360.0  # seconds of a part of `all`
PATIENCE = 5.0  # seconds in which a part must end that is told to


def parse(words: list[str]) -> argparse.Namespace:
    parser = Arguments(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.add_argument("command", choices=(*PARTS, "all"))
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of data, runs and the page")
    parser.add_argument("--photographs", type=Path, default=Path("data/imagenet"), help="folder with train/CLASS/*")
    parser.add_argument("--cifar", type=Path, default=Path("data/cifar10"), help="folder with train/CLASS/* and test/")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--small", action="store_true", help="tiny data and nets: that it runs, not how fast")
    parser.add_argument("--minutes", type=float, default=10.0, help="all: begin no part after so many")
    return parser.parse_args(words)


def run_part(name: str, setting: Setting, report: Report) -> None:
    report.begin(name)
    with report.going_on(name):
        importlib.import_module(f"benchmarks.gpu.{name}").run(setting, report)


def run_all(words: list[str], minutes: float, setting: Setting) -> None:
    """Each part in a process of its own: what ends one, as an error of the device does, leaves the others."""
    begun = time.monotonic()
    for name in PARTS:
        start = time.monotonic()
        late = start - begun > 60 * minutes
        code = None if late else ended([sys.executable, "-m", "benchmarks.gpu", name, *words])
        if late or code not in (0, 1):  # otherwise it has written its lines itself
            report = Report(setting.out, describe(setting.device) | {"small": setting.small})
            if late:
                report.begin(name)
                report.skip("left out", f"{minutes:g} minutes have passed")
            else:
                report.part = name  # its lines stay
                why = f"ended after {LIMIT:g} s" if code is None else f"exit code {code}"
                report.check("ran to its end", False, why)
        print(f"{name}: {time.monotonic() - start:.0f} s, {time.monotonic() - begun:.0f} s in all", flush=True)


def ended(command: list[str]) -> int | None:
    """The exit code of a command; None for one that took too long and was ended, with all that it has begun."""
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
        try:
            return process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                process.terminate()  # it ends what it has begun in groups of their own
                with suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    args = parse(sys.argv[1:])
    device = choose_device(args.device)
    setting = setting_of(args, device)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # which ends what it has begun
    if args.command == "all":
        words = sys.argv[1:]
        words.remove("all")
        run_all(words, args.minutes, setting)
        report = Report(setting.out, describe(device) | {"small": args.small})
    else:
        prepare(device)
        report = Report(setting.out, describe(device) | {"small": args.small})
        run_part(args.command, setting, report)
    print(f"{len(report.failed)} failed; {report.path}, {report.path.with_suffix('.md')}")
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    run_command(main)
