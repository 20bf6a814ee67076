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

from ffcv_prune import PrunedLoader, Pruner, Schedule, policies
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.methods import guards
from ffcv_prune.methods.phases import infobatch_final
from ffcv_prune.methods.table import ScoreTable
from tests.betons import Beton
from tests.nets import SmallNet

N = 203
NAN = float("nan")


def rng(seed=0):
    return np.random.default_rng(seed)


def table_of(losses):
    """A table whose samples with a NaN were never scored."""
    table, losses = ScoreTable(len(losses)), np.array(losses, np.float32)
    scored = np.flatnonzero(~np.isnan(losses))
    if scored.size:
        table.update(losses[scored], scored)
    return table


def naive_infobatch(losses, draws, ratio):
    """(ids, weights), sample by sample. `draws` are handed out to those below the mean."""
    scored = [float(loss) for loss in losses if not math.isnan(loss)]
    ids, weights, draws = [], [], iter(draws)
    for i in range(len(losses)):
        below = bool(scored) and losses[i] < math.fsum(scored) / len(scored)
        if below and next(draws) < ratio:
            continue
        ids.append(i)
        weights.append(1 / (1 - ratio) if below else 1.0)
    return ids, weights


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.0, NAN]), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.3, 0.5, 0.9]),
    st.integers(0, 100),
)
def test_equals_the_rule_in_plain_python(losses, ratio, seed):
    table, policy = table_of(losses), policies.InfoBatch(ratio)
    ids = policy.select(table, table.n, rng(seed))
    weights = policy.weights(table, ids)
    expected_ids, expected_weights = naive_infobatch(table.last, rng(seed).random(table.n), ratio)
    assert ids.tolist() == expected_ids
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-6)
    assert (ids.dtype, weights.dtype) == (np.int64, np.float32)
    unbiased = policies.InfoBatch(ratio, unbiased=True).weights(table, ids)
    np.testing.assert_allclose(unbiased, np.array(expected_weights) * len(ids) / table.n, rtol=1e-6)


def test_candidates_are_held_against_the_mean_of_all():
    table, among = table_of([9.0, 9.0, 1.0, 2.0, 3.0, 6.0]), np.array([2, 3, 4, 5])
    kept = among[:3][rng(3).random(3) >= 0.5]  # the mean is 5
    chosen = policies.InfoBatch().select(table, 4, rng(3), among)
    assert chosen.tolist() == [*kept, 5]
    assert policies.InfoBatch().weights(table, chosen).tolist() == [2.0] * len(kept) + [1.0]


@pytest.mark.parametrize("losses", [[NAN] * 5, [0.1] * 5, [3.0], [NAN]], ids=["unscored", "equal", "one", "unscored 1"])
def test_without_differences_all_samples_are_kept_and_weigh_1(losses):
    table, policy = table_of(losses), policies.InfoBatch(0.9)
    ids = policy.select(table, table.n, rng())
    assert ids.tolist() == list(range(table.n))
    assert policy.weights(table, ids).tolist() == [1.0] * table.n


@pytest.mark.parametrize("ratio", [0.5, 0.3])
def test_the_expected_gradient_of_the_unbiased_form_is_the_full_one(ratio):
    """Exactly, over all 2^m outcomes of dropping; the original form gives n/|S| times as much."""
    torch.manual_seed(0)
    points, parameters = torch.randn(9, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    gradients = torch.func.vmap(torch.func.grad(lambda w, x: (w @ x).exp()), (None, 0))(parameters, points)  # [9, 4]
    table = table_of((points @ parameters).exp().tolist())
    below = np.flatnonzero(table.last < table.last.mean())
    assert 3 < below.size < 9
    expected, original = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for kept in itertools.product([False, True], repeat=below.size):
        chance = math.prod(1 - ratio if keep else ratio for keep in kept)
        ids = np.setdiff1d(np.arange(9), below[~np.array(kept)])
        for form, total in ((True, expected), (False, original)):
            weights = torch.from_numpy(policies.InfoBatch(ratio, unbiased=form).weights(table, ids)).double()
            scale = 1 if form else len(ids) / 9
            total += chance * scale * (weights[:, None] * gradients[ids]).mean(0)
    torch.testing.assert_close(expected, gradients.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(original, gradients.mean(0), rtol=1e-6, atol=0)


def test_each_sample_below_the_mean_is_kept_with_probability_1_minus_r():
    table, policy, generator, draws = table_of(np.arange(20.0)), policies.InfoBatch(0.3), rng(), 2000
    counts = sum(np.bincount(policy.select(table, 20, generator), minlength=20) for _ in range(draws))
    assert (counts[10:] == draws).all()
    assert (np.abs(counts[:10] - 0.7 * draws) < 4.5 * np.sqrt(draws * 0.21)).all()


@pytest.mark.parametrize("ratio", [-0.1, 1.0, NAN])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(UserError, match=r"outside \[0, 1\)"):
        policies.InfoBatch(ratio)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda policy: policies.WithRandom(policy, 0.5),
        lambda policy: guards.ClassQuota(policy, [0, 1]),
        lambda policy: guards.LossCap(policy, 0.1),
    ],
)
def test_no_guard_may_ask_it_for_a_number_of_samples(wrap):
    with pytest.raises(UserError, match="infobatch decides itself how many"):
        wrap(policies.InfoBatch())


