"""What goes wrong around a `TorchLoader`: its workers, its arguments, and what a data set says of itself."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ffcv_prune import TorchLoader
from ffcv_prune.errors import UserError
from tests import torch_data
from tests.torch_data import Coloured, N, WithTargets

BATCH = 16
HALF = np.arange(0, N, 2)


def make(num_workers: int = 0, **options: Any) -> TorchLoader:
    return TorchLoader(Coloured(change=torch_data.position), BATCH, num_workers, seed=3, **options)


def served(loader: TorchLoader) -> list[list[int]]:
    return [ids.tolist() for ids, _ in loader]


def where(loader: TorchLoader) -> tuple[int, int]:
    state = loader.state_dict()
    return state["epoch"], state["batch"]


def kill_a_worker() -> None:
    victim = multiprocessing.active_children()[0]
    assert victim.pid is not None
    with suppress(RuntimeError):  # torch's handler of SIGCHLD raises it wherever this process is
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()


@pytest.mark.parametrize("begin", [iter, lambda loader: loader.batches(1)])
def test_a_worker_that_dies_between_epochs_costs_no_epoch(begin: Callable[[TorchLoader], object]) -> None:
    """Defect: every iter() raised, and each of them skipped an epoch."""
    expected = make()
    loader = make(num_workers=2)
    assert served(loader) == served(expected)
    kill_a_worker()
    with pytest.raises(RuntimeError, match=r"exited unexpectedly|killed by signal"):
        begin(loader)
    assert where(loader) == (1, 0)
    assert served(loader) == served(expected)
    assert where(loader) == (2, 0)


@pytest.fixture
def no_start(monkeypatch: pytest.MonkeyPatch) -> Callable[[TorchLoader], None]:
    """Has an epoch of a loader not begin, as where no process can be started."""

    def fail(loader: DataLoader[Any]) -> None:
        raise OSError("Cannot allocate memory")

    def begin(loader: TorchLoader) -> None:
        with monkeypatch.context() as patch, pytest.raises(OSError, match="Cannot allocate memory"):
            patch.setattr(DataLoader, "__iter__", fail)
            iter(loader)

    return begin


def test_an_epoch_that_cannot_begin_is_still_the_next_one(no_start: Callable[[TorchLoader], None]) -> None:
    """Resumed in its midst, and with another selection from the epoch after it on."""
    stopped = make()
    batches = iter(stopped)
    next(batches)
    stopped.set_selection(HALF)
    state = stopped.state_dict()
    expected = [[ids.tolist() for ids, _ in batches], served(stopped)]
    loader = make()
    loader.load_state_dict(state)
    for _ in range(2):
        no_start(loader)
        assert where(loader) == (0, 1) and len(loader) == len(expected[0])
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    for one in (loader, resumed):
        assert [served(one), served(one)] == expected


def test_a_selection_made_after_an_epoch_that_could_not_begin_counts(no_start: Callable[[TorchLoader], None]) -> None:
    loader, expected = make(), make()
    no_start(loader)
    for one in (loader, expected):
        one.set_selection(HALF)
    assert [served(loader), served(loader)] == [served(expected), served(expected)]


def test_an_epoch_that_could_not_begin_leaves_the_one_before_behind(no_start: Callable[[TorchLoader], None]) -> None:
    loader = make()
    for _ in loader:
        break
    assert where(loader) == (0, 1)
    no_start(loader)
    assert where(loader) == (1, 0)


@pytest.mark.parametrize("factor", [0, 4])
def test_a_prefetch_factor_without_workers_is_refused(factor: int) -> None:
    """Defect: 0 was let through, and ended in torch's error at the first batch."""
    with pytest.raises(UserError, match="prefetch_factor needs workers: give num_workers of 1 or more, or leave"):
        make(prefetch_factor=factor)
    assert served(make(prefetch_factor=None, timeout=0, persistent_workers=False)) == served(make())


class OnDevice(WithTargets):
    def __init__(self, targets: Tensor) -> None:
        super().__init__()
        self.targets: Any = targets


@pytest.mark.parametrize(
    "targets",
    [
        torch.zeros(N, dtype=torch.int64, device="meta"),
        torch.zeros(N, requires_grad=True),
        torch.zeros(N, dtype=torch.bfloat16),
    ],
)
def test_targets_of_which_numpy_makes_no_array_are_no_labels(targets: Tensor) -> None:
    """Defect: the error was torch's own."""
    dataset = OnDevice(targets)
    loader = TorchLoader(dataset, BATCH, 0)
    assert loader.label_range is None
    np.testing.assert_array_equal(loader.labels, dataset.classes)  # read from the samples


@pytest.mark.cuda
def test_targets_on_a_gpu_are_labels() -> None:
    dataset = OnDevice(torch.arange(N, device="cuda") % 10)
    np.testing.assert_array_equal(TorchLoader(dataset, BATCH, 0).labels, np.arange(N) % 10)
