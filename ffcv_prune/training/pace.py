"""How fast a run is on this machine: measured for some seconds before it, and then by its own log."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import numpy as np
import torch

from ffcv_prune.config import Config
from ffcv_prune.machine import now
from ffcv_prune.protocols import Batch, SampleLoader
from ffcv_prune.pruner import Pruner
from ffcv_prune.scoring.forward import score_dataset
from ffcv_prune.training.clock import PHASES
from ffcv_prune.training.epoch import Stepper, evaluate, mean_loss

SECONDS = 2.0  # of training steps, about
FEWEST = 2  # steps that are measured, however long they take
PART_SECONDS = 1.0  # of a pass, of a test, about
MOST = 32  # batches of them
LEAST = 0.1  # of their mean seconds a sample, that are taken for a sample of a whole pass or test


@dataclass(frozen=True)
class Pace:
    """Seconds that this machine takes.

    Attributes:
        step: to train on a sample, with its loading.
        forward: to score a sample in a pass.
        proxy: to take a sample through the proxy net, with its share of that net's steps.
        test: for a whole test.
        epoch: for an epoch, whatever it trains on: the wait for its first batch, and what is in no phase.
        selection: to make a selection and begin with it, without a pass.
        compilation: that the first steps take more, which compile and allocate. So do those of a run on all data.
        first_checkpoint: to write the checkpoint that any run begins with; 0 until it is there.
        checkpoints: to write the others within a run, for each other second: they are written by time.
    """

    step: float
    forward: float = 0.0
    proxy: float = 0.0
    test: float = 0.0
    epoch: float = 0.0
    selection: float = 0.0
    compilation: float = 0.0
    first_checkpoint: float = 0.0
    checkpoints: float = 0.0


def measure(config: Config, stepper: Stepper, pruner: Pruner, test_loader: SampleLoader) -> Pace:
    """Measure what the run will do, on copies of what learns: the run is left as it is. For one process."""
    device = stepper.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # dropout
        own = Stepper(copy.deepcopy(stepper.model), config.train, stepper.amp_dtype, stepper.task)
        own.model.train()
        _, first_seconds, first_samples = _train(own, pruner.loader, 0.0)
        wait, seconds, samples = _train(own, pruner.loader, SECONDS)
        tested, amp_dtype, flip = stepper.tested, stepper.amp_dtype, config.data.test_flip

        def test(batches: int) -> int:
            some: Any = _First(test_loader, batches)
            evaluate(tested, some, stepper.task, amp_dtype, 0, flip)
            return cast(int, some.num_samples)

        of_test = _per_sample(test, device)
        forward, proxy = _scoring(stepper, pruner, 1 - config.save)
    step = seconds / samples
    return Pace(
        step=step,
        forward=forward,
        proxy=proxy,
        test=of_test * test_loader.num_samples,
        epoch=wait,
        compilation=max(0.0, first_seconds - first_samples * step),
    )


def of_log(rows: Sequence[Mapping[str, Any]], before: Pace) -> Pace:
    """The pace of a run by the lines of its log, at least one; `before`, its measurement, for what it has not done."""
    total = {phase: sum(row["seconds"][phase] for row in rows) for phase in rows[0]["seconds"]}
    cost, seen, epochs = rows[-1]["cost"], rows[-1]["samples_seen"], len(rows)
    tests = sum(any(row[name] is not None for name in row if name.startswith("test_")) for row in rows)
    waited = min(total["load"], before.epoch * epochs)
    selections = sum(row["selected"] for row in rows)
    selecting = total["select"] + total["swap"]
    if not cost["forwards"] and not cost["proxy_forwards"]:  # the losses of training were sorted in, without a pass
        selecting += total["score"]
    saves = max(0.0, total["save"] - before.first_checkpoint)
    rest = total["total"] - sum(total[phase] for phase in PHASES)
    return Pace(
        step=(total["load"] + total["train"] - waited) / seen if seen else before.step,
        forward=total["score"] / cost["forwards"] if cost["forwards"] else before.forward,
        proxy=total["score"] / cost["proxy_forwards"] if cost["proxy_forwards"] else before.proxy,
        test=total["eval"] / tests if tests else before.test,
        epoch=(waited + max(0.0, rest)) / epochs,
        selection=selecting / selections if selections else before.selection,
        compilation=before.compilation,
        first_checkpoint=before.first_checkpoint,
        checkpoints=saves / (total["total"] - total["save"]),
    )


def spent(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds since the first of these lines of a log began."""
    return sum(row["seconds"]["total"] for row in rows)


class _First:
    """A loader of the first batches of another, for what serves a whole data set."""

    def __init__(self, loader: SampleLoader, batches: int) -> None:
        self._loader, self._batches = loader, batches
        self.num_samples = min(loader.num_samples, batches * loader.batch_size)

    def batches(self, epoch: int) -> Iterator[Batch]:
        with closing(self._loader.batches(epoch)) as batches:
            yield from islice(batches, self._batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _train(own: Stepper, loader: SampleLoader, seconds: float) -> tuple[float, float, int]:
    """Train for so many seconds, for an epoch at most: the wait for the first batch, the seconds after, the samples."""
    start, samples = now(own.device), 0
    with closing(loader.batches(0)) as batches:
        for number, batch in enumerate(batches):
            if number == 0:
                begun = time.perf_counter()
            own.step(batch.inputs, batch.targets, batch.ids, mean_loss, lr=0.0)
            samples += len(batch.ids)
            if number + 1 >= FEWEST and time.perf_counter() - begun >= seconds:
                break
    return begun - start, now(own.device) - begun, samples


def _scoring(stepper: Stepper, pruner: Pruner, keep: float) -> tuple[float, float]:
    """Seconds of a sample in a scoring pass, and in one of the proxy net; 0 for what the method does not do.

    `keep`: the share that the proxy net trains on, about: which one, the plan will say.
    """
    loader, method, proxy = pruner.values.score_loader, pruner.method, copy.deepcopy(pruner.values.proxy)
    if loader is None or not method.makes_passes:
        return 0.0, 0.0
    if proxy is not None:
        window, stride = method.values["window"], method.values["stride"]

        def run(windows: int) -> int:
            some: Any = _First(loader, windows * stride)
            proxy.run(some, 0, keep, window, stride)
            return cast(int, some.num_samples)

        return 0.0, _per_sample(run, stepper.device)

    def score(batches: int) -> int:
        ids = np.arange(min(loader.num_samples, batches * loader.batch_size))
        score_dataset(
            stepper.model,
            loader,
            amp_dtype=stepper.amp_dtype,
            task=stepper.task,
            ids=ids,
            certainty=method.needs_certainty,
            gradients=True,
        )
        return len(ids)

    return _per_sample(score, stepper.device), 0.0


def _per_sample(work: Callable[[int], int], device: torch.device) -> float:
    """Seconds of a sample in what `work` does with so many batches; it returns how many samples they had.

    What a pass costs beside its samples, such as folding, is small in a whole one. So it is taken out: by the
    difference between one batch and many, where the data has two whole ones at least.
    """

    def timed(batches: int) -> tuple[float, int]:
        start = now(device)
        samples = work(batches)
        return now(device) - start, samples

    timed(1)  # compiles, allocates
    one, first = timed(1)
    many, last = timed(max(2, min(MOST, round(PART_SECONDS / one))))
    mean = many / last
    if last < 2 * first:
        return mean
    return min(max((many - one) / (last - first), LEAST * mean), mean)  # whatever the noise of `one`
