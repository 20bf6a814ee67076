"""The numba kernels against naive numpy twins, on ordinary and on degenerate input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ffcv_prune.errors import UserError
from ffcv_prune.methods.kernels import samples as selectors

FLOAT32 = st.floats(width=32, allow_nan=True, allow_infinity=True)
# A few values drawn often make ties; the full range brings extremes, denormals, both zeros, inf and NaN.
TIED = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3.4028235e38])
SCORES = hnp.arrays(np.float32, st.integers(1, 60), elements=TIED | FLOAT32)
MODERATE = settings(max_examples=150, deadline=None)


@pytest.mark.parametrize("k", [-1, 0, 5])
def test_k_outside_the_samples_is_refused(k):
    with pytest.raises(UserError, match=f"k = {k} out of 4"):
        selectors.random_subset(4, k, np.random.default_rng(0))


def naive_update(mean, var, losses, alpha):
    """One update of every sample, written with masks; the float32 operations are those of the formulas."""
    a, b = np.float32(alpha), np.float32(1 - alpha)
    first, good = np.isnan(mean), np.isfinite(losses)
    with np.errstate(over="ignore", invalid="ignore"):
        new_var = np.where(first, np.float32(0), b * var + a * (losses - mean) ** 2)
        new_mean = np.where(first, losses, a * losses + b * mean)
    return np.where(good, new_mean, mean), np.where(good, new_var, var)


def empty_table(n):
    return (
        np.full(n, np.nan, np.float32),
        np.zeros(n, np.float32),
        np.full(n, np.nan, np.float32),
        np.full(n, -1, np.int32),
    )


@MODERATE
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=FLOAT32))
def test_update_equals_the_formulas_bit_for_bit(passes):
    n = passes.shape[1]
    mean, var, last, _ = empty_table(n)
    tables = {threads: empty_table(n) for threads in (1, 3)}
    scattered = empty_table(n)
    ids = np.random.default_rng(n).permutation(n)
    last_scored = np.full(n, -1, np.int32)
    for update, losses in enumerate(passes):
        mean, var = naive_update(mean, var, losses, 0.8)
        good = np.isfinite(losses)
        last, last_scored = np.where(good, losses, last), np.where(good, update, last_scored)
        taken = ids[good[ids]]  # the kernels are handed finite losses only
        for threads, table in tables.items():
            whole, part = (losses, None) if good.all() else (losses[good], np.flatnonzero(good))
            selectors.update_statistics(table, whole, part, 0.8, update, max(1, min(threads, whole.size)))
        selectors.update_statistics(scattered, losses[taken], taken, 0.8, update, max(1, min(2, taken.size)))
    for table in (*tables.values(), scattered):
        for own, expected in zip(table, (mean, var, last, last_scored), strict=True):
            np.testing.assert_array_equal(own, expected)


@MODERATE
@given(SCORES, st.floats(0, 10, width=32))
def test_ucb_scores_equal_numpy(mean, c):
    var = np.abs(mean[::-1]).copy()
    with np.errstate(over="ignore", invalid="ignore"):
        expected = mean + np.float32(c) * var
    for threads in (1, min(2, mean.size)):
        np.testing.assert_array_equal(selectors.ucb_scores(mean, var, c, threads), expected)


@settings(deadline=None)
@given(st.integers(1, 30), st.data())
def test_random_subset_is_sorted_unique_and_from_the_candidates(n, data):
    k = data.draw(st.integers(1, n))
    candidates = np.arange(n) * 3 + 1
    seed = data.draw(st.integers(0, 100))
    positions = selectors.random_subset(n, k, np.random.default_rng(seed))
    assert positions.dtype == np.int64 and positions.size == k
    assert (np.diff(positions) > 0).all() and positions[0] >= 0 and positions[-1] < n
    chosen = selectors.random_subset(candidates, k, np.random.default_rng(seed))
    np.testing.assert_array_equal(chosen, candidates[positions])


def test_random_subset_is_uniform():
    rng = np.random.default_rng(0)
    draws = 4000
    counts = sum(np.bincount(selectors.random_subset(10, 3, rng), minlength=10) for _ in range(draws))
    expected, deviation = draws * 0.3, np.sqrt(draws * 0.3 * 0.7)
    assert (np.abs(counts - expected) < 4.5 * deviation).all()


@settings(deadline=None)
@given(st.sets(st.integers(0, 40)), st.data())
def test_difference_equals_numpy(candidates, data):
    candidates = np.array(sorted(candidates), np.int64)
    chosen = candidates[np.array([data.draw(st.booleans()) for _ in candidates], bool)]
    np.testing.assert_array_equal(selectors.difference(candidates, chosen), np.setdiff1d(candidates, chosen))


@settings(deadline=None)
@given(hnp.arrays(np.int64, st.integers(1, 30), elements=st.integers(0, 6)), st.data())
def test_group_by_label_equals_a_mask_for_each_class(labels, data):
    ids = np.flatnonzero([data.draw(st.booleans()) for _ in labels])
    groups = selectors.group_by_label(ids, labels)
    assert len(groups) == labels.max() + 1
    for label, group in enumerate(groups):
        np.testing.assert_array_equal(group, ids[labels[ids] == label])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 0], "hold 0 twice"),
        ([0, 4], "hold 4, but the samples are 0 to 3"),
        ([-1], "hold -1"),
        ([[0], [1]], "shape"),
        ([0.0], "float64"),
        (np.array([1], np.uint64), "uint64"),
    ],
)
def test_ids_that_are_no_samples_are_refused(ids, message):
    with pytest.raises(UserError, match=message):
        selectors.check_ids(np.array(ids), 4, "the ids")


def test_threads_grow_with_the_samples_only():
    assert selectors.default_threads(1) == selectors.default_threads(1_999_999) == 1
    assert selectors.default_threads(10**9) >= 1
