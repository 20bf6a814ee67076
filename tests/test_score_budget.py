"""The score budget: the rule against plain Python, the promise that every sample comes back, and the checkpoint."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune import PrunedLoader, Pruner, Schedule, policies
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.methods.budget import ScoreBudget, thresholds_of, urgency
from ffcv_prune.methods.guards import ClassQuota, LossCap
from ffcv_prune.methods.table import ScoreTable
from tests.betons import Beton
from tests.nets import SmallNet

N = 203


def make_table(n: int, passes: int, seed: int, never: int = 0) -> ScoreTable:
    """A table after some passes over random parts of the samples; the first `never` were in none."""
    rng = np.random.default_rng(seed)
    table = ScoreTable(n)
    for _ in range(passes):
        ids = np.flatnonzero(rng.random(n) < 0.7)
        ids = ids[ids >= never]
        if ids.size:
            table.update(rng.choice([0.5, 1.0, 1.5, 4.0], ids.size).astype(np.float32), ids)
    return table


def naive_urgency(table: ScoreTable, scores: np.ndarray, thresholds: np.ndarray) -> list[float]:
    scored = [i for i in range(table.n) if table.last_scored[i] >= 0]
    mean_var = sum(float(table.var[i]) for i in scored) / max(1, len(scored))
    urgencies = []
    for i in range(table.n):
        if table.last_scored[i] < 0:
            urgencies.append(math.inf)
            continue
        staleness = table.updates - int(table.last_scored[i])
        sigma = math.sqrt((float(table.var[i]) + mean_var) / 2)
        urgencies.append(sigma * math.sqrt(staleness) - abs(float(scores[i]) - float(thresholds[i])))
    return urgencies


def naive_choice(
    table: ScoreTable, policy: policies.Policy, k: int, share: float, revisit: int, among: list[int]
) -> list[int]:
    """The oldest, all without a loss, then the most urgent: by sorting, ties to the lower id."""
    scores, thresholds = thresholds_of(policy, table, k)
    urgencies = urgency(table, scores, thresholds)  # in float32, so that ties are the same
    oldest = sorted(among, key=lambda i: (table.last_scored[i], i))[: math.ceil(table.n / revisit)]
    chosen = set(oldest) | {i for i in among if table.last_scored[i] < 0}
    for i in sorted(set(among) - chosen, key=lambda i: (-urgencies[i], i)):
        if len(chosen) >= math.ceil(share * table.n - 1e-6):
            break
        chosen.add(i)
    return sorted(chosen)


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(1, 60),
    passes=st.integers(0, 4),
    never=st.integers(0, 5),
    seed=st.integers(0, 1000),
    keep=st.sampled_from([0.01, 0.3, 1.0]),
    budget=st.sampled_from([(0.1, 10), (0.3, 4), (0.5, 2), (0.5, 1000), (0.99, 3)]),
    part=st.booleans(),
)
def test_equals_the_rule_in_plain_python(
    n: int, passes: int, never: int, seed: int, keep: float, budget: tuple[float, int], part: bool
) -> None:
    table, policy = make_table(n, passes, seed, never), policies.UCB(c=2.0)
    k = max(1, round(keep * n))
    scores, thresholds = thresholds_of(policy, table, k)
    np.testing.assert_allclose(
        urgency(table, scores, thresholds), naive_urgency(table, scores, thresholds), rtol=1e-5, atol=1e-6
    )
    among = np.arange(n)[:: 2 if part else 1]
    before = table.state_dict()
    ids = ScoreBudget(*budget).choose(table, policy, k, among)
    assert ids.dtype == np.int64
    assert ids.tolist() == naive_choice(table, policy, k, *budget, among.tolist())
    for name in ("mean", "var", "last", "last_scored"):
        np.testing.assert_array_equal(getattr(table, name), before[name])


def naive_thresholds(scores: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> list[float]:
    """The lowest score chosen of each sample's class."""
    return [min((scores[i] for i in chosen if labels[i] == label), default=math.inf) for label in labels]