def test_the_final_phase_begins_at_delta_of_the_epochs():
    for epochs, delta in ((200, 0.875), (10, 0.875), (100, 0.07), (1, 0.5), (7, 1.0)):
        final = infobatch_final(epochs, delta)
        assert [e >= epochs - final for e in range(epochs)] == [
            round(e - delta * epochs, 6) >= 0 for e in range(epochs)
        ]
    with pytest.raises(UserError, match="delta"):
        infobatch_final(10, 0)


# ---- in the loop of a user ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loader(beton: Beton) -> PrunedLoader:
    return PrunedLoader(beton.path, 16, score_pipelines(check_beton(beton.path)), with_ids=True)


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
        """Train for an epoch; or for `stop_after` steps of it, and return what a checkpoint would hold."""
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
    loop = Loop(Pruner.infobatch(fresh, epochs=8, ratio=0.6, seed=3))
    for epoch in range(8):
        known = np.array([loop.last.get(i, NAN) for i in range(N)], np.float32)
        loop.epoch(epoch)
        np.testing.assert_array_equal(loop.pruner.table.last, known)
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
    pruner = Pruner.infobatch(fresh, epochs=8)
    Loop(pruner).epoch(0)
    pruner.begin_epoch(1, SmallNet())
    weights = pruner.policy.weights(pruner.table, fresh.selection)
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
    pruner = Pruner.infobatch(fresh, epochs=8)
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
        loop, selections = Loop(Pruner.infobatch(fresh, epochs=4, seed=seed)), []
        for epoch in range(4):
            loop.epoch(epoch)
            selections.append(fresh.selection.tolist())
        return selections

    assert run(0) == run(0)
    assert run(0) != run(1)


@pytest.mark.parametrize("stop", [0, 2, 7])
def test_resuming_within_an_epoch_equals_never_having_stopped(fresh: PrunedLoader, stop: int) -> None:
    whole = Loop(Pruner.infobatch(fresh, epochs=8))
    for epoch in range(8):
        whole.epoch(epoch)

    fresh.set_selection(None)
    first = Loop(Pruner.infobatch(fresh, epochs=8))
    for epoch in range(stop):
        first.epoch(epoch)
    state = first.epoch(stop, stop_after=2)
    assert state is not None

    fresh.set_selection(None)
    second = Loop(Pruner.infobatch(fresh, epochs=8))
    second.pruner.load_state_dict(state)
    second.model, second.optimizer, second.weighted = first.model, first.optimizer, first.weighted
    for epoch in range(stop, 8):
        second.epoch(epoch)
    assert second.weighted == whole.weighted
    np.testing.assert_array_equal(second.pruner.table.last, whole.pruner.table.last)


def test_what_cannot_work_is_refused(fresh: PrunedLoader) -> None:
    with pytest.raises(UserError, match="infobatch decides itself how many samples it keeps: set keep=1"):
        Pruner(fresh, None, policies.InfoBatch(), keep=0.5, score_source="training")
    pruner = Pruner.infobatch(fresh, epochs=8)
    pruner.begin_epoch(0, SmallNet())
    with pytest.raises(UserError, match=r"no training losses came back.*batch_loss"):
        pruner.begin_epoch(1, SmallNet())
    ids = torch.arange(4)
    for losses, own in ((torch.tensor(1.0), ids), (torch.ones(3), ids), (torch.ones(4), ids.int())):
        with pytest.raises(UserError, match="reduction"):
            pruner.batch_loss(losses, own)
    with pytest.raises(UserError, match='unknown score source "trainin"; did you mean "training"'):
        Pruner(fresh, None, policies.InfoBatch(), keep=1.0, score_source="trainin")  # type: ignore[arg-type]
    other = Pruner(fresh, None, policies.Random(), schedule=Schedule(8, keep=1.0))
    with pytest.raises(UserError, match="another score source"):
        pruner.load_state_dict(other.state_dict())
    fresh.with_ids = False
    with pytest.raises(UserError, match="with_ids=True"):
        Pruner.infobatch(fresh, epochs=8)
