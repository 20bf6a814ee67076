"""The learning rates of KAKURENBO beside a warm-up of the schedule."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest

from ffcv_prune import config
from ffcv_prune.methods.presets.kakurenbo import STEPS
from ffcv_prune.training.epoch import Stepper
from ffcv_prune.training.lr import LRSchedule
from ffcv_prune.training.trainer import train
from tests.betons import Beton, write_run

pytestmark = pytest.mark.usefixtures("unpainted")

EPOCHS, FRACTION = 6, 0.3


@pytest.mark.parametrize("warmup", [0.5, 1, 3])
def test_the_rate_is_raised_after_the_warm_up(
    warmup: float, beton: Beton, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the authors do. Epoch 0, which hides nothing, is never raised."""
    rates: list[float] = []
    original = Stepper.step

    def watched(self: Stepper, *arguments: object) -> None:
        original(self, *arguments)  # type: ignore[arg-type]
        rates.append(self.optimizer.param_groups[0]["lr"])

    monkeypatch.setattr(Stepper, "step", watched)
    prune = f"method: kakurenbo, fraction: {FRACTION}, confidence: 0"
    path = write_run(tmp_path / "run.yaml", beton, epochs=EPOCHS, prune=prune, run=f"out: {tmp_path / 'runs'}")
    schedule = [f"--train.warmup_epochs={warmup}", "--train.lr_schedule=linear"]
    made = config.load(["--config", str(path), *schedule])
    rows = [json.loads(line) for line in (train(made).folder / "log.jsonl").read_text().splitlines()]
    scheduled, n, expected = LRSchedule(made.train), len(beton), []
    for epoch, row in enumerate(rows):
        share = FRACTION * next((factor for start, factor in STEPS if epoch >= start * EPOCHS - 1e-9), 1.0)
        factor = n / (n - math.floor(share * n)) if epoch >= max(1, warmup) else 1.0
        expected += [factor * scheduled(epoch, step, row["steps"]) for step in range(row["steps"])]
    assert rates == pytest.approx(expected)
    if warmup == 3:
        assert all(a < b for a, b in pairwise(rates[: sum(row["steps"] for row in rows[:3])]))
    ends = [sum(row["steps"] for row in rows[: epoch + 1]) - 1 for epoch in range(EPOCHS)]
    assert [row["lr"] for row in rows] == pytest.approx([rates[end] for end in ends])