@pytest.mark.parametrize("floor", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("k", [3, 40, 90])
def test_thresholds_are_the_lowest_scores_selected(floor: float, k: int) -> None:
    rng = np.random.default_rng(k)
    labels = rng.integers(0, 4, 100)
    table = ScoreTable(100)
    table.update((rng.permutation(100) + 50 * labels).astype(np.float32))  # without ties; classes differ
    table.update(rng.permutation(100).astype(np.float32))
    policy = ClassQuota(policies.UCB(), labels, floor)
    scores, thresholds = thresholds_of(policy, table, k)
    np.testing.assert_array_equal(scores, policies.UCB().scores(table, None))
    chosen = policy.select(table, k, rng)
    # A sample of the class is selected if and only if it reaches the threshold.
    assert np.flatnonzero(scores >= thresholds).tolist() == chosen.tolist()
    lowest = naive_thresholds(scores, labels, chosen)
    assert all(thresholds[i] <= lowest[i] for i in range(100))


def test_a_random_share_does_not_count() -> None:
    table = ScoreTable(10)
    table.update(np.arange(10, dtype=np.float32))
    for policy, threshold in (
        (policies.EMA(), 6),
        (policies.WithRandom(policies.UCB(), 0.5), 8),
        (policies.EpsilonGreedy(0.25), 7),
        (policies.WithRandom(policies.Uncertainty(), 0.9), math.inf),
    ):
        assert set(thresholds_of(policy, table, 4)[1]) == {threshold}, policy.name


@pytest.mark.parametrize(("share", "revisit"), [(0.25, 4), (0.3, 7), (1.0, 1)])
def test_every_sample_is_scored_within_the_promised_checkpoints(share: float, revisit: int) -> None:
    rng = np.random.default_rng(0)
    n, budget, policy = 101, ScoreBudget(share, revisit), policies.UCB()
    table, scored = ScoreTable(n), []
    for _ in range(5 * revisit):
        ids = budget.choose(table, policy, 30, np.arange(n))
        # Losses that stay where they are but for noise: without the queue the easy ones would never come back.
        table.update((np.arange(n)[ids] + rng.normal(0, 0.1, ids.size)).astype(np.float32), ids)
        scored.append(set(ids.tolist()))
    assert len(scored[0]) == n
    assert all(len(ids) == math.ceil(share * n) for ids in scored[1:])
    for first in range(len(scored) - revisit + 1):
        assert set().union(*scored[first : first + revisit]) == set(range(n))


@pytest.mark.parametrize(
    ("share", "revisit", "message"),
    [
        (0.0, 10, "outside"),
        (1.1, 10, "outside"),
        (math.nan, 10, "outside"),
        (0.5, 0, "at least 1"),
        (0.3, 3, "set score_revisit=4 or more"),
    ],
)
def test_a_budget_that_cannot_be_is_refused(share: float, revisit: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ScoreBudget(share, revisit)


# ---- at the checkpoint --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaders(beton: Beton) -> tuple[PrunedLoader, PrunedLoader]:
    info = check_beton(beton.path)
    return (
        PrunedLoader(beton.path, 16, score_pipelines(info), with_ids=True),
        PrunedLoader(beton.path, 64, score_pipelines(info), shuffle=False, drop_last=False),
    )


def make_pruner(loaders: tuple[PrunedLoader, PrunedLoader], policy: policies.Policy, **options: Any) -> Pruner:
    for loader in loaders:
        loader.set_selection(None)
    loaders[0].set_epoch(0)
    defaults = {"keep": 0.3, "period": 1, "epochs": 8, "seed": 4, "score_budget": 0.4, "score_revisit": 4}
    return Pruner(*loaders, policy, **(defaults | options))


def test_a_pass_scores_its_budget_and_the_others_keep_their_statistics(
    loaders: tuple[PrunedLoader, PrunedLoader],
) -> None:
    pruner = make_pruner(loaders, policies.UCB())
    pruner.begin_epoch(0, SmallNet(seed=0))
    assert (pruner.table.last_scored == 0).all()
    before = pruner.table.mean.copy()
    pruner.begin_epoch(1, SmallNet(seed=1))
    scored = pruner.table.last_scored == 1
    assert np.count_nonzero(scored) == math.ceil(0.4 * N)
    np.testing.assert_array_equal(pruner.table.mean[~scored], before[~scored])
    assert (pruner.table.mean[scored] != before[scored]).all()
    assert loaders[1].traversal_order.selects_all  # as it was


def test_what_was_trained_on_takes_no_budget(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    pruner = make_pruner(loaders, policies.UCB(), score_source="both")
    pruner.begin_epoch(0, SmallNet(seed=0))
    trained = np.arange(0, 50)
    pruner.batch_loss(torch.full((50,), 9.0), torch.from_numpy(trained))
    pruner.begin_epoch(1, SmallNet(seed=1))  # the training losses are update 1, the pass is update 2
    assert np.flatnonzero(pruner.table.last_scored == 1).tolist() == trained.tolist()
    assert np.count_nonzero(pruner.table.last_scored == 2) == math.ceil(0.4 * N)


def run(pruner: Pruner, epochs: range) -> list[list[int]]:
    made = [pruner.begin_epoch(epoch, SmallNet(seed=epoch)) for epoch in epochs]
    return [checkpoint.ids.tolist() for checkpoint in made if checkpoint]


@pytest.mark.parametrize("guarded", [False, True])
def test_resuming_equals_never_having_stopped(loaders: tuple[PrunedLoader, PrunedLoader], guarded: bool) -> None:
    policy: policies.Policy = policies.UCB()
    if guarded:
        policy = ClassQuota(policies.WithRandom(policy, 0.5), loaders[0].labels, 0.8)
    expected = run(make_pruner(loaders, policy), range(6))
    pruner = make_pruner(loaders, policy)
    first = run(pruner, range(3))
    stored = io.BytesIO()
    torch.save(pruner.state_dict(), stored)
    stored.seek(0)
    resumed = make_pruner(loaders, policy)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert first + run(resumed, range(3, 6)) == expected


def test_what_has_no_threshold_is_refused(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    warm = Schedule(8, 1, keep=0.3, warmup=1, warmup_mode="full")
    for policy, options, message in (
        (policies.Random(), {}, "random needs no scoring pass"),
        (policies.Static(np.arange(N)), {}, "static needs no scoring pass"),
        (LossCap(policies.UCB(), 0.1), {}, "does not select by a threshold"),
        (policies.UCB(), {"score_source": "training", "schedule": warm}, "makes no scoring pass"),
        (policies.UCB(), {"score_budget": 0.2}, "set score_revisit=5 or more"),
    ):
        with pytest.raises(UserError, match=message):
            make_pruner(loaders, policy, **options)
