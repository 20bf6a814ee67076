"""The recipes with ffcv-imagenet's settings: their keys, and what follows from these at each epoch and step.

Theirs are rn18_configs/rn18_16_epochs.yaml and rn18_88_epochs.yaml with train_imagenet.py, as of commit 4dd291a.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ffcv_prune import config
from ffcv_prune.training.loaders import ramp_side
from ffcv_prune.training.lr import LRSchedule

ROOT = Path(__file__).resolve().parent.parent
RAMPS = {16: (11, 13), 88: (65, 76)}  # epochs -> resolution.start_ramp, resolution.end_ramp
STEPS = 50  # an epoch

epochs = pytest.mark.parametrize("epochs", RAMPS)


def recipe(epochs: int) -> config.Config:
    return config.load(["--config", str(ROOT / "rn_configs" / f"rn18_ffcv_{epochs}.yaml")])


def changed(section: Any) -> dict[str, Any]:
    """The keys that are not at their default."""
    found = {key.name: (getattr(section, key.name), key.default) for key in fields(section)}
    return {name: value for name, (value, default) in found.items() if value != default}


@epochs
def test_their_keys(epochs: int) -> None:
    own = recipe(epochs)
    ramps = {16: (0.6875, 0.8125), 88: (0.738636, 0.863636)}
    assert changed(own.data) == {
        "train": "betons/imagenet/train.beton",
        "test": "betons/imagenet/val.beton",
        "augment": "random_resized_crop",
        "size": 192,
        "size_ramp": (160, 192, *ramps[epochs]),
        "test_size": 256,
        "test_flip": True,
        "test_ratio": 0.875,
    }
    assert changed(own.model) == {"name": "resnet18_blurpool"}
    assert changed(own.train) == {
        "epochs": epochs,
        "batch_size": 1024,
        "lr": 0.5,
        "nesterov": False,
        "weight_decay": 5e-5,
        "norm_decay": False,
        "label_smoothing": 0.1,
        "lr_schedule": "linear",
        "lr_milestones": (0.333333333, 0.666666667),  # of the file they begin from; a linear schedule has none
        "lr_factor": 0.1,
        "warmup_epochs": 2,
    }
    assert (own.train.momentum, own.train.amp, own.prune.name) == (0.9, "auto", "full")


@epochs
def test_the_side_of_each_epoch(epochs: int) -> None:
    start, end = RAMPS[epochs]

    def theirs(epoch: int) -> int:
        between = np.interp([epoch], [start, end], [160, 192])[0]
        return 160 if epoch <= start else 192 if epoch >= end else int(np.round(between / 32)) * 32

    found = [ramp_side(recipe(epochs).data.size_ramp, epoch, epochs) for epoch in range(epochs)]
    assert found == [theirs(epoch) for epoch in range(epochs)]


@epochs
def test_the_learning_rate_of_each_step(epochs: int) -> None:
    """In the warm-up, that of their next step; theirs begins at a ten thousandth of the highest, ours at 0."""

    def theirs(epoch: int, step: int) -> float:
        first, last = np.interp([epoch, epoch + 1], [0, 2, epochs], [1e-4 * 0.5, 0.5, 0])
        return float(np.interp(step, [0, STEPS], [first, last]))

    schedule = LRSchedule(recipe(epochs).train)
    for epoch in range(epochs):
        for step in range(STEPS):
            expected = theirs(epoch, step + (epoch < 2))
            assert schedule(epoch, step, STEPS) == pytest.approx(expected, rel=1e-9, abs=1e-4 if epoch < 2 else 1e-12)
