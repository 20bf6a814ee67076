"""Phases: what each epoch trains on, when a selection is due, and what they add up to."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune.errors import UserError
from ffcv_prune.methods.method import Method
from ffcv_prune.methods.phases import MODES, Periodic
from ffcv_prune.methods.selectors import TopK
from ffcv_prune.methods.statistics import Last


def method_of(phases: Periodic) -> Method:
    return Method(name="mine", statistic=Last(), selector=TopK(), phases=phases)


@settings(max_examples=150, deadline=None)
@given(
    st.builds(
        Periodic,
        keep=st.just(0.25),
        period=st.integers(1, 9),
        warmup=st.integers(0, 9),
        warmup_mode=st.sampled_from(MODES),
        final=st.integers(0, 9),
        final_mode=st.sampled_from(MODES),
    ),
    st.integers(1, 40),
)
def test_every_phase_starts_with_a_selection_and_none_is_further_than_a_period_away(
    phases: Periodic, epochs: int
) -> None:
    middle = epochs - phases.warmup - phases.final
    if middle < 0:
        with pytest.raises(UserError, match="do not fit"):
            phases.check(epochs)
        return
    phases.check(epochs)
    names = [phases.phase(epoch, epochs) for epoch in range(epochs)]
    assert names == [phases.warmup_mode] * phases.warmup + ["method"] * middle + [phases.final_mode] * phases.final
    starts = {0, phases.warmup, epochs - phases.final} - {epochs}
    due = [epoch for epoch in range(epochs) if phases.selects(epoch, epochs)]
    assert starts <= set(due)
    for before, after in itertools.pairwise([*due, epochs]):
        assert after - before == phases.period or (after in {*starts, epochs} and after - before < phases.period)
    assert method_of(phases).samples_seen(epochs, 100) == sum(100 if name == "full" else 25 for name in names)


def test_phases_by_hand() -> None:
    assert [epoch for epoch in range(200) if Periodic().selects(epoch, 200)] == list(range(0, 200, 10))
    phases = Periodic(period=3, warmup=2, warmup_mode="full", final=4)
    assert [epoch for epoch in range(12) if phases.selects(epoch, 12)] == [0, 2, 5, 8, 11]
    phases = Periodic(warmup=2, final=1, final_mode="full")
    assert method_of(phases).samples_seen(10, 1000) == 2 * 300 + 7 * 300 + 1000
    assert phases.kept(5, 0, 10) == 2  # round(1.5)
