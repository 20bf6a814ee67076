"""Curve and saving against figures worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.payoff.curve import Curve, ahead, payoff

CURVE = Curve([1.0, 2.0, 4.0], [0.5, 0.7, 0.8])


def test_the_curve_is_linear_in_the_logarithm_of_the_cost() -> None:
    assert CURVE.accuracy_at(2.0) == pytest.approx(0.7)
    assert CURVE.accuracy_at(math.sqrt(2)) == pytest.approx(0.6)
    assert CURVE.cost_of(0.6) == pytest.approx(math.sqrt(2))
    assert CURVE.cost_of(0.8) == 4.0 and CURVE.cost_of(0.9) == 4.0 and CURVE.cost_of(0.1) == 1.0
    assert CURVE.beyond(0.81) and not CURVE.beyond(0.8)


def test_a_dearer_budget_that_ends_lower_counts_as_the_cheaper_one() -> None:
    curve = Curve([1.0, 2.0, 4.0], [0.5, 0.8, 0.7])
    assert curve.cost_of(0.8) == 2.0 and curve.accuracy_at(4.0) == 0.8


@given(st.lists(st.floats(0.1, 0.9), min_size=2, max_size=6), st.floats(0.1, 0.9))
def test_no_cheaper_cost_reaches_an_accuracy(accuracies: list[float], accuracy: float) -> None:
    curve = Curve([2.0**i for i in range(len(accuracies))], accuracies)
    cost = curve.cost_of(accuracy)
    if curve.costs[0] < cost and not curve.beyond(accuracy):
        assert curve.accuracy_at(cost) == pytest.approx(accuracy)
        assert curve.accuracy_at(cost * 0.999) <= accuracy + 1e-9


def test_saving_and_gain_are_paired_by_seed() -> None:
    """Half the work of full data at 0.7 in one seed, all of it in the other; a seed without a curve does not count."""
    shifted = Curve([1.0, 2.0, 4.0], [0.4, 0.6, 0.7])
    found = payoff({1: CURVE, 2: shifted}, {1: 1.0, 2: 2.0, 3: 1.0}, {1: 0.7, 2: 0.6, 3: 0.9})
    assert found.saving.mean == pytest.approx((0.5 + 0.0) / 2) and found.least == pytest.approx(0.0)
    assert found.gain.mean == pytest.approx((20.0 + 0.0) / 2)
    assert found.saving.freedom == 1 and found.beyond == 0
    assert found.saving_in_words() == "+25.00 ± 317.66"
    assert payoff({1: CURVE}, {1: 1.0}, {1: 0.85}).beyond == 1


def test_a_saving_beyond_the_curve_is_the_lower_end_of_its_interval() -> None:
    costs, high, low = {1: 1.0, 2: 2.0}, {1: 0.9, 2: 0.9}, {1: 0.7, 2: 0.3}
    curves = {1: CURVE, 2: CURVE}
    assert payoff(curves, {1: 2.0, 2: 2.0}, high).saving_in_words() == "at least +50.00"
    found = payoff(curves, costs, high)  # 0.75 and 0.5 at least
    assert found.saving_in_words(0.5) == "at least +50.00"  # 62.5 less 12.5, by Student's t of one degree
    found = payoff(curves, {1: 1.0, 2: 1.0}, low)  # 0.5, and 0 at most
    assert found.saving_in_words(0.5) == "at most +50.00"
    assert payoff({1: CURVE}, {1: 1.0}, {1: 0.9}).saving_in_words() == "at least +75.00, one run"
    assert payoff(curves, costs, {1: 0.9, 2: 0.3}).bound == "about "


def test_below_the_cheapest_budget_a_saving_is_a_bound() -> None:
    found = payoff({1: CURVE, 2: CURVE}, {1: 2.0, 2: 2.0}, {1: 0.3, 2: 0.3})
    assert (found.below, found.beyond, found.saving.mean) == (2, 0, -1.0)


def test_ahead_compares_with_full_data_that_cost_more() -> None:
    curves, costs = {1: CURVE, 2: CURVE}, {1: 1.0, 2: 1.5}
    found = ahead(curves, costs, {1: 0.75, 2: 0.85}, 0.5)  # against costs of 2 and 3
    at_three = 0.7 + 0.1 * math.log(1.5) / math.log(2)
    assert found.mean == pytest.approx(100 * (0.05 + 0.85 - at_three) / 2) and found.freedom == 1
    assert math.isnan(ahead(curves, {1: 1.0, 2: 2.1}, {1: 0.9, 2: 0.9}, 0.5).mean)  # a cost of 4.2 is not known
    assert ahead({1: CURVE}, {1: 3.0}, {1: 0.9}, 0.75).mean == pytest.approx(10)


@given(st.floats(1.0, 1.9), st.floats(0.55, 0.79), st.floats(0.3, 0.95))
def test_ahead_and_saving_agree(cost: float, accuracy: float, share: float) -> None:
    """Of one seed within the curve: it is ahead of what costs 1 / share where it saves more than 1 − share."""
    saving = payoff({1: CURVE}, {1: cost}, {1: accuracy}).saving.mean
    gap = ahead({1: CURVE}, {1: cost}, {1: accuracy}, share).mean
    if cost / share <= 4 and abs(gap) > 1e-6:
        assert (gap > 0) == (saving > 1 - share)
