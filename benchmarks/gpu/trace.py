"""A trace of training with the loader, for a few steps: how long the device idles, and a file to look at.

Open it in https://ui.perfetto.dev: gaps of the compute stream, copies beside compute.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch.profiler import profile

from benchmarks.gpu.card import BUSY
from benchmarks.gpu.data import MIX
from benchmarks.gpu.loader import train_loader, training_step
from benchmarks.gpu.report import Report
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.step import activities, events_of
from ffcv_prune.machine import now

STEPS, WARM_UP = 20, 4
MOST_MB = 16.0


def run(setting: Setting, report: Report) -> None:
    device = setting.device
    loader = train_loader(setting, MIX, setting.spare, with_ids=True)
    step = training_step(setting, loader)

    def train(steps: int) -> None:
        while steps:
            for _, batch in zip(range(steps), loader, strict=False):
                step(*batch)
                steps -= 1
        now(device)

    train(WARM_UP)
    with profile(activities=activities(device)) as profiler:
        train(STEPS)
    loader.close()
    times = [(event.time_range.start, event.time_range.end) for event in events_of(profiler, device)]
    busy = covered(times) / (max(end for _, end in times) - min(start for start, _ in times))
    expected = BUSY if setting.expects else None
    report.figure("device busy while training", 100 * busy, "%", expected, f"{STEPS} steps; copies count as busy")
    path = setting.out / "trace.json.gz"
    profiler.export_chrome_trace(str(path))
    size = path.stat().st_size / 1e6
    report.check("trace written", size < MOST_MB, f"{path.name}, {size:.1f} MB of at most {MOST_MB:g}")


def covered(ranges: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals, in their unit."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(ranges):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
