"""`total_steps` is the number of steps of a run, and a schedule over it ends with the run."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    PolynomialLR,
    SequentialLR,
)

from ffcv_prune import Pruner, TorchLoader
from ffcv_prune.errors import UserError
from tests.nets import SmallNet
from tests.plain_loop import EPOCHS, LENGTHS, LR, make_pruner, plain_run
from tests.test_torch_pages import run_page
from tests.torch_data import Coloured, N

FIXED: list[tuple[str, dict[str, Any]]] = [
    ("ucb", {"keep": 0.4, "period": 2, "warmup": 1, "final": 1, "final_mode": "full"}),
    ("ucb", {"keep": 0.3, "period": 3, "warmup": 2, "warmup_mode": "full", "random_share": 0.5}),
    ("random", {"keep": 0.5, "class_floor": 1, "period": 1}),
    ("static_random", {"keep": 0.2}),
    ("full", {}),
]


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize(("method", "parameters"), FIXED)
def test_the_steps_of_a_method_of_fixed_size_are_exact(method: str, parameters: Any, drop_last: bool) -> None:
    loader = TorchLoader(Coloured(), 16, num_workers=0, drop_last=drop_last, with_ids=True)
    score_loader = TorchLoader(Coloured(), 64, num_workers=0, shuffle=False, drop_last=False)
    pruner = Pruner(loader, score_loader, method, epochs=EPOCHS, amp_dtype=None, **parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        total = pruner.total_steps()
    assert total == len(plain_run(pruner)[0])


def test_the_steps_of_a_method_that_sizes_its_selections_are_at_most_so_many() -> None:
    pruner = make_pruner("infobatch")
    with pytest.warns(UserWarning, match="infobatch sizes its selections itself.*the most there can be.*by epochs"):
        total = pruner.total_steps()
    assert total == EPOCHS * (N // 16)
    assert len(plain_run(pruner)[0]) < total


def rates(make: Any) -> list[float]:
    """The learning rate of each step of a pruned run, and the one after the last."""
    pruner, model = make_pruner(), SmallNet()
    optimizer = SGD(model.parameters(), lr=LR)
    schedule = make(optimizer, pruner.total_steps())
    found = []
    for epoch in range(EPOCHS):
        pruner.begin_epoch(epoch, model)
        for images, labels, _ in pruner.loader:
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    assert len(found) == sum(LENGTHS)
    return [*found, optimizer.param_groups[0]["lr"]]


def test_schedules_of_torch_end_with_the_run() -> None:
    steps = sum(LENGTHS)
    *cosine, last, after = rates(lambda optimizer, total: CosineAnnealingLR(optimizer, T_max=total))
    assert last == pytest.approx(LR / 2 * (1 + math.cos(math.pi * (steps - 1) / steps)))
    assert after == pytest.approx(0, abs=1e-9) and len(cosine) == steps - 1
    assert rates(lambda optimizer, total: LinearLR(optimizer, 1.0, 0.1, total_iters=total))[-1] == pytest.approx(
        LR / 10
    )
    polynomial = rates(lambda optimizer, total: PolynomialLR(optimizer, total_iters=total))
    assert polynomial[-1] == 0 and polynomial[-2] == pytest.approx(LR / sum(LENGTHS))


def warm_up(optimizer: SGD, steps: int = 4) -> LinearLR:
    return LinearLR(optimizer, 0.25, total_iters=steps)


def warm_up_then_cosine(optimizer: SGD, total: int) -> SequentialLR:
    return SequentialLR(optimizer, [warm_up(optimizer), CosineAnnealingLR(optimizer, total - 4)], [4])


def warm_up_times_cosine(optimizer: SGD, total: int) -> ChainedScheduler:
    return ChainedScheduler([warm_up(optimizer), CosineAnnealingLR(optimizer, total)])


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # of SequentialLR's own call
def test_schedules_of_several_end_with_the_run() -> None:
    steps = sum(LENGTHS)
    found = rates(warm_up_then_cosine)
    assert found[:5] == pytest.approx([LR * part for part in (0.25, 0.4375, 0.625, 0.8125, 1)])
    assert found[-2] == pytest.approx(LR / 2 * (1 - math.cos(math.pi / (steps - 4)))) and found[-1] < 1e-9
    found = rates(warm_up_times_cosine)
    assert found[0] == pytest.approx(LR / 4)
    assert found[-2] == pytest.approx(LR / 2 * (1 - math.cos(math.pi / steps))) and found[-1] < 1e-9


def test_a_schedule_that_is_stepped_once_an_epoch_goes_by_epochs() -> None:
    pruner, model = make_pruner(), SmallNet()
    optimizer = SGD(model.parameters(), lr=LR)
    schedule = CosineAnnealingLR(optimizer, T_max=EPOCHS)
    for epoch in range(EPOCHS):
        pruner.begin_epoch(epoch, model)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(LR * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2)
        for _ in pruner.loader:
            optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


# What is built over a number of steps, and what check_schedule calls the schedule in it that ends them.
SCHEDULES: dict[str, tuple[Any, str]] = {
    "one cycle": (lambda optimizer, total: OneCycleLR(optimizer, 1.0, total_steps=total), "OneCycleLR"),
    "cosine": (CosineAnnealingLR, "CosineAnnealingLR"),
    "linear": (lambda optimizer, total: LinearLR(optimizer, 1.0, 0.0, total_iters=total), "LinearLR"),
    "polynomial": (lambda optimizer, total: PolynomialLR(optimizer, total), "PolynomialLR"),
    "warm-up, then cosine": (warm_up_then_cosine, "CosineAnnealingLR"),
    "warm-up times cosine": (warm_up_times_cosine, "CosineAnnealingLR"),
    "a sequence in a product": (
        lambda optimizer, total: ChainedScheduler([warm_up(optimizer), warm_up_then_cosine(optimizer, total)]),
        "CosineAnnealingLR",
    ),
}
TOTAL = sum(LENGTHS)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_length_of_a_schedule_is_checked(name: str) -> None:
    make, called = SCHEDULES[name]
    pruner = make_pruner()
    optimizer = SGD(SmallNet().parameters(), lr=LR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pruner.check_schedule(make(optimizer, TOTAL))
        pruner.check_schedule(make(optimizer, TOTAL // 2), TOTAL // 2)  # of an optimizer that steps every second batch
    unpruned = len(pruner.loader) * EPOCHS
    assert unpruned > TOTAL
    for total in (TOTAL + 1, unpruned):
        with pytest.warns(UserWarning, match=rf"^{called} ends after {total} steps, and the run has {TOTAL}: ") as said:
            pruner.check_schedule(make(optimizer, total))
        (warning,) = said
        assert "\n" not in str(warning.message) and warning.filename == __file__
    with pytest.raises(UserError, match=rf"^{called} ends after {TOTAL - 1} steps, and the run has {TOTAL}: "):
        pruner.check_schedule(make(optimizer, TOTAL - 1))


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_remedy_that_is_named_is_the_right_length(name: str) -> None:
    make, called = SCHEDULES[name]
    pruner = make_pruner()
    optimizer = SGD(SmallNet().parameters(), lr=LR)
    schedule = make(optimizer, TOTAL - 7)
    with pytest.raises(UserError) as error:
        pruner.check_schedule(schedule)
    argument, steps = str(error.value).split()[-1].split("=")
    while not hasattr(schedule, argument):
        schedule = schedule._schedulers[-1]
    assert type(schedule).__name__ == called and getattr(schedule, argument) + 7 == int(steps)


def test_a_last_schedule_that_the_run_does_not_reach_is_told() -> None:
    optimizer = SGD(SmallNet().parameters(), lr=LR)
    schedule = SequentialLR(optimizer, [warm_up(optimizer, 99), CosineAnnealingLR(optimizer, 20)], [99])
    with pytest.warns(UserWarning, match=f"CosineAnnealingLR begins after 99 steps, and the run has {TOTAL}: give"):
        make_pruner().check_schedule(schedule)


def test_nothing_is_said_of_a_schedule_or_a_run_whose_end_cannot_be_read() -> None:
    optimizer = SGD(SmallNet().parameters(), lr=LR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for schedule in (
            LambdaLR(optimizer, lambda step: 1 / (1 + step)),
            ConstantLR(optimizer),
            SequentialLR(optimizer, [warm_up(optimizer), ConstantLR(optimizer)], [4]),
            warm_up(optimizer),  # it stays at a rate above 0
            type("Restarting", (CosineAnnealingLR,), {})(optimizer, 5),
            None,
        ):
            make_pruner().check_schedule(schedule)
        make_pruner("infobatch").check_schedule(CosineAnnealingLR(optimizer, 5))


def test_one_cycle_ends_with_the_run_and_stops_beyond_it() -> None:
    schedules = []

    def make(optimizer: SGD, total: int) -> OneCycleLR:
        schedules.append(OneCycleLR(optimizer, max_lr=1.0, total_steps=total, pct_start=0.25))
        return schedules[0]

    *found, _ = rates(make)
    assert found[0] == pytest.approx(1 / 25) and max(found) == found[sum(LENGTHS) // 4 - 1] == pytest.approx(1.0)
    assert found[-1] == pytest.approx(1 / 25 / 1e4)  # of the last step
    with pytest.raises(ValueError, match="Tried to step"):
        schedules[0].step()


def test_schedules_of_hugging_face_end_with_the_run() -> None:
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    for name in ("linear", "cosine"):
        found = rates(
            lambda optimizer, total, name=name: transformers.get_scheduler(
                name, optimizer, num_warmup_steps=4, num_training_steps=total
            )
        )
        assert found[0] == 0 and found[4] == pytest.approx(LR) and found[-1] == pytest.approx(0, abs=1e-9)
        left = 1 / (sum(LENGTHS) - 4)  # of the way down, at the last step
        assert found[-2] == pytest.approx(LR * (left if name == "linear" else (1 - math.cos(math.pi * left)) / 2))


def test_a_schedule_of_timm_goes_by_epochs() -> None:
    pytest.importorskip("timm", reason="needs timm")
    from timm.scheduler import create_scheduler_v2

    pruner, model = make_pruner(), SmallNet()
    optimizer = SGD(model.parameters(), lr=LR)
    schedule, epochs = create_scheduler_v2(optimizer, "cosine", num_epochs=EPOCHS, cooldown_epochs=0)
    assert epochs == EPOCHS
    found = []
    for epoch in range(epochs):
        pruner.begin_epoch(epoch, model)
        for images, labels, _ in pruner.loader:
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step_update(len(found))
            found.append(optimizer.param_groups[0]["lr"])
        schedule.step(epoch + 1)
    expected = [LR * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2 for epoch in range(EPOCHS)]
    assert found == pytest.approx([rate for rate, length in zip(expected, LENGTHS, strict=True) for _ in range(length)])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_the_script_of_the_page_ends_at_its_last_rate(tmp_path: Path) -> None:
    assert run_page("schedulers", tmp_path) == "64 steps, at the end a rate of 0.000000\n"
