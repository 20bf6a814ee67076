"""The guards, alone and around every policy and each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune.errors import UserError
from ffcv_prune.methods import guards, policies
from ffcv_prune.methods.table import ScoreTable

N = 60
LABELS = np.repeat([0, 1, 3], [40, 15, 5])  # imbalanced, and class 2 has no sample

POLICIES = {
    "random": policies.Random(),
    "uncertainty": policies.Uncertainty(),
    "ema": policies.EMA(),
    "epsilon_greedy": policies.EpsilonGreedy(0.2),
    "ucb": policies.UCB(),
    "static": policies.Static(np.arange(N) % 7),
}
GUARDS = {
    "with_random": lambda policy: guards.WithRandom(policy, 0.5),
    "class_quota": lambda policy: guards.ClassQuota(policy, LABELS),
    "class_floor": lambda policy: guards.ClassQuota(policy, LABELS, floor=0.5),
    "loss_cap": lambda policy: guards.LossCap(policy, 0.1),
}


def rng(seed=0):
    return np.random.default_rng(seed)


def scored_table(n=N, seed=0):
    table, generator = ScoreTable(n), rng(seed)
    for _ in range(3):
        table.update(generator.gamma(1, 1, n).round(1))
    return table


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("names", [*itertools.product(GUARDS), *itertools.permutations(GUARDS, 2)], ids="+".join)
def test_every_combination_selects_k_different_candidates_and_repeats(policy, names):
    combined = POLICIES[policy]
    for name in names:
        combined = GUARDS[name](combined)
    table, some = scored_table(), np.arange(1, N, 2)
    for among, sizes in ((None, (1, 20, N)), (some, (1, 7, some.size))):
        for k in sizes:
            chosen = combined.select(table, k, rng(5), among)
            assert chosen.dtype == np.int64 and chosen.size == k
            assert (np.diff(chosen) > 0).all()
            assert np.isin(chosen, np.arange(N) if among is None else some).all()
            np.testing.assert_array_equal(chosen, combined.select(table, k, rng(5), among))


def test_guards_forward_what_the_policy_needs():
    for policy in (policies.Random(), policies.UCB()):
        assert guards.WithRandom(policy, 0.5).needs_scores == policy.needs_scores
        assert guards.ClassQuota(policy, LABELS).needs_scores == policy.needs_scores
        assert guards.LossCap(policy, 0.1).needs_scores
    assert guards.ClassQuota(guards.WithRandom(policies.UCB(), 0.5), LABELS).name == "ucb+random(0.5)+class_quota(1)"


@settings(deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any), st.data())
def test_proportional_quotas(counts, data):
    counts = np.array(counts)
    total = data.draw(st.integers(0, counts.sum()))
    quotas = guards.proportional_quotas(total, counts)
    exact = total * counts / counts.sum()
    assert quotas.sum() == total
    assert (quotas <= counts).all() and (np.abs(quotas - exact) < 1).all()
    # Nobody rounded down has a larger remainder than somebody rounded up.
    down, up = exact[quotas < exact] % 1, exact[quotas > exact] % 1
    assert down.size == 0 or up.size == 0 or down.max() <= up.min() + 1e-9


def test_a_full_quota_keeps_the_class_proportions_and_the_policy_within_each_class():
    table = scored_table()
    chosen = guards.ClassQuota(policies.EMA(), LABELS).select(table, 12, rng())
    assert np.bincount(LABELS[chosen]).tolist() == [8, 3, 0, 1]
    for label in (0, 1, 3):
        members = np.flatnonzero(label == LABELS)
        size = int((LABELS[chosen] == label).sum())
        own = policies.EMA().select(table, size, rng(), members)
        np.testing.assert_array_equal(chosen[LABELS[chosen] == label], own)


def test_quotas_are_shares_of_the_candidates():
    among = np.r_[np.arange(10), np.arange(40, 50)]  # ten of class 0, ten of class 1
    chosen = guards.ClassQuota(policies.EMA(), LABELS).select(scored_table(), 10, rng(), among)
    assert np.bincount(LABELS[chosen]).tolist() == [5, 5]


def test_a_floor_rescues_the_class_that_the_policy_would_lose():
    table = ScoreTable(N)
    table.update(np.where(LABELS == 0, 5.0, 1.0))  # class 0 has all the highest losses
    sizes = {}
    for floor in (0.0, 0.5, 1.0):
        chosen = guards.ClassQuota(policies.EMA(), LABELS, floor).select(table, 24, rng())
        sizes[floor] = np.bincount(LABELS[chosen], minlength=4).tolist()
    # floor 0.5: of 12 guaranteed places 8, 3, 0, 1; the other 12 go to the highest losses.
    assert sizes == {0.0: [24, 0, 0, 0], 0.5: [20, 3, 0, 1], 1.0: [16, 6, 0, 2]}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, N), st.floats(0, 1), st.integers(0, 50))
def test_no_class_falls_below_its_floor(k, floor, seed):
    chosen = guards.ClassQuota(policies.UCB(), LABELS, floor).select(scored_table(seed=seed), k, rng())
    counts = np.bincount(LABELS, minlength=4)
    least = guards.proportional_quotas(round(floor * k), counts)
    assert (np.bincount(LABELS[chosen], minlength=4) >= least).all()


def test_loss_cap_leaves_the_highest_latest_losses_out():
    table = ScoreTable(10)
    table.update(np.arange(10.0))
    assert guards.LossCap(policies.EMA(), 0.2).select(table, 3, rng()).tolist() == [5, 6, 7]


def test_loss_cap_gives_way_where_fewer_than_k_would_be_left():
    table = ScoreTable(10)
    table.update(np.arange(10.0))
    cap = guards.LossCap(policies.EMA(), 0.5)
    assert cap.select(table, 8, rng()).tolist() == list(range(8))
    assert cap.select(table, 10, rng()).tolist() == list(range(10))


def test_loss_cap_keeps_samples_never_scored():
    table = ScoreTable(4)
    table.update(np.array([1.0, 2.0, 3.0]), np.array([0, 1, 2]))
    assert guards.LossCap(policies.EMA(), 0.25).select(table, 3, rng()).tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    "make",
    [
        lambda: guards.WithRandom(policies.EMA(), 1.1),
        lambda: guards.WithRandom(policies.EMA(), float("nan")),
        lambda: guards.ClassQuota(policies.EMA(), LABELS, floor=-0.1),
        lambda: guards.ClassQuota(policies.EMA(), [-1, 0]),
        lambda: guards.ClassQuota(policies.EMA(), [0.0, 1.0]),
        lambda: guards.ClassQuota(policies.EMA(), []),
        lambda: guards.LossCap(policies.EMA(), 1.0),
    ],
)
def test_guards_refuse_parameters_out_of_range(make):
    with pytest.raises(UserError):
        make()


def test_labels_of_other_data_are_refused():
    with pytest.raises(UserError, match="60 labels for 61 samples"):
        guards.ClassQuota(policies.EMA(), LABELS).select(scored_table(61), 1, rng())
