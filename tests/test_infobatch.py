"""InfoBatch: the rule against plain Python, its expected gradient, and the loop of a user."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune import PrunedLoader, Pruner, methods
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.methods.selectors import DropBelowMean
from ffcv_prune.methods.weights import InverseProbability
from tests.betons import Beton
from tests.nets import SmallNet
from tests.rules import draw, samples_of

N = 203
NAN = float("nan")
LOSSES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.0, NAN]), min_size=1, max_size=40)


@settings(max_examples=80, deadline=None)
@given(LOSSES, st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.booleans(), st.integers(0, 100))
def test_infobatch_is_the_rule_in_plain_python(losses: list[float], ratio: float, unbiased: bool, seed: int) -> None:
    state = methods.build("infobatch", ratio=ratio, unbiased=unbiased, delta=1.0).start(
        len(losses), epochs=2, seed=seed
    )
    known = [i for i, loss in enumerate(losses) if not np.isnan(loss)]
    if known:
        state.record(np.array(known), np.float32([losses[i] for i in known]), epoch=0)
    selection = state.select(0)
    assert selection is not None and selection.weights is not None and selection.weights.dtype == np.float32
    mean = np.mean([losses[i] for i in known]) if known else -1.0
    draws, expected = iter(np.random.default_rng([seed, 0, 1]).random(len(losses))), {}
    for i, loss in enumerate(losses):
        below = loss < mean
        if not (below and next(draws) < ratio):
            expected[i] = 1 / (1 - ratio) if below else 1.0
    assert selection.ids.tolist() == list(expected)
    scale = len(expected) / len(losses) if unbiased else 1
    np.testing.assert_allclose(selection.weights, np.array(list(expected.values())) * scale, rtol=1e-6)


class Outcome(np.random.Generator):
    """A generator that keeps, of those that a draw decides on, the ones that are told to be kept."""

    def __init__(self, kept: tuple[bool, ...]) -> None:
        super().__init__(np.random.PCG64(0))
        self.kept = kept

    def random(self, size: int) -> np.ndarray:  # type: ignore[override]
        assert size == len(self.kept)
        return np.where(self.kept, 1 - 1e-9, 0.0)


@pytest.mark.parametrize("ratio", [0.5, 0.3])
@pytest.mark.parametrize("among", [None, np.array([0, 2, 3, 5, 6, 7, 8])])
def test_the_expected_gradient_of_the_unbiased_form_is_the_full_one(ratio: float, among: np.ndarray | None) -> None:
    """Exactly, over all 2^m outcomes of dropping; the original form gives n/|S| times as much."""
    torch.manual_seed(0)
    points, parameters = torch.randn(9, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    gradients = torch.func.vmap(torch.func.grad(lambda w, x: (w @ x).exp()), (None, 0))(parameters, points)  # [9, 4]
    samples, rule = samples_of((points @ parameters).exp().tolist()), DropBelowMean(ratio=ratio)
    candidates = samples.candidates(among)
    below = np.count_nonzero(samples.table.last[candidates] < samples.table.last.mean())
    assert 3 <= below < candidates.size
    expected, original = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for kept in itertools.product([False, True], repeat=below):
        chance = math.prod(1 - ratio if keep else ratio for keep in kept)
        drawn = rule.draw(samples, 1, Outcome(kept), among)
        probability = drawn.probabilities(candidates)[np.isin(candidates, drawn.ids)]
        for unbiased, total in ((True, expected), (False, original)):
            weights = InverseProbability(unbiased=unbiased).of(samples, drawn.ids, probability)
            scale = 1 if unbiased else len(drawn.ids) / 9
            total += chance * scale * (torch.from_numpy(weights).double()[:, None] * gradients[drawn.ids]).mean(0)
    for total in (expected, original):
        torch.testing.assert_close(total, gradients[candidates].sum(0) / 9, rtol=1e-6, atol=1e-7)


def test_candidates_are_held_against_the_mean_of_all() -> None:
    samples, among = samples_of([9.0, 9.0, 1.0, 2.0, 3.0, 6.0]), np.array([2, 3, 4, 5])
    drawn = draw(DropBelowMean(), samples, 4, 3, among)
    kept = among[:3][np.random.default_rng(3).random(3) >= 0.5]  # the mean of all is 5
    assert drawn.ids.tolist() == [*kept, 5]
    assert drawn.probabilities(among).tolist() == [0.5, 0.5, 0.5, 1.0]


@pytest.mark.parametrize(("epochs", "pruned"), [(20, 17), (90, 78), (100, 87), (200, 175), (8, 7)])
def test_infobatch_ends_on_all_data_with_weight_1(epochs: int, pruned: int) -> None:
    """As many pruned epochs as the authors have: 78 of 90."""
    state = methods.build("infobatch").start(50, epochs=epochs)
    state.record(None, np.arange(50, dtype=np.float32), epoch=0)
    for epoch in range(epochs):
        selection = state.select(epoch)
        assert selection is not None
        assert (selection.phase == "method") == (epoch < pruned)
        assert (selection.weights is None) == (selection.ids.size == 50) == (epoch >= pruned)


# ---- in the loop of a user ----------------------------------------------------------------------------------


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
        with pytest.raises(UserError, match=r"reduction|the ids are torch\.int32 \[4\]"):
            pruner.batch_loss(losses, own)
    other = Pruner(fresh, None, "random", epochs=8, keep=1.0)
    with pytest.raises(UserError, match="state is of method random, not infobatch"):
        pruner.load_state_dict(other.state_dict())
    fresh.with_ids = False
    with pytest.raises(UserError, match="with_ids=True"):
        infobatch(fresh)
