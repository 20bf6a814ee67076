"""The score budget: the rule against plain Python, the promise that every sample comes back, and the pruner."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune import PrunedLoader, Pruner
from ffcv_prune.data.beton import check_beton
from ffcv_prune.errors import UserError
from ffcv_prune.loading.pipelines import score_pipelines
from ffcv_prune.methods.budget import ScoreBudget, urgency
from ffcv_prune.methods.guards import ClassFloor, Guarded, RandomShare
from ffcv_prune.methods.rule import Rule, Samples
from ffcv_prune.methods.selectors import EpsilonGreedy, TopK
from ffcv_prune.methods.statistics import Last, MovingMean, UpperBound
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


def naive_choice(samples: Samples, k: int, share: float, revisit: int, among: list[int]) -> list[int]:
    """The oldest, all without a loss, then the most urgent: by sorting, ties to the lower id."""
    table = samples.table
    scores, thresholds = TopK().thresholds(samples, k, None)
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
    samples = Samples(UpperBound(c=2.0), make_table(n, passes, seed, never))
    table, k = samples.table, max(1, round(keep * n))
    scores, thresholds = TopK().thresholds(samples, k, None)
    np.testing.assert_allclose(
        urgency(table, scores, thresholds), naive_urgency(table, scores, thresholds), rtol=1e-5, atol=1e-6
    )
    among = np.arange(n)[:: 2 if part else 1]
    before = table.state_dict()
    ids = ScoreBudget(*budget).choose(samples, TopK(), k, among)
    assert ids.dtype == np.int64
    assert ids.tolist() == naive_choice(samples, k, *budget, among.tolist())
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
    samples, rule = Samples(UpperBound(), table, labels), Guarded(ClassFloor(class_floor=floor), TopK())
    scores, thresholds = rule.thresholds(samples, k, None)
    np.testing.assert_array_equal(scores, samples.scores(None))
    chosen = rule.draw(samples, k, rng, None).ids
    # A sample of the class is selected if and only if it reaches the threshold.
    assert np.flatnonzero(scores >= thresholds).tolist() == chosen.tolist()
    lowest = naive_thresholds(scores, labels, chosen)
    assert all(thresholds[i] <= lowest[i] for i in range(100))


def test_a_random_share_does_not_count() -> None:
    table = ScoreTable(10)
    table.update(np.arange(10, dtype=np.float32))
    cases: list[tuple[Rule, float]] = [
        (TopK(), 6),
        (Guarded(RandomShare(random_share=0.5), TopK()), 8),
        (EpsilonGreedy(epsilon=0.25), 7),
        (Guarded(RandomShare(random_share=0.9), TopK()), math.inf),
    ]
    for rule, threshold in cases:
        for statistic in (Last(), MovingMean(), UpperBound()):
            assert set(rule.thresholds(Samples(statistic, table), 4, None)[1]) == {threshold}


@pytest.mark.parametrize(("share", "revisit"), [(0.25, 4), (0.3, 7), (1.0, 1)])
def test_every_sample_is_scored_within_the_promised_passes(share: float, revisit: int) -> None:
    rng = np.random.default_rng(0)
    n, budget, scored = 101, ScoreBudget(share, revisit), []
    samples = Samples(UpperBound(), ScoreTable(n))
    for _ in range(5 * revisit):
        ids = budget.choose(samples, TopK(), 30, np.arange(n))
        # Losses that stay where they are but for noise: without the queue the easy ones would never come back.
        samples.table.update((np.arange(n)[ids] + rng.normal(0, 0.1, ids.size)).astype(np.float32), ids)
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


# ---- in a pruner --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaders(beton: Beton) -> tuple[PrunedLoader, PrunedLoader]:
    info = check_beton(beton.path)
    return (
        PrunedLoader(beton.path, 16, pipelines=score_pipelines(info), shuffle=True, with_ids=True),
        PrunedLoader(beton.path, 64, pipelines=score_pipelines(info), shuffle=False, drop_last=False),
    )


def make_pruner(loaders: tuple[PrunedLoader, PrunedLoader], **options: Any) -> Pruner:
    for loader in loaders:
        loader.set_selection(None)
    loaders[0].set_epoch(0)
    defaults = {"keep": 0.3, "period": 1, "epochs": 8, "seed": 4, "score_budget": 0.4, "score_revisit": 4}
    return Pruner(*loaders, "ucb", **(defaults | options))  # type: ignore[arg-type]


def test_a_pass_scores_its_budget_and_the_others_keep_their_statistics(
    loaders: tuple[PrunedLoader, PrunedLoader],
) -> None:
    pruner = make_pruner(loaders)
    pruner.begin_epoch(0, SmallNet(seed=0))
    assert (pruner.state.table.last_scored == 0).all()
    before = pruner.state.table.mean.copy()
    pruner.begin_epoch(1, SmallNet(seed=1))
    scored = pruner.state.table.last_scored == 1
    assert np.count_nonzero(scored) == math.ceil(0.4 * N)
    np.testing.assert_array_equal(pruner.state.table.mean[~scored], before[~scored])
    assert (pruner.state.table.mean[scored] != before[scored]).all()
    assert len(loaders[1].selection) == N  # as it was


def test_what_was_trained_on_takes_no_budget(loaders: tuple[PrunedLoader, PrunedLoader]) -> None:
    pruner = make_pruner(loaders, score_source="both")
    pruner.begin_epoch(0, SmallNet(seed=0))
    trained = np.arange(0, 50)
    pruner.batch_loss(torch.full((50,), 9.0), torch.from_numpy(trained))
    pruner.begin_epoch(1, SmallNet(seed=1))  # the training losses are update 1, the pass is update 2
    assert np.flatnonzero(pruner.state.table.last_scored == 1).tolist() == trained.tolist()
    assert np.count_nonzero(pruner.state.table.last_scored == 2) == math.ceil(0.4 * N)


def run(pruner: Pruner, epochs: range) -> list[list[int]]:
    made = [pruner.begin_epoch(epoch, SmallNet(seed=epoch)) for epoch in epochs]
    return [swap.ids.tolist() for swap in made if swap]


@pytest.mark.parametrize("guarded", [False, True])
def test_resuming_equals_never_having_stopped(loaders: tuple[PrunedLoader, PrunedLoader], guarded: bool) -> None:
    guards = {"class_floor": 0.8, "random_share": 0.5} if guarded else {}
    expected = run(make_pruner(loaders, **guards), range(6))
    pruner = make_pruner(loaders, **guards)
    first = run(pruner, range(3))
    stored = io.BytesIO()
    torch.save(pruner.state_dict(), stored)
    stored.seek(0)
    resumed = make_pruner(loaders, **guards)
    resumed.load_state_dict(torch.load(stored, weights_only=True))
    assert first + run(resumed, range(3, 6)) == expected
