"""InfoBatch in the loop of a user: weights, training losses, resuming. Its rule is in test_methods.py."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ffcv_prune import PrunedLoader, Pruner
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from tests.betons import Beton
from tests.nets import SmallNet

N = 203
NAN = float("nan")


def infobatch(loader: PrunedLoader, **options: Any) -> Pruner:
    return Pruner(loader, None, "infobatch", **({"epochs": 8} | options))


@pytest.fixture(scope="module")
def loader(beton: Beton) -> PrunedLoader:
    return PrunedLoader(beton.path, 16, pipelines=score_pipelines(check_beton(beton.path)), shuffle=True, with_ids=True)


@pytest.fixture
def fresh(loader: PrunedLoader) -> PrunedLoader:
    loader.with_ids = True
    loader.set_selection(None)
    loader.set_epoch(0)
    return loader


class Loop:
    """A user's own loop, which keeps a plain record of what it saw."""

    def __init__(self, pruner: Pruner, seed: int = 0) -> None:
        self.pruner = pruner
        self.model = SmallNet(seed=seed)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.last: dict[int, float] = {}
        self.weighted: list[float] = []

    def epoch(self, epoch: int, stop_after: int = 0) -> dict[str, Any] | None:
        """Train for an epoch; or for `stop_after` steps of it, and return what a checkpoint of it would hold."""
        self.pruner.begin_epoch(epoch, self.model)
        for b, (images, labels, ids) in enumerate(self.pruner.loader, 1):
            losses = F.cross_entropy(self.model(images), labels, reduction="none")
            loss = self.pruner.batch_loss(losses, ids)
            assert loss.dtype == torch.float32
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.weighted.append(loss.item())
            self.last |= dict(zip(ids.tolist(), losses.tolist(), strict=True))
            if b == stop_after:
                stored = io.BytesIO()
                torch.save(self.pruner.state_dict(), stored)
                stored.seek(0)
                return torch.load(stored, weights_only=True)
        return None


def test_selections_follow_the_losses_of_the_loop(fresh: PrunedLoader) -> None:
    loop = Loop(infobatch(fresh, ratio=0.6, seed=3))
    for epoch in range(8):
        known = np.array([loop.last.get(i, NAN) for i in range(N)], np.float32)
        loop.epoch(epoch)
        np.testing.assert_array_equal(loop.pruner.state.table.last, known)
        if epoch == 7:  # 0.875 * 8
            assert len(fresh.selection) == N and loop.pruner.mean_weight == 1
            continue
        below = known < np.nanmean(known, dtype=np.float64) if epoch else np.zeros(N, bool)
        assert set(np.flatnonzero(~below)) <= set(fresh.selection)
        kept = below[fresh.selection]
        assert loop.pruner.mean_weight == pytest.approx(np.where(kept, 2.5, 1).mean())
        assert (len(fresh.selection) == N) == (epoch == 0)
        assert len(fresh) == len(fresh.selection) // 16


def test_the_batch_loss_is_the_weighted_mean(fresh: PrunedLoader) -> None:
    pruner = infobatch(fresh)
    Loop(pruner).epoch(0)
    pruner.begin_epoch(1, SmallNet())
    assert pruner.state.selection is not None and pruner.state.selection.weights is not None
    weights = pruner.state.selection.weights
    ids = torch.from_numpy(fresh.selection[::2].copy())
    losses = torch.rand(len(ids), requires_grad=True)
    loss = pruner.batch_loss(losses, ids)
    loss.backward()
    torch.testing.assert_close(losses.grad, torch.from_numpy(weights[::2]) / len(ids))
    assert loss.item() == pytest.approx((losses.detach().numpy() * weights[::2]).mean())
    half = pruner.batch_loss(losses.detach().to(torch.bfloat16), ids)
    assert half.dtype == torch.float32


@pytest.mark.cuda
def test_no_batch_but_the_first_waits_for_the_device(fresh: PrunedLoader) -> None:
    pruner = infobatch(fresh)
    Loop(pruner).epoch(0)
    pruner.begin_epoch(1, SmallNet())
    ids = torch.from_numpy(fresh.selection[:16].copy())
    losses = torch.rand(16, device="cuda", requires_grad=True)
    pruner.batch_loss(losses, ids).backward()  # moves the weights and the buffer of losses
    torch.cuda.set_sync_debug_mode("error")
    try:
        pruner.batch_loss(losses, ids).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_same_seed_repeats_and_another_does_not(fresh: PrunedLoader) -> None:
    def run(seed: int) -> list[list[int]]:
        fresh.set_selection(None)
        loop, selections = Loop(infobatch(fresh, epochs=4, seed=seed)), []
        for epoch in range(4):
            loop.epoch(epoch)
            selections.append(fresh.selection.tolist())
        return selections

    assert run(0) == run(0)
    assert run(0) != run(1)


@pytest.mark.parametrize("stop", [0, 2, 7])
def test_resuming_within_an_epoch_equals_never_having_stopped(fresh: PrunedLoader, stop: int) -> None:
    whole = Loop(infobatch(fresh))
    for epoch in range(8):
        whole.epoch(epoch)

    fresh.set_selection(None)
    first = Loop(infobatch(fresh))
    for epoch in range(stop):
        first.epoch(epoch)
    state = first.epoch(stop, stop_after=2)
    assert state is not None

    fresh.set_selection(None)
    second = Loop(infobatch(fresh))
    second.pruner.load_state_dict(state)
    second.model, second.optimizer, second.weighted = first.model, first.optimizer, first.weighted
    for epoch in range(stop, 8):
        second.epoch(epoch)
    assert second.weighted == whole.weighted
    np.testing.assert_array_equal(second.pruner.state.table.last, whole.pruner.state.table.last)


def test_what_cannot_work_is_refused(fresh: PrunedLoader) -> None:
    with pytest.raises(UserError, match='"infobatch" has no parameter "keep"'):
        infobatch(fresh, keep=0.5)
    pruner = infobatch(fresh)
    pruner.begin_epoch(0, SmallNet())
    with pytest.raises(UserError, match=r"no training losses came back.*batch_loss"):
        pruner.begin_epoch(1, SmallNet())
    ids = torch.arange(4)
    for losses, own in ((torch.tensor(1.0), ids), (torch.ones(3), ids), (torch.ones(4), ids.int())):
        with pytest.raises(UserError, match="reduction"):
            pruner.batch_loss(losses, own)
    other = Pruner(fresh, None, "random", epochs=8, keep=1.0)
    with pytest.raises(UserError, match="another score source"):
        pruner.load_state_dict(other.state_dict())
    fresh.with_ids = False
    with pytest.raises(UserError, match="with_ids=True"):
        infobatch(fresh)
