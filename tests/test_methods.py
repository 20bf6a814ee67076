"""The parts of methods against plain Python, their composition, and what is refused."""

from __future__ import annotations

import ast
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune import methods
from ffcv_prune.errors import UserError
from ffcv_prune.methods.guards import ClassFloor, Guarded, LossCap, RandomShare, proportional_quotas
from ffcv_prune.methods.method import GUARDS, Method
from ffcv_prune.methods.phases import Periodic
from ffcv_prune.methods.rule import Rule
from ffcv_prune.methods.selectors import DropBelowMean, EpsilonGreedy, TopK, Uniform
from ffcv_prune.methods.statistics import Last, MovingMean, UpperBound
from ffcv_prune.methods.weights import InverseProbability
from tests.rules import draw, samples_of

NAN = float("nan")
LOSSES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 7.0, NAN]), min_size=1, max_size=40)
ROOT = Path(__file__).resolve().parent.parent


def naive_top(losses: list[float], k: int, among: list[int]) -> list[int]:
    """Sorted: without a loss first, then the highest; ties go to the lower id."""
    return sorted(sorted(among, key=lambda i: (-np.inf if np.isnan(losses[i]) else -losses[i], i))[:k])


@settings(max_examples=100, deadline=None)
@given(LOSSES, st.sampled_from([Last(), MovingMean(), UpperBound()]), st.data())
def test_top_k_is_the_rule_in_plain_python(losses: list[float], statistic: Any, data: st.DataObject) -> None:
    samples, n = samples_of(losses, statistic), len(losses)
    among = data.draw(st.none() | st.lists(st.integers(0, n - 1), min_size=1, unique=True).map(sorted))
    candidates = list(range(n)) if among is None else among
    k = data.draw(st.integers(1, len(candidates)))
    ids = draw(TopK(), samples, k, among=None if among is None else np.array(among)).ids
    assert ids.tolist() == naive_top(losses, k, candidates)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.data())
def test_epsilon_greedy_exploits_and_explores_in_the_stated_numbers(
    n: int, epsilon: float, data: st.DataObject
) -> None:
    k, losses = data.draw(st.integers(1, n)), np.random.default_rng(n).permutation(n).astype(np.float32)
    ids = draw(EpsilonGreedy(epsilon=epsilon), samples_of(losses), k, seed=n).ids
    top = naive_top(losses.tolist(), k - round(epsilon * k), list(range(n)))
    assert ids.size == k == len(set(ids.tolist()))
    assert set(top) <= set(ids.tolist())


@settings(max_examples=80, deadline=None)
@given(LOSSES, st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.integers(0, 100))
def test_infobatch_is_the_rule_in_plain_python(losses: list[float], ratio: float, seed: int) -> None:
    state = methods.build("infobatch", ratio=ratio, delta=1.0).start(len(losses), epochs=2, seed=seed)
    known = [i for i, loss in enumerate(losses) if not np.isnan(loss)]
    if known:
        state.record(np.array(known), np.float32([losses[i] for i in known]), epoch=0)
    selection = state.select(0)
    assert selection is not None and selection.weights is not None and selection.weights.dtype == np.float32
    mean = np.mean([losses[i] for i in known]) if known else -1.0
    draws, expected = iter(np.random.default_rng([seed, 0, 1]).random(len(losses))), {}
    for i, loss in enumerate(losses):
        below = loss < mean
        if not (below and next(draws) < ratio):
            expected[i] = 1 / (1 - ratio) if below else 1.0
    assert selection.ids.tolist() == list(expected)
    np.testing.assert_allclose(selection.weights, list(expected.values()), rtol=1e-6)


def test_infobatch_weighs_in_expectation_as_all_samples_do() -> None:
    losses, totals = np.float32([0.1, 0.2, 0.3, 3.4]), []
    for seed in range(4000):
        state = methods.build("infobatch").start(4, epochs=8, seed=seed)
        state.record(None, losses, epoch=0)
        selection = state.select(0)
        assert selection is not None and selection.weights is not None
        totals.append(selection.weights.sum())
    assert abs(np.mean(totals) - 4) < 5 * np.std(totals) / 4000**0.5


