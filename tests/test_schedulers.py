"""`total_steps` is the number of steps of a run, and a schedule over it ends with the run."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, PolynomialLR

from ffcv_prune import Pruner, TorchLoader
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
