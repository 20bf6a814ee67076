"""Accelerate takes the loaders and the pruner as they are; a run on it is the plain loop step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ffcv_prune import extras
from ffcv_prune.errors import UserError
from tests.nets import SmallNet
from tests.plain_loop import (
    EPOCHS,
    assert_same_weights,
    losses_of,
    make_optimizer,
    make_pruner,
    plain_run,
    run_ranks,
)

accelerate = pytest.importorskip("accelerate", reason="needs accelerate")


class Run:
    """A training loop as Accelerate's users write it."""

    def __init__(self, method: str = "ucb", workers: int = 0, distributed: bool = False, **parameters: Any) -> None:
        self.accelerator = accelerate.Accelerator(cpu=True)
        self.pruner = make_pruner(method, workers, distributed, **parameters)
        model = SmallNet()
        self.model, self.optimizer, loader = self.accelerator.prepare(model, make_optimizer(model), self.pruner.loader)
        assert loader is self.pruner.loader
        self.accelerator.register_for_checkpointing(self.pruner)
        self.steps: list[list[int]] = []

    def train(
        self, save_at: int = -1, folder: Path | None = None, after_step: Callable[[], None] = lambda: None
    ) -> None:
        for epoch in range(self.pruner.loader.next_epoch, EPOCHS):
            self.pruner.begin_epoch(epoch, self.accelerator.unwrap_model(self.model))
            self.model.train()
            for images, labels, ids in self.pruner.loader:
                losses = losses_of(self.model(images.to(self.accelerator.device)), labels.to(self.accelerator.device))
                self.accelerator.backward(self.pruner.batch_loss(losses, ids))
                self.optimizer.step()
                self.optimizer.zero_grad()
                after_step()
                self.steps.append(ids.tolist())
                if len(self.steps) == save_at:
                    self.accelerator.save_state(str(folder))


@pytest.mark.parametrize("method", ["ucb", "infobatch"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_is_the_plain_loop_step_by_step(method: str, workers: int) -> None:
    steps, weights = plain_run(make_pruner(method))
    run = Run(method, workers)
    run.train()
    assert run.steps == steps
    assert_same_weights(run.model.state_dict(), weights)


@pytest.mark.parametrize("method", ["ucb", "infobatch"])
@pytest.mark.parametrize("save_at", [3, 10, 13])
def test_a_run_goes_on_from_accelerates_own_state(method: str, save_at: int, tmp_path: Path) -> None:
    steps, weights = plain_run(make_pruner(method))
    Run(method).train(save_at, tmp_path / "state")
    run = Run(method)
    run.accelerator.load_state(str(tmp_path / "state"))
    run.train()
    assert run.steps == steps[save_at:]
    assert_same_weights(run.model.state_dict(), weights)


def test_an_old_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerate.Accelerator(cpu=True)
    monkeypatch.setattr(extras, "version", lambda package: "0.1")
    with pytest.raises(UserError, match=r"^accelerate is 0\.1, and must be >="):
        make_pruner()


RANK = """
import json, sys
from pathlib import Path
from torch.optim.lr_scheduler import CosineAnnealingLR
from tests.test_adapter_accelerate import Run

run = Run("random", keep=0.4, distributed=True)
schedule, rates = CosineAnnealingLR(run.optimizer.optimizer, run.pruner.total_steps()), []
def after_step():
    schedule.step()
    rates.append(schedule.get_last_lr()[0])
run.train(after_step=after_step)
(Path(sys.argv[1]) / f"{run.accelerator.process_index}.json").write_text(json.dumps([run.steps, rates]))
run.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_share_each_step(tmp_path: Path) -> None:
    (first, rates), (second, _) = run_ranks(RANK, tmp_path)
    expected, _ = plain_run(make_pruner("random", keep=0.4))
    assert [sorted(a + b) for a, b in zip(first, second, strict=True)] == [sorted(step) for step in expected]
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0)  # a schedule ends with the run