@pytest.mark.parametrize(("epochs", "pruned"), [(20, 17), (90, 78), (100, 87), (200, 175), (8, 7)])
def test_infobatch_ends_on_all_data_with_weight_1(epochs: int, pruned: int) -> None:
    """As many pruned epochs as the authors have: 78 of 90."""
    state = methods.build("infobatch").start(50, epochs=epochs)
    state.record(None, np.arange(50, dtype=np.float32), epoch=0)
    for epoch in range(epochs):
        selection = state.select(epoch)
        assert selection is not None
        assert (selection.phase == "method") == (epoch < pruned)
        assert (selection.weights is None) == (selection.ids.size == 50) == (epoch >= pruned)


LABELS = np.array([0] * 12 + [1] * 6 + [2] * 2)
RULES: dict[str, Rule] = {
    "uniform": Uniform(),
    "epsilon": EpsilonGreedy(epsilon=0.4),
    "share around top": Guarded(RandomShare(random_share=0.5), TopK()),
    "share around uniform": Guarded(RandomShare(random_share=0.5), Uniform()),
    "cap around uniform": Guarded(LossCap(loss_cap=0.2), Uniform()),
    "floor around uniform": Guarded(ClassFloor(class_floor=0.5), Uniform()),
    "floor around share": Guarded(ClassFloor(class_floor=1.0), Guarded(RandomShare(random_share=0.5), TopK())),
    "below the mean": DropBelowMean(ratio=0.3),
}


@pytest.mark.parametrize("name", RULES)
def test_probabilities_are_the_frequencies_of_many_draws(name: str) -> None:
    losses, times = np.random.default_rng(5).permutation(20), 3000
    samples, counts = samples_of(losses, groups=LABELS), np.zeros(20)
    probabilities = np.zeros(20)
    for seed in range(times):
        drawn = draw(RULES[name], samples, 8, seed)
        counts[drawn.ids] += 1
        if seed % 100 == 0:  # where a draw depends on an earlier one, the probability is of what is left: its mean
            probabilities += drawn.probabilities(np.arange(20)) / (times / 100)
    deviation = np.sqrt(times * np.maximum(probabilities * (1 - probabilities), 1e-9))
    assert (np.abs(counts - times * probabilities) <= 5 * deviation + 1e-6).all()


def test_a_probability_that_is_not_known_is_none() -> None:
    state = methods.build("ucb", keep=0.4, random_share=0.5, class_floor=0.5).start(20, epochs=2, groups=LABELS)
    state.record(None, np.random.default_rng(5).permutation(20).astype(np.float32), epoch=0)
    selection = state.select(0)
    assert selection is not None and selection.ids.size == 8 and selection.probability is None


def test_a_weighted_method_under_a_guard_keeps_its_weights() -> None:
    """Defect: a wrapper did not hand on the weights of what was inside."""
    method = Method(
        name="weighted",
        statistic=Last(),
        selector=Uniform(),
        weight=InverseProbability(),
        phases=Periodic(keep=0.4),
        guards=(RandomShare(random_share=0.5),),
    )
    selection = method.start(100).select(0)
    assert selection is not None and selection.weights is not None and selection.probability is not None
    np.testing.assert_allclose(selection.weights, 1 / selection.probability, rtol=1e-6)
    assert selection.probability.mean() == pytest.approx(0.4)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from([0.0, 0.2]), st.sampled_from([0.0, 0.6, 1])
)
def test_guarded_selections_hold_k_samples_and_every_floor(seed: int, share: float, cap: float, floor: float) -> None:
    rng = np.random.default_rng(seed)
    n, labels = 60, rng.integers(0, 4, 60)
    k = int(rng.integers(1, n + 1))
    rule: Rule = TopK()
    for guard in (RandomShare(random_share=share), LossCap(loss_cap=cap), ClassFloor(class_floor=floor)):
        rule = Guarded(guard, rule) if guard.label else rule
    ids = draw(rule, samples_of(rng.random(n) + labels, groups=labels), k, seed).ids
    assert ids.size == k and (ids[1:] > ids[:-1]).all() and ids[0] >= 0 and ids[-1] < n
    counts, quotas = np.bincount(labels, minlength=4), np.zeros(4)
    if floor:
        quotas = proportional_quotas(round(floor * k), counts)
    assert (np.bincount(labels[ids], minlength=4) >= quotas).all()


