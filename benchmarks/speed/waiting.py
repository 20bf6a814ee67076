"""How long a training step takes where torch's threads wait by sleeping and not by spinning.

    python -m benchmarks.speed.waiting                5 repeats, idle and beside a busy process: 10 minutes
    python -m benchmarks.speed.waiting --redraw       the table again, without measuring

A small net trains on batches in memory, each time in a process of its own, with five settings. As torch has it,
threads spin for a while before they sleep. With OMP_WAIT_POLICY=PASSIVE they do not spin. In the others they
spin more briefly: `import ffcv_prune` has them check 1,000 times. All run on the machine as it is, and beside one or
more processes that only run. Nothing else may run on the machine. docs/speed.md says how to read the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.harness.machine import fresh_python, measured_with
from benchmarks.harness.rows import Results, benchmark, positive, rotated
from benchmarks.harness.tables import Row, groups, ratios, spread, table, values
from ffcv_prune.errors import UserError, run_command
from ffcv_prune.loading.arguments import usable_cores

TITLE = "Threads that wait"
SPINNING = "as torch has it"
# What a process does before it imports torch. GOMP_SPINCOUNT is GNU OpenMP's, and overrides the policy: how often a
# thread looks before it sleeps; 300,000 times where nothing is set.
POLICIES = {
    SPINNING: "os.environ.pop('GOMP_SPINCOUNT', None)",
    "passive": "os.environ.pop('GOMP_SPINCOUNT', None); os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'",
    **{f"looks {count:,} times": f"os.environ['GOMP_SPINCOUNT'] = '{count}'" for count in (1_000, 10_000, 100_000)},
}
COLUMNS = ("policy", "busy", "repeat", "steps", "seconds", "slowest_seconds")
SETTINGS = ("model", "batch_size", "threads", "seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="resnet_tiny", help="model.name; images of 32 x 32")
    parser.add_argument("--batch-size", type=positive, default=128, help="images")
    parser.add_argument("--threads", type=positive, default=usable_cores(), help="of torch")
    parser.add_argument("--seconds", type=positive, default=10, help="that a process trains")
    parser.add_argument("--busy", default="0,1", help="numbers of busy processes beside it, separated by commas")


def run(args: argparse.Namespace, results: Results) -> None:
    """Measure the cases that have no row yet, repeat by repeat."""
    if not all(busy.isdecimal() for busy in args.busy.split(",")):
        raise UserError(f"--busy={args.busy}: whole numbers, separated by commas")
    cases = [
        (policy, int(busy), repeat)
        for repeat in range(args.repeats)
        for busy in args.busy.split(",")
        for policy in rotated([*POLICIES], repeat)
    ]
    for policy, busy, repeat in results.left(cases, lambda row: (row["policy"], int(row["busy"]), int(row["repeat"]))):
        print(f"{policy}, {busy} busy processes, repeat {repeat}", flush=True)
        arguments = args.model, args.batch_size, args.threads, args.seconds
        code = (
            f"import os; {POLICIES[policy]}; import torch; from benchmarks.speed.waiting import train; train{arguments}"
        )
        with busy_processes(busy):
            found = json.loads(fresh_python(["-c", code]).splitlines()[-1])
        results.append([{"policy": policy, "busy": busy, "repeat": repeat} | found])


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes that only run."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


def train(model: str, batch_size: int, threads: int, seconds: float) -> None:
    """Print the steps that were made, the seconds of a mean step, and those of the slowest, as JSON."""
    import torch
    import torch.nn.functional as F

    from ffcv_prune.models import build_model

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net = build_model(model, 10, [0.5] * 3, [0.25] * 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    images = torch.randint(0, 256, (batch_size, 3, 32, 32), dtype=torch.uint8).to(memory_format=torch.channels_last)
    labels = torch.arange(batch_size) % 10

    def step() -> float:
        start = time.perf_counter()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    for _ in range(5):  # warms up
        step()
    made: list[float] = []
    while sum(made) < seconds or len(made) < 2:
        made.append(step())
    print(json.dumps({"steps": len(made), "seconds": statistics.mean(made), "slowest_seconds": max(made)}))


def summary(rows: Sequence[Row]) -> str:
    """The table, and what it was measured with."""
    lines = []
    for (busy,), own in groups(rows, "busy").items():
        by_policy = groups(own, "policy")
        for (policy,), of in by_policy.items():
            lines.append(
                {
                    "busy processes": busy,
                    "threads": policy,
                    "ms a step": spread(values(of, "seconds", 1000)),
                    "the slowest, ms": spread(values(of, "slowest_seconds", 1000)),
                    f"÷ {SPINNING}": spread(ratios(of, by_policy.get((SPINNING,), []), "seconds")),
                }
            )
    return f"{table(lines)}\n\nMean of the steps of a process. {measured_with(rows)}"


if __name__ == "__main__":
    run_command(lambda: benchmark(sys.modules[__name__]))
