"""Two runs of the referee side by side, each on a core of its own."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.harness.jobs import jobs_on
from benchmarks.payoff.grid import Case, Entry
from benchmarks.payoff.judge import Judged
from benchmarks.payoff.referee import measure
from ffcv_prune.config import Config
from ffcv_prune.errors import UserError
from ffcv_prune.training.world import choose_device


def two_cores(config: Config) -> list[int]:
    """Those that the runs of this config take; UserError: there are none, or the runs would share a GPU."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise UserError("this benchmark needs two cores: two runs are timed side by side")
    if choose_device(config.train.device).type != "cpu":
        raise UserError("two runs side by side would share the GPU; set train.device: cpu in the config of the grid")
    return cores


@contextmanager
def jobs_of(cores: Sequence[int]) -> Iterator[list[ProcessPoolExecutor]]:
    """A process for each core."""
    with ExitStack() as stack:
        yield [stack.enter_context(jobs_on([[core]])) for core in cores]


def runs_of(judged: Judged, sides: tuple[Entry, Entry], seed: int) -> tuple[Case, Case]:
    """Those of two entries with their best choices and this seed."""
    own, other = (Case(judged.condition, entry.name, str(judged.choice(entry)), seed) for entry in sides)
    return own, other


def key_of(judged: Judged, pair: tuple[Case, Case]) -> str:
    """Of all that decides both runs."""
    return " ".join(str(judged.grid.key(case)) for case in pair)


def side_by_side(
    cases: tuple[Case, Case], pools: Sequence[ProcessPoolExecutor], path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of two runs of the grid of this path, that begin at the same time; the first that fails ends both."""
    begun = [pool.submit(measure, case, path) for case, pool in zip(cases, pools, strict=True)]
    for done in as_completed(begun):
        done.result()
    own, other = (side.result() for side in begun)
    return own, other


def exchanged(ratios: Mapping[int, float]) -> list[float]:
    """The geometric means of two repeats each, an even one and the next, which have the cores exchanged.

    A core may be slower than the other for long, and would otherwise count as spread. One without the other is left
    out.
    """
    return [
        math.sqrt(ratios[even] * ratios[even + 1]) for even in sorted(ratios) if even % 2 == 0 and even + 1 in ratios
    ]