def test_a_loss_cap_leaves_the_highest_losses_out_and_gives_way_where_too_few_are_left() -> None:
    rule, samples = Guarded(LossCap(loss_cap=0.3), TopK()), samples_of([5, 1, NAN, 4, 3, 2, 0, 6, 7, 8])
    assert draw(rule, samples, 3).ids.tolist() == [0, 2, 3]
    assert draw(rule, samples, 9).ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8).filter(any), st.data())
def test_proportional_quotas(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(counts)))
    quotas = proportional_quotas(total, np.array(counts))
    assert quotas.sum() == total
    assert (quotas <= counts).all()
    assert (np.abs(quotas - total * np.array(counts) / sum(counts)) < 1).all()


# ---- methods -----------------------------------------------------------------------------------------------


def start(name: str, n: int = 60, **parameters: Any) -> methods.State:
    method = methods.build(name, **parameters)
    scores = None
    if "scores" in method.parameters:
        scores = np.random.default_rng(1).random((3, n) if method.statistic.is_per_model else n)
    return method.start(n, epochs=12, groups=np.arange(n) % 3, seed=4, scores=scores)


def values_of(state: methods.State, losses: Any, ids: Any) -> dict[str, Any]:
    """The losses of these samples, and what else the method needs with them."""
    certainty = {"correct": losses[ids] < 1, "confidence": np.exp(-losses[ids])}
    return {"losses": losses[ids]} | (certainty if state.method.needs_certainty else {})


def drive(state: methods.State, epochs: range) -> list[list[int]]:
    """Select epoch by epoch on losses that follow from the epoch; returns the selections."""
    found = []
    for epoch in epochs:
        losses = np.random.default_rng(epoch).gamma(1, 1, state.n).astype(np.float32)
        if state.method.records_losses and state.selection is not None and state.is_due(epoch):
            state.record(state.selection.ids, **values_of(state, losses, state.selection.ids), epoch=epoch)
        wanted = state.wanted(epoch)
        if wanted is not None:
            state.record(wanted, **values_of(state, losses, wanted), epoch=epoch)
        selection = state.select(epoch)
        if selection is not None:
            found.append(selection.ids.tolist())
    return found


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in methods.PRESETS),
    *((name, {"random_share": 0.3, "loss_cap": 0.1, "class_floor": 0.7, "keep": 0.5}) for name in ("ucb", "random")),
    ("ucb", {"score_source": "both", "period": 2}),
    ("ema", {"score_source": "training", "warmup": 1, "warmup_mode": "full", "period": 1}),
    ("ucb", {"score_budget": 0.4, "period": 1}),
]


@pytest.mark.parametrize(("name", "parameters"), VARIANTS)
def test_a_state_that_is_taken_up_goes_on_as_if_it_had_never_stopped(name: str, parameters: dict[str, Any]) -> None:
    expected = drive(start(name, **parameters), range(12))
    for stop in (1, 5, 11):
        stopped, resumed = start(name, **parameters), start(name, **parameters)
        found = drive(stopped, range(stop))
        resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
        assert found + drive(resumed, range(stop, 12)) == expected


