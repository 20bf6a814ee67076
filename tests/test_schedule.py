"""Schedule: phases, checkpoints and what they add up to."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ffcv_prune.errors import UserError
from ffcv_prune.methods.phases import Schedule


def checkpoints(schedule):
    return [epoch for epoch in range(schedule.epochs) if schedule.is_checkpoint(epoch)]


def test_the_paper_has_a_policy_checkpoint_every_ten_epochs():
    schedule = Schedule(200, keep=0.3)
    assert checkpoints(schedule) == list(range(0, 200, 10))
    assert {schedule.phase(epoch) for epoch in range(200)} == {"policy"}


def test_periods_count_from_the_start_of_each_phase():
    schedule = Schedule(12, period=3, keep=0.5, warmup=2, warmup_mode="full", final=4)
    phases = [schedule.phase(epoch) for epoch in range(12)]
    assert phases == ["full"] * 2 + ["policy"] * 6 + ["random"] * 4
    assert checkpoints(schedule) == [0, 2, 5, 8, 11]


def test_samples_seen_by_hand():
    schedule = Schedule(10, keep=0.3, warmup=2, final=1, final_mode="full")
    assert schedule.samples_seen(1000) == 2 * 300 + 7 * 300 + 1000
    assert schedule.kept(5) == 2  # round(1.5)


SCHEDULES = st.builds(
    lambda warmup, policy, final, period, modes: Schedule(
        warmup + policy + final,
        period,
        keep=0.25,
        warmup=warmup,
        warmup_mode=modes[0],
        final=final,
        final_mode=modes[1],
    ),
    st.integers(0, 5),
    st.integers(1, 20),
    st.integers(0, 5),
    st.integers(1, 7),
    st.tuples(*[st.sampled_from(["full", "random"])] * 2),
)


@settings(deadline=None)
@given(SCHEDULES)
def test_every_phase_starts_with_a_checkpoint_and_none_is_further_than_a_period_away(schedule):
    due = checkpoints(schedule)
    starts = {0, schedule.warmup, schedule.epochs - schedule.final} - {schedule.epochs}
    assert starts <= set(due)
    for before, after in itertools.pairwise(due):
        assert after - before == schedule.period or (after in starts and after - before < schedule.period)
    full = sum(schedule.phase(epoch) == "full" for epoch in range(schedule.epochs))
    assert schedule.samples_seen(100) == 100 * full + 25 * (schedule.epochs - full)


@pytest.mark.parametrize(
    "arguments",
    [
        {"epochs": 0},
        {"period": 0},
        {"keep": 0.0},
        {"keep": 1.01},
        {"keep": float("nan")},
        {"warmup": -1},
        {"final": -1},
        {"warmup": 6, "final": 5},
        {"warmup_mode": "policy"},
        {"final_mode": "none"},
    ],
)
def test_schedules_that_make_no_sense_are_refused(arguments):
    with pytest.raises(UserError):
        Schedule(**{"epochs": 10, "keep": 0.5, **arguments})


def test_keeping_nothing_is_refused():
    with pytest.raises(UserError, match="leaves none"):
        Schedule(10, keep=0.1).kept(3)
