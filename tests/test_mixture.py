"""The mixture: planted groups come back, whatever the components are called, and every sample gets its label.

`./run test` runs this file, the fits too, in an environment of its own, which has PyMC but neither torch nor the rest
of the package's dependencies: import nothing here that needs them.
"""

from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest

from ffcv_prune.analysis import mixture
from ffcv_prune.analysis.mixture import GROUPS, RHAT_LIMIT, Mixture, bin_masses, fit_mixture
from ffcv_prune.errors import UserError


def plant(
    weights: list[float], means: list[float], deviations: list[float], selections: int, n: int
) -> tuple[np.ndarray, np.ndarray]:
    """Counts of n samples from truncated normals, by rejection, and the group of each."""
    rng = np.random.default_rng(0)
    groups = rng.choice(3, n, p=weights)
    counts = np.full(n, -1)
    while (open_ := np.flatnonzero((counts < 0) | (counts > selections))).size:
        drawn = rng.normal(np.array(means)[groups[open_]], np.array(deviations)[groups[open_]])
        counts[open_] = np.rint(drawn).astype(int)
    return counts, groups


def naive_mass(mean: float, deviation: float, selections: int, count: int) -> float:
    def below(x: float) -> float:
        return 0.5 * math.erfc((mean - x) / (deviation * math.sqrt(2)))

    return (below(count + 0.5) - below(count - 0.5)) / (below(selections + 0.5) - below(-0.5))


def test_the_mass_of_a_count_is_the_naive_one() -> None:
    means, deviations = np.array([0.0, 5.5, 12.0]), np.array([0.5, 4.0, 1.0])
    masses = bin_masses(means, deviations, 12)
    for i in range(3):
        expected = [naive_mass(means[i], deviations[i], 12, count) for count in range(13)]
        np.testing.assert_allclose(masses[i], expected, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(masses.sum(axis=1), 1)


def test_labels_shares_and_responsibilities_follow_from_the_draws() -> None:
    weights = np.array([[0.2, 0.5, 0.3], [0.4, 0.4, 0.2]])
    fit = Mixture(10, weights, np.array([[0.0, 5, 10]] * 2), np.array([[0.4, 1.5, 0.4]] * 2), 1.0)
    np.testing.assert_allclose(fit.masses().sum(axis=1), weights.mean(axis=0))
    np.testing.assert_allclose(fit.responsibilities().sum(axis=1), 1)
    assert [GROUPS[i] for i in fit.label(np.array([10, 0, 5, 0]))] == ["always", "never", "sometimes", "never"]
    mean, low, high = fit.shares(interval=1.0)[0]
    assert (mean, low, high) == pytest.approx((0.3, 0.2, 0.4))


def test_components_are_named_by_where_their_means_lie_not_by_their_order() -> None:
    """Three normals in one heap, as the fit makes of counts that have no groups; and two at the lower end."""
    counts = np.arange(31)
    heap = Mixture(30, np.full((2, 3), 1 / 3), np.array([[7.0, 9, 20]] * 2), np.full((2, 3), 2.5), 1.0)
    assert set(heap.label(counts)) == {1}
    assert heap.shares() == [pytest.approx(share) for share in ((0, 0, 0), (1, 1, 1), (0, 0, 0))]
    np.testing.assert_allclose(heap.masses().sum(axis=1), [0, 1, 0], atol=1e-12)
    pair = Mixture(30, np.full((2, 3), 1 / 3), np.array([[0.0, 2, 27.5]] * 2), np.full((2, 3), 0.8), 1.0)
    assert pair.shares()[0] == pytest.approx((2 / 3,) * 3)
    assert [GROUPS[i] for i in pair.label(np.array([0, 2, 27, 30]))] == ["never", "never", "always", "always"]
    # a wide normal that is cut at 0 has its mean further in than its peak
    wide = Mixture(30, np.full((2, 3), 1 / 3), np.array([[1.0, 15, 29]] * 2), np.full((2, 3), 12.0), 1.0)
    assert wide.groups.tolist() == [1, 1, 1]


def test_what_cannot_be_fitted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="too few"):
        fit_mixture(np.array([0, 1]), 2)
    for counts in ([11], [-1], []):
        with pytest.raises(UserError, match="between 0 and the 10"):
            fit_mixture(np.array(counts, dtype=np.int64), 10)

    importing = builtins.__import__

    def without_pymc(name: str, *rest: Any, **named: Any) -> Any:
        if name == "pymc":
            raise ImportError(name)
        return importing(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_pymc)
    with pytest.raises(UserError, match=r"ffcv_prune\[analysis\]"):
        fit_mixture(np.array([3, 4]), 10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "means", "deviations", "selections"),
    [
        ([0.3, 0.5, 0.2], [2, 30, 76], [3, 18, 3], 80),  # Fig. 3: four runs of 20 selections
        ([0.6, 0.3, 0.1], [0, 18, 40], [1, 8, 1], 40),
        ([0.05, 0.9, 0.05], [1, 25, 39], [1, 7, 1], 40),  # Fig. 7: almost only sometimes
    ],
)
def test_planted_mixtures_are_recovered(
    weights: list[float], means: list[float], deviations: list[float], selections: int
) -> None:
    pytest.importorskip("pymc")
    counts, groups = plant(weights, means, deviations, selections, n=20_000)
    fit = fit_mixture(counts, selections)
    assert fit.rhat < RHAT_LIMIT and fit.agrees
    for (mean, low, high), planted in zip(fit.shares(), np.bincount(groups) / len(groups), strict=True):
        assert mean == pytest.approx(planted, abs=0.02)
        assert low - 0.015 < planted < high + 0.015
    np.testing.assert_allclose(fit.means.mean(axis=0), means, atol=0.05 * selections)
    np.testing.assert_allclose(fit.deviations.mean(axis=0), deviations, rtol=0.25)
    labels = fit.label(counts)
    naive = np.array(
        [
            [w * naive_mass(m, d, selections, c) for w, m, d in zip(weights, means, deviations, strict=True)]
            for c in range(selections + 1)
        ]
    )
    best = naive.argmax(axis=1)[counts]
    assert np.mean(labels == best) > 0.95  # as good as who knows the planted parameters


