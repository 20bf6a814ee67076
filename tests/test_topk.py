"""The radix select against a naive numpy twin, on ordinary and on degenerate scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ffcv_prune.errors import UserError
from ffcv_prune.methods.kernels.digits import KEY_BITS, score_keys
from ffcv_prune.methods.kernels.topk import BLOCK, top_k
from tests.test_selectors import FLOAT32, MODERATE, SCORES


def naive_top_k(scores, k):
    known = np.where(np.isnan(scores), np.inf, scores).astype(np.float64)
    return np.sort(np.lexsort((np.arange(scores.size), -known))[:k])


@MODERATE
@given(SCORES, st.data())
@example(np.array([np.nan], np.float32), None)
def test_top_k_equals_a_stable_sort_for_every_number_of_threads(scores, data):
    k = 1 if data is None else data.draw(st.integers(1, scores.size))
    expected = naive_top_k(scores, k)
    for threads in (1, 2, 3, 7):
        chosen = top_k(scores, k, threads)
        assert chosen.dtype == np.int64
        np.testing.assert_array_equal(chosen, expected)


@MODERATE
@given(SCORES, st.floats(0, 10, width=32), st.data())
def test_top_k_with_variances_is_that_of_the_sums(mean, c, data):
    var = np.abs(mean[::-1])
    with np.errstate(over="ignore", invalid="ignore"):
        sums = mean + np.float32(c) * var
    k = data.draw(st.integers(1, mean.size))
    for threads in (1, 3):
        np.testing.assert_array_equal(top_k(mean, k, threads, var, c), naive_top_k(sums, k))


@MODERATE
@given(hnp.arrays(np.float32, st.integers(1, 40), elements=FLOAT32, unique=True), st.data())
def test_top_k_follows_a_permutation_of_different_scores(scores, data):
    # −0 and +0, and NaN and +inf, are equal though unequal as bits: leave one of each pair.
    scores = np.unique(scores[np.isfinite(scores)] + np.float32(0))
    if scores.size == 0:
        return
    k = data.draw(st.integers(1, scores.size))
    permutation = np.array(data.draw(st.permutations(range(scores.size))))
    chosen = top_k(scores[permutation], k)
    np.testing.assert_array_equal(np.sort(permutation[chosen]), top_k(scores, k))


def test_top_k_on_many_samples_agrees_with_numpy_and_between_threads():
    rng = np.random.default_rng(0)
    scores = rng.gamma(1, 1, 100_003).astype(np.float32).round(3)  # rounded: thousands of ties
    for k in (1, 30_000, 100_002, 100_003):
        expected = naive_top_k(scores, k)
        for threads in (1, 2, 5):
            np.testing.assert_array_equal(top_k(scores, k, threads), expected)


def test_top_k_breaks_ties_between_threads_towards_the_lower_position():
    assert top_k(np.full(10, 2.5, np.float32), 6, threads=4).tolist() == [0, 1, 2, 3, 4, 5]


def test_top_k_takes_strided_and_read_only_scores_and_leaves_them_alone():
    scores = np.arange(20, dtype=np.float32)[::-2]
    scores.flags.writeable = False
    assert top_k(scores, 3).tolist() == [0, 1, 2]
    whole = np.arange(20, dtype=np.float32)
    whole.flags.writeable = False
    assert top_k(whole, 3).tolist() == top_k(whole, 3, var=whole, c=1.0).tolist() == [17, 18, 19]


@pytest.mark.parametrize("k", [-1, 0, 5])
def test_k_outside_the_samples_is_refused(k):
    with pytest.raises(UserError, match=f"k = {k} out of 4"):
        top_k(np.zeros(4, np.float32), k)


@MODERATE
@given(SCORES)
@pytest.mark.parametrize("dtype", [np.uint32, np.int64])
def test_keys_are_in_the_order_of_the_scores(dtype, scores):
    keys = np.full(scores.size + 1, 7, dtype)  # a buffer longer than the block
    score_keys(scores.view(np.uint32), keys)
    assert keys[-1] == 7
    own = keys[:-1].astype(object)
    assert all(0 < key < 2**KEY_BITS - 1 for key in own)  # room to lift a tie, and to lower the bar
    known = np.where(np.isnan(scores), np.inf, scores)
    np.testing.assert_array_equal(own[:, None] < own, known[:, None] < known)
    np.testing.assert_array_equal(own[:, None] == own, known[:, None] == known)


def test_keys_of_nan_are_those_of_infinity_whatever_its_sign_and_payload():
    bits = np.array([0x7F80_0000, 0x7F80_0001, 0x7FFF_FFFF, 0xFF80_0001, 0xFFFF_FFFF], np.uint32)
    keys = np.empty(bits.size, np.uint32)
    score_keys(bits, keys)
    assert np.unique(keys).size == 1


@pytest.mark.parametrize("n", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7])
@pytest.mark.parametrize("values", [[2.0], [0.0, -0.0, 1.0], [np.nan, np.inf, 3.0, -1.0]])
def test_top_k_splits_ties_at_any_place_of_any_block(n, values):
    scores = np.random.default_rng(n).choice(np.float32(values), n)
    for k in {1, 2, BLOCK // 2, *range(BLOCK - 2, min(BLOCK + 2, n)), n // 3, n // 2, n - 1, n}:
        expected = naive_top_k(scores, k)
        for threads in (1, 2, 3):
            np.testing.assert_array_equal(top_k(scores, k, threads), expected)
