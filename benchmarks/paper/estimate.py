"""How long a run will take on this machine, from a measurement of a few seconds on its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

from benchmarks.paper.grid import Run
from ffcv_prune.config import Config
from ffcv_prune.data.beton import check_beton
from ffcv_prune.loading.pipelines import stored_size
from ffcv_prune.machine import autocast
from ffcv_prune.models import build_model
from ffcv_prune.sections import Train
from ffcv_prune.training.epoch import Stepper, choose_amp_dtype, mean_loss
from ffcv_prune.training.world import choose_device, prepare

CLASSES = 10  # of the measured model: the head counts for nothing
MEASURE_SECONDS = 2.0
STEPS_AT_ONCE = 10  # on a GPU: to wait for it after each would cost a tenth of a small step


class Speed(NamedTuple):
    """Seconds an image, trained on and scored."""

    train: float
    score: float


def estimate(runs: Sequence[Run]) -> dict[str, float]:
    """Seconds that each run will take, by its key, with the static scores that it is the first to need.

    Raises:
        UserError: a data set is missing.
    """
    seconds, scored = {}, set()
    for run in runs:
        seconds[run.key] = _training(run.config)
        path = run.config.prune.values.get("scores", "")
        if run.scoring is not None and path not in scored and not Path(path).with_suffix(".json").exists():
            seconds[run.key] += _scores(run.scoring)
        scored.add(path)
    return seconds


def _training(config: Config) -> float:
    """Steps, scoring passes and tests, without compilation."""
    n, speed = _samples_and_speed(config)
    epochs = config.train.epochs
    seen = float(config.prune.samples_seen(epochs, n))
    values = config.prune.values
    if not config.prune.selector.has_fixed_size:  # InfoBatch: about half of the samples are below the mean
        seen *= 1 - 0.5 * values["ratio"] * values["delta"]
    tests = -(-epochs // config.train.eval_every) * check_beton(config.data.test).num_samples
    return seen * speed.train + (scoring_passes(config) * n + tests) * speed.score


def scoring_passes(config: Config) -> int:
    """Passes over all data that a run's selections take: none for static scores and for losses of training."""
    phases, epochs = config.prune.phases, config.train.epochs
    if not config.prune.makes_passes:
        return 0
    return sum(phases.selects(e, epochs) and phases.phase(e, epochs) == "method" for e in range(epochs))


def _scores(config: Config) -> float:
    model = replace(config.model, name=config.static.model or config.model.name)
    n, speed = _samples_and_speed(replace(config, model=model))
    return config.static.models * n * (config.static.epochs * speed.train + speed.score)


def _samples_and_speed(config: Config) -> tuple[int, Speed]:
    train = check_beton(config.data.train)
    side = config.data.size or stored_size(train)
    return train.num_samples, measure(config.model.name, side, config.train)


@cache
def measure(model_name: str, side: int, settings: Train) -> Speed:
    """Time steps and forward passes on random images that are already on the device."""
    device = choose_device(settings.device)
    prepare(device)
    at_once = STEPS_AT_ONCE if device.type == "cuda" else 1
    model = build_model(model_name, CLASSES, [0.5] * 3, [0.25] * 3).to(device)
    stepper = Stepper(model, settings, choose_amp_dtype(settings.amp, device))
    ids = torch.arange(settings.batch_size, device=device)
    images = torch.randint(0, 256, (len(ids), 3, side, side), dtype=torch.uint8, device=device)
    images = images.contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward() -> None:
        with autocast(device, stepper.amp_dtype):
            model(images)

    def seconds(work: Callable[[], None]) -> float:
        """An image; torch's timer warms up, and waits for the device after each statement."""
        names = {"work": work, "at_once": at_once}
        timer = Timer("for _ in range(at_once): work()", globals=names, num_threads=torch.get_num_threads())
        return timer.blocked_autorange(min_run_time=MEASURE_SECONDS).mean / (at_once * settings.batch_size)

    train = seconds(lambda: stepper.step(images, ids % CLASSES, ids, mean_loss, lr=1e-3))
    model.eval()
    return Speed(train, seconds(forward))


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``7 min`` or ``12 s``."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"
