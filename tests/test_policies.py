"""Every policy against its rule written in plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune.errors import UserError
from ffcv_prune.methods import policies
from ffcv_prune.methods.table import ScoreTable


def rng(seed=0):
    return np.random.default_rng(seed)


def scored_table(n, updates=3, seed=0, decimals=1):
    """A table after some updates with many tied losses."""
    table, generator = ScoreTable(n), rng(seed)
    for _ in range(updates):
        table.update(generator.gamma(1, 1, n).round(decimals))
    return table


def naive_top(scores, among, k):
    return np.sort(sorted(among, key=lambda i: (-scores[i], i))[:k])


def rankings(table):
    """Each ranking policy with the score that the paper gives it."""
    static = np.arange(table.n) % 5
    return [
        (policies.Uncertainty(), table.last),
        (policies.EMA(), table.mean),
        (policies.UCB(c=2.0), table.mean + np.float32(2) * table.var),
        (policies.UCB(c=0.0), table.mean),
        (policies.Static(static), static),
    ]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000), st.data())
def test_rankings_take_the_highest_scores_and_the_lower_id_on_ties(n, seed, data):
    table = scored_table(n, seed=seed)
    among = np.flatnonzero([data.draw(st.booleans()) for _ in range(n)])
    for policy, scores in rankings(table):
        k = data.draw(st.integers(1, n))
        np.testing.assert_array_equal(policy.select(table, k, rng()), naive_top(scores, range(n), k))
        if among.size:
            k = data.draw(st.integers(1, among.size))
            np.testing.assert_array_equal(policy.select(table, k, rng(), among), naive_top(scores, among, k))


def test_samples_never_scored_come_first():
    table = ScoreTable(5)
    table.update(np.array([9.0, 1.0, 5.0]), np.array([0, 2, 4]))
    for policy in (policies.Uncertainty(), policies.EMA(), policies.UCB()):
        assert policy.select(table, 3, rng()).tolist() == [0, 1, 3]


def test_ucb_prefers_variance_that_the_mean_does_not_show():
    table = ScoreTable(2)
    table.update([3.0, 1.0])
    table.update([2.0, 2.0])
    table.update([2.0, 1.9])
    table.var[:] = [0.0, 1.0]
    assert policies.EMA().select(table, 1, rng()).tolist() == [0]
    assert policies.UCB(c=1.0).select(table, 1, rng()).tolist() == [1]


def test_ucb_asks_a_subclass_for_its_scores():
    class Lowest(policies.UCB):
        def scores(self, table, among):
            return -super().scores(table, among)

    table = ScoreTable(4)
    table.update([3.0, 1.0, 4.0, 2.0])
    assert Lowest().select(table, 2, rng()).tolist() == [1, 3]
    assert Lowest().select(table, 2, rng(), np.arange(4)).tolist() == [1, 3]


def test_random_needs_no_scores_and_repeats_with_the_seed():
    table = ScoreTable(1000)
    policy = policies.Random()
    assert not policy.needs_scores
    first = policy.select(table, 300, rng(1))
    np.testing.assert_array_equal(first, policy.select(table, 300, rng(1)))
    assert (first != policy.select(table, 300, rng(2))).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.floats(0, 1), st.data())
def test_epsilon_greedy_exploits_and_explores_in_the_stated_numbers(n, epsilon, data):
    table = scored_table(n)
    k = data.draw(st.integers(1, n))
    explored = round(epsilon * k)
    chosen = policies.EpsilonGreedy(epsilon).select(table, k, rng())
    assert chosen.size == k and (np.diff(chosen) > 0).all()
    assert set(naive_top(table.mean, range(n), k - explored)) <= set(chosen)


def test_epsilon_greedy_explores_uniformly_what_it_does_not_exploit():
    table = ScoreTable(20)
    table.update(np.r_[np.full(5, 9.0), np.ones(15)])
    policy, generator, draws = policies.EpsilonGreedy(0.5), rng(), 2000
    counts = sum(np.bincount(policy.select(table, 10, generator), minlength=20) for _ in range(draws))
    assert (counts[:5] == draws).all()
    assert (np.abs(counts[5:] - draws / 3) < 4.5 * np.sqrt(draws * 2 / 9)).all()


def test_with_random_of_everything_scores_nothing():
    assert policies.WithRandom(policies.EMA(), 0.5).needs_scores
    assert not policies.WithRandom(policies.EMA(), 1.0).needs_scores
    assert not policies.WithRandom(policies.Static([1, 2, 3]), 0.5).needs_scores


@pytest.mark.parametrize("name", policies.POLICIES)
def test_build_makes_every_policy(name):
    scores = {"scores": [3, 1, 2]}
    params = {
        "static": scores,
        "static_epsilon_greedy": scores,
        "static_ucb": {"trials": [[3, 1, 2], [1, 1, 1]]},
        "static_random": {"n": 3},
    }.get(name, {})
    policy = policies.build(name, **params)
    assert policy.name == name
    table = scored_table(3)
    for k in (1, 3) if policy.fixed_size else (3,):
        assert 1 <= policy.select(table, k, rng()).size <= k
        assert policy.select(table, k, rng()).size == k or not policy.fixed_size


def test_build_hands_parameters_on():
    assert policies.build("ucb", c=2.5).c == 2.5
    assert policies.build("epsilon_greedy", epsilon=0.3).share == 0.3


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("ucbb", {}, 'unknown policy "ucbb"; did you mean "ucb"'),
        ("none", {}, "known: .*epsilon_greedy"),
        ("epsilon_greedy", {"epsilo": 0.1}, 'no parameter "epsilo"; did you mean "epsilon"'),
        ("random", {"c": 1.0}, "takes none"),
        ("static", {}, 'needs the parameter "scores"'),
        ("ucb", {"c": -1.0}, "≥ 0"),
        ("ucb", {"c": float("nan")}, "finite"),
        ("epsilon_greedy", {"epsilon": 1.5}, r"outside \[0, 1\]"),
        ("static", {"scores": [1.0, np.nan]}, "NaN"),
        ("static", {"scores": [[1.0]]}, "shape"),
        ("static_ucb", {"trials": [[1.0, 2.0]]}, "two models or more"),
        ("static_ucb", {"trials": [1.0, 2.0]}, "two models or more"),
    ],
)
def test_build_refuses_what_it_does_not_know(name, params, message):
    with pytest.raises(UserError, match=message):
        policies.build(name, **params)


def test_static_scores_of_other_data_are_refused():
    with pytest.raises(UserError, match="2 static scores for 3 samples"):
        policies.Static([1, 2]).select(scored_table(3), 1, rng())


@pytest.mark.parametrize("k", [0, 4])
def test_k_must_fit(k):
    with pytest.raises(UserError, match="out of 3"):
        policies.EpsilonGreedy().select(scored_table(10), k, rng(), np.array([1, 5, 6]))


@pytest.mark.parametrize("among", [[1, 0], [1, 1], [-1, 2], [2, 10], [0.0, 1.0], [[0, 1]]])
def test_candidates_must_be_ascending_samples(among):
    with pytest.raises(UserError, match="candidates"):
        policies.EpsilonGreedy().select(scored_table(10), 1, rng(), np.array(among))
