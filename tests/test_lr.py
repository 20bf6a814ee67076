"""Learning-rate schedules: the paper's milestones, scaling with the epochs, warm-up, number of steps."""

from __future__ import annotations

from itertools import pairwise

import pytest

from ffcv_prune.sections import Train
from ffcv_prune.training.lr import LRSchedule


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 0.1), (59, 0.1), (60, 0.02), (119, 0.02), (120, 0.004), (160, 0.0008), (199, 0.0008)],
)
def test_the_papers_schedule_divides_by_five_at_60_120_160(epoch: int, expected: float) -> None:
    assert LRSchedule(Train(lr=0.1, epochs=200))(epoch, 0, 390) == pytest.approx(expected)


def test_milestones_fall_on_the_first_step_at_or_after_the_fraction() -> None:
    for epochs in range(1, 301):
        schedule = LRSchedule(Train(lr=1.0, epochs=epochs, lr_factor=0.5))
        for tenths, factor in ((3, 0.5), (6, 0.25), (8, 0.125)):
            epoch, step = divmod(tenths * epochs, 10)  # exact integers: the milestone is epoch + step / 10
            assert schedule(epoch, step, 10) == pytest.approx(factor)
            before = (epoch, step - 1) if step else (epoch - 1, 9)
            if before[0] >= 0:
                assert schedule(*before, 10) == pytest.approx(2 * factor)


def test_the_number_of_steps_in_an_epoch_does_not_move_the_schedule() -> None:
    for shape in ("step", "cosine"):
        schedule = LRSchedule(Train(lr=0.1, epochs=10, lr_schedule=shape))
        assert schedule(4, 0, 1) == schedule(4, 0, 1000)
        assert schedule(4, 1, 2) == schedule(4, 500, 1000)


def test_cosine_falls_from_the_base_to_nearly_zero() -> None:
    schedule = LRSchedule(Train(lr=0.4, epochs=5, lr_schedule="cosine"))
    rates = [schedule(epoch, step, 100) for epoch in range(5) for step in range(100)]
    assert rates[0] == 0.4
    assert all(a > b for a, b in pairwise(rates))
    assert 0 < rates[-1] < 1e-4


def test_linear_falls_by_the_same_at_each_step() -> None:
    schedule = LRSchedule(Train(lr=0.4, epochs=5, lr_schedule="linear", warmup_epochs=1))
    rates = [schedule(epoch, step, 10) for epoch in range(1, 5) for step in range(10)]
    assert rates == pytest.approx([0.4 * (1 - i / 40) for i in range(40)])


@pytest.mark.parametrize("shape", ["step", "cosine", "linear"])
def test_warmup_is_linear_and_reaches_the_base(shape: str) -> None:
    schedule = LRSchedule(Train(lr=0.4, epochs=10, lr_schedule=shape, warmup_epochs=2))
    assert schedule(0, 0, 10) == pytest.approx(0.4 / 20)
    assert schedule(0, 9, 10) == pytest.approx(0.2)
    assert schedule(1, 9, 10) == pytest.approx(0.4)
    assert schedule(2, 0, 10) == pytest.approx(0.4)