def test_random_with_a_loss_cap_makes_passes() -> None:
    """Defect: it made passes and was counted as making none."""
    plain, capped = methods.build("random"), methods.build("random", loss_cap=0.1)
    assert not plain.makes_passes and capped.makes_passes
    assert plain.start(10).wanted(0) is None
    wanted = capped.start(10).wanted(0)
    assert wanted is not None and wanted.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("ucp", {}, 'did you mean "ucb"'),
        ("ucb", {"kep": 0.3}, 'no parameter "kep"; did you mean "keep"'),
        ("random", {"c": 1.0}, 'no parameter "c"'),
        ("ucb", {"keep": 0.0}, r"keep=0.0: expected a number in \(0, 1\]"),
        ("ucb", {"keep": NAN}, "keep=nan"),
        ("ucb", {"period": 1.5}, "period=1.5: expected an integer"),
        ("ucb", {"c": -1}, "c=-1"),
        ("ema", {"alpha": 0}, "alpha=0"),
        ("ema", {"warmup_mode": "ful"}, 'did you mean "full"'),
        ("ucb", {"score_source": "pas"}, 'did you mean "pass"'),
        ("infobatch", {"score_source": "pass"}, "values of its own kind"),
        ("infobatch", {"random_share": 0.5}, "no parameter"),
        ("infobatch", {"ratio": 1.0}, "ratio=1.0"),
        ("ucb", {"score_source": "training"}, "needs losses before its first selection"),
        ("random", {"score_budget": 0.5}, "needs no scoring pass that could be budgeted"),
        ("ucb", {"score_budget": 0.5, "loss_cap": 0.1}, "does not select by a threshold"),
        ("ucb", {"score_budget": 0.05, "score_revisit": 4}, "score_revisit"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        methods.build(name, **parameters)
    assert "\n" not in str(caught.value)


def test_parts_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(UserError, match="draws nothing"):
        Method(name="mine", statistic=Last(), selector=TopK(), weight=InverseProbability())
    guards = (RandomShare(random_share=0.5), *GUARDS[1:])
    guards = (RandomShare(random_share=0.5), ClassFloor(class_floor=0.5))
    with pytest.raises(UserError, match="not known under a class_floor"):
        Method(name="mine", statistic=Last(), selector=TopK(), weight=InverseProbability(), guards=guards)
    guards = (RandomShare(random_share=0.5), *GUARDS[1:])
    with pytest.raises(UserError, match="decides itself how many"):
        Method(name="mine", statistic=Last(), selector=DropBelowMean(), guards=guards)


def test_a_start_that_cannot_be_is_refused() -> None:
    for arguments, message in (
        ({"epochs": 0}, "epochs = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"n": 0}, "at least one sample"),
        ({"scores": np.zeros(10)}, "makes its own"),
    ):
        with pytest.raises(UserError, match=message):
            methods.build("ucb").start(**{"n": 10} | arguments)
    with pytest.raises(UserError, match="leaves none: raise keep"):
        methods.build("ucb", keep=0.01).start(10)
    with pytest.raises(UserError, match="needs the class of each sample"):
        methods.build("ucb", class_floor=0.5).start(10)
    with pytest.raises(UserError, match="of other data"):
        methods.build("ucb", class_floor=0.5).start(10, groups=np.zeros(9, int))
    with pytest.raises(UserError, match="needs its scores"):
        methods.build("static").start(10)
    with pytest.raises(UserError, match="hold NaN"):
        methods.build("static").start(3, scores=[1, NAN, 2])
    with pytest.raises(UserError, match="needs two models"):
        methods.build("static_ucb").start(3, scores=[[1, 2, 3]])
    with pytest.raises(UserError, match="outside the run"):
        methods.build("random").start(10, epochs=3).select(3)


def test_a_state_of_another_run_is_refused_and_changes_nothing() -> None:
    state, other = start("ucb"), start("ucb")
    drive(other, range(4))
    for name in ("n", "epochs", "seed"):
        with pytest.raises(UserError, match=name):
            state.load_state_dict({**other.state_dict(), name: 99})
        assert state.selection is None and state.table.updates == 0


@pytest.mark.parametrize("name", methods.PRESETS)
def test_each_parameter_has_one_meaning_within_a_method(name: str) -> None:
    method = methods.PRESETS[name]
    names = [f for part in method.parts for f in vars(part)]
    assert len(names) == len(set(names)) or not method.prunes
    assert method.replace(**method.values) == method


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 9), st.integers(0, 9))
def test_every_phase_starts_with_a_selection_and_none_is_further_than_a_period_away(
    epochs: int, period: int, warmup: int, final: int
) -> None:
    phases = Periodic(period=period, warmup=warmup, final=final, final_mode="full")
    if warmup + final > epochs:
        with pytest.raises(UserError, match="do not fit"):
            phases.check(epochs)
        return
    phases.check(epochs)
    names = [phases.phase(epoch, epochs) for epoch in range(epochs)]
    assert names == ["random"] * warmup + ["method"] * (epochs - warmup - final) + ["full"] * final
    since = 0
    for epoch in range(epochs):
        due = phases.selects(epoch, epochs)
        assert due or (epoch > 0 and names[epoch] == names[epoch - 1] and since + 1 < period)
        since = 0 if due else since + 1
    method = Method(name="mine", statistic=Last(), selector=TopK(), phases=phases)
    assert method.samples_seen(epochs, 10) == sum(10 if name == "full" else 3 for name in names)


def test_no_module_but_the_presets_compares_the_name_of_a_method() -> None:
    names = set(methods.PRESETS) - {"full", "random"}  # these two are phases, too
    for path in [*(ROOT / "ffcv_prune").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                found = {
                    part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value in names
                }
                assert not found, f"{path.name}:{node.lineno} compares {found}"
