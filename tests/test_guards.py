"""The guards around every selector and each other, in all orders, against plain Python."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune import methods
from ffcv_prune.errors import UserError
from ffcv_prune.methods.guards import (
    ClassFloor,
    Guard,
    Guarded,
    LossCap,
    RandomShare,
    proportional_quotas,
)
from ffcv_prune.methods.method import GUARDS
from ffcv_prune.methods.rule import Rule
from ffcv_prune.methods.selectors import EpsilonGreedy, TopK, Uniform
from ffcv_prune.methods.statistics import MovingMean
from tests.rules import draw, samples_of

NAN = float("nan")
N = 60
LABELS = np.repeat([0, 1, 3], [40, 15, 5])  # imbalanced, and class 2 has no sample
SELECTORS = (TopK(), EpsilonGreedy(epsilon=0.2), Uniform())
ORDERS = [
    order
    for floor in (0.5, 1.0)
    for size in (1, 2, 3)
    for order in itertools.permutations(
        (RandomShare(random_share=0.5), LossCap(loss_cap=0.1), ClassFloor(class_floor=floor)), size
    )
]


def around(rule: Rule, *guards: Guard) -> Rule:
    """The last of the guards is the outermost."""
    for guard in guards:
        rule = Guarded(guard, rule)
    return rule


def naive_quotas(total: int, counts: list[int]) -> list[int]:
    exact = [Fraction(total * count, sum(counts)) for count in counts]
    quotas = [int(share) for share in exact]
    for i in sorted(range(len(counts)), key=lambda i: (quotas[i] - exact[i], i))[: total - sum(quotas)]:
        quotas[i] += 1
    return quotas


def naive_draw(losses: list[float], k: int, among: list[int], *guards: Guard) -> list[int]:
    """What top k with loss caps and class floors around it draws. NaN: no loss yet, selected first, never capped."""
    if not guards:
        return sorted(sorted(among, key=lambda i: (not np.isnan(losses[i]), -losses[i], i))[:k])
    *inner, outer = guards
    if isinstance(outer, LossCap):
        stay = max(k, len(among) - round(outer.loss_cap * len(among)))
        low_first = sorted(among, key=lambda i: (-1.0 if np.isnan(losses[i]) else losses[i], i))
        return naive_draw(losses, k, sorted(low_first[:stay]), *inner)
    assert isinstance(outer, ClassFloor)
    classes = [[i for i in among if LABELS[i] == label] for label in range(4)]
    quotas = naive_quotas(round(outer.class_floor * k), [len(members) for members in classes])
    chosen = []
    for quota, members in zip(quotas, classes, strict=True):
        chosen += naive_draw(losses, quota, members, *inner) if quota else []
    rest = sorted(set(among) - set(chosen))
    return sorted(chosen + (naive_draw(losses, k - len(chosen), rest, *inner) if k > len(chosen) else []))


@st.composite
def draws(data: st.DrawFn) -> tuple[list[float], int, np.ndarray | None]:
    """(losses with ties and gaps, k, among): k is 1, all candidates or between."""
    losses = data(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.0, NAN]), min_size=N, max_size=N))
    among = data(st.none() | st.sets(st.integers(0, N - 1), min_size=1).map(lambda ids: np.array(sorted(ids))))
    most = N if among is None else among.size
    return losses, data(st.just(1) | st.just(most) | st.integers(1, most)), among


@settings(max_examples=200, deadline=None)
@given(draws(), st.sampled_from(SELECTORS), st.sampled_from(ORDERS), st.integers(0, 99))
def test_guards_in_any_order_draw_k_candidates_and_repeat(
    drawn: tuple[list[float], int, np.ndarray | None], selector: Rule, order: tuple[Guard, ...], seed: int
) -> None:
    losses, k, among = drawn
    rule, samples = around(selector, *order), samples_of(losses, groups=LABELS)
    found = draw(rule, samples, k, seed, among)
    candidates = samples.candidates(among)
    assert found.ids.dtype == np.int64 and found.ids.size == k and (np.diff(found.ids) > 0).all()
    assert np.isin(found.ids, candidates).all()
    np.testing.assert_array_equal(draw(rule, samples, k, seed, among).ids, found.ids)
    chance = found.probabilities(candidates)
    if not np.isnan(chance).any():
        assert chance.sum() == pytest.approx(k) and (chance >= 0).all() and (chance <= 1 + 1e-12).all()
        is_drawn = np.isin(candidates, found.ids)
        assert (chance[is_drawn] > 0).all() and (chance[~is_drawn] < 1).all()


@settings(max_examples=200, deadline=None)
@given(draws(), st.sampled_from([order for order in ORDERS if not any(guard.is_random for guard in order)]))
def test_caps_and_floors_around_top_k_are_the_rules_in_plain_python(
    drawn: tuple[list[float], int, np.ndarray | None], order: tuple[Guard, ...]
) -> None:
    losses, k, among = drawn
    ids = draw(around(TopK(), *order), samples_of(losses, groups=LABELS), k, among=among).ids
    assert ids.tolist() == naive_draw(losses, k, list(range(N)) if among is None else among.tolist(), *order)


@settings(max_examples=60, deadline=None)
@given(draws(), st.floats(0, 1), st.integers(0, 99))
def test_a_random_share_keeps_the_rule_s_part(
    drawn: tuple[list[float], int, np.ndarray | None], share: float, seed: int
) -> None:
    losses, k, among = drawn
    ids = draw(around(TopK(), RandomShare(random_share=share)), samples_of(losses), k, seed, among).ids
    by_rule = k - round(share * k)
    candidates = list(range(N)) if among is None else among.tolist()
    assert set(naive_draw(losses, by_rule, candidates)) <= set(ids.tolist())


@settings(max_examples=100, deadline=None)
@given(draws(), st.sampled_from(SELECTORS), st.floats(0, 1), st.sampled_from([0.0, 0.3]), st.integers(0, 99))
def test_no_class_falls_below_its_floor_of_the_candidates(
    drawn: tuple[list[float], int, np.ndarray | None], selector: Rule, floor: float, share: float, seed: int
) -> None:
    losses, k, among = drawn
    rule = around(selector, RandomShare(random_share=share), LossCap(loss_cap=0.2), ClassFloor(class_floor=floor))
    ids = draw(rule, samples_of(losses, groups=LABELS), k, seed, among).ids
    candidates = LABELS if among is None else LABELS[among]
    least = naive_quotas(round(floor * k), np.bincount(candidates, minlength=4).tolist())
    assert (np.bincount(LABELS[ids], minlength=4) >= least).all()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), st.data())
def test_proportional_quotas_go_to_the_largest_remainders(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(counts)))
    quotas = proportional_quotas(total, np.array(counts))
    assert quotas.tolist() == naive_quotas(total, counts)
    assert quotas.sum() == total and (quotas <= counts).all()


def test_a_floor_rescues_the_classes_that_the_rule_would_lose() -> None:
    samples = samples_of(np.where(LABELS == 0, 5.0, 1.0), groups=LABELS)  # class 0 has all the highest losses
    sizes = {}
    for floor in (0.0, 0.5, 1.0):
        ids = draw(around(TopK(), ClassFloor(class_floor=floor)), samples, 24).ids
        sizes[floor] = np.bincount(LABELS[ids], minlength=4).tolist()
    # floor 0.5: of 12 places that are sure 8, 3, 0, 1; the other 12 go to the highest losses.
    assert sizes == {0.0: [24, 0, 0, 0], 0.5: [20, 3, 0, 1], 1.0: [16, 6, 0, 2]}


def test_a_full_floor_keeps_the_class_proportions_and_the_rule_within_each_class() -> None:
    losses = np.random.default_rng(0).gamma(1, 1, (3, N)).round(1)
    samples = samples_of(losses, MovingMean(), LABELS)
    ids = draw(around(TopK(), ClassFloor(class_floor=1.0)), samples, 12).ids
    assert np.bincount(LABELS[ids]).tolist() == [8, 3, 0, 1]
    for label, size in ((0, 8), (1, 3), (3, 1)):
        own = draw(TopK(), samples, size, among=np.flatnonzero(label == LABELS)).ids
        assert ids[LABELS[ids] == label].tolist() == own.tolist()
    among = np.r_[np.arange(10), np.arange(40, 50)]  # ten of class 0, ten of class 1
    ids = draw(around(TopK(), ClassFloor(class_floor=1.0)), samples, 10, among=among).ids
    assert np.bincount(LABELS[ids]).tolist() == [5, 5]


def test_a_loss_cap_goes_by_the_latest_loss_and_gives_way_where_too_few_are_left() -> None:
    rule, samples = around(TopK(), LossCap(loss_cap=0.3)), samples_of([5, 1, NAN, 4, 3, 2, 0, 6, 7, 8])
    assert draw(rule, samples, 3).ids.tolist() == [0, 2, 3]
    assert draw(rule, samples, 9).ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    fallen = samples_of([[9, 1, 2], [1.5, 1, 2]], MovingMean())  # the highest mean, the lowest latest loss
    assert draw(around(TopK(), LossCap(loss_cap=0.4)), fallen, 1).ids.tolist() == [0]


def test_methods_ask_for_what_their_guards_need() -> None:
    for name in ("random", "ucb"):
        plain = methods.build(name)
        assert methods.build(name, random_share=0.5).needs_values == plain.needs_values
        assert methods.build(name, class_floor=1.0).needs_values == plain.needs_values
        assert methods.build(name, loss_cap=0.1).needs_values
    assert not methods.build("ema", random_share=1.0).needs_values
    assert not methods.build("static", random_share=0.5).needs_values
    places = [[type(guard) for guard in GUARDS].index(kind) for kind in (RandomShare, LossCap, ClassFloor)]
    assert places == sorted(places)  # the cap and the random share work within each class
    assert methods.build("ucb", random_share=0.5, class_floor=1.0).label == "ucb+random(0.5)+class_quota(1)"


@pytest.mark.parametrize(
    ("guard", "name", "value"),
    [
        (RandomShare, "random_share", 1.1),
        (RandomShare, "random_share", NAN),
        (ClassFloor, "class_floor", -0.1),
        (LossCap, "loss_cap", 1.0),
    ],
)
def test_parameters_out_of_range_are_refused(guard: type[Guard], name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name}={value}"):
        guard(**{name: value})


@pytest.mark.parametrize("groups", [[-1, 0], [0.0, 1.0], [], [[0], [1]]])
def test_groups_that_are_no_classes_are_refused(groups: list[float]) -> None:
    with pytest.raises(UserError, match="one class number ≥ 0 for each sample"):
        methods.build("ema", class_floor=1.0).start(2, groups=groups)