@pytest.mark.slow
def test_a_static_selection_has_no_sometimes_samples() -> None:
    pytest.importorskip("pymc")
    fit = fit_mixture(np.repeat([0, 20], [7000, 3000]), 20)
    assert fit.label(np.array([0, 20])).tolist() == [0, 2]


@pytest.mark.slow
def test_the_same_seed_makes_the_same_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymc")
    monkeypatch.setattr(mixture, "TUNE", 100)
    monkeypatch.setattr(mixture, "DRAWS", 20)
    counts = np.arange(21)
    one, same, other = (fit_mixture(counts, 20, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.weights, same.weights)
    assert not np.array_equal(one.weights, other.weights)


@pytest.mark.slow
def test_chains_that_have_not_found_each_other_are_said_to_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymc")
    counts, _ = plant([0.3, 0.5, 0.2], [2, 30, 76], [3, 18, 3], 80, n=20_000)
    monkeypatch.setattr(mixture, "TUNE", 0)
    monkeypatch.setattr(mixture, "DRAWS", 40)
    fit = fit_mixture(counts, 80)
    assert fit.rhat > RHAT_LIMIT and not fit.agrees


@pytest.mark.slow
def test_counts_in_one_heap_have_no_never_and_no_always_samples() -> None:
    """The fit splits the heap in three, and 7 % of these were selected at most 3 of 30 times."""
    pytest.importorskip("pymc")
    rng = np.random.default_rng(0)
    counts = rng.binomial(30, rng.beta(6, 14, 20_000))
    assert np.mean(counts <= 3) > 0.05
    fit = fit_mixture(counts, 30)
    assert set(fit.label(counts)) == {1}
    assert fit.shares()[1][1] > 0.99
