"""Intervals of differences over seeds: scipy's, paired where seeds are shared, and sane where nothing varies."""

from __future__ import annotations

import math
import warnings

import pytest

from ffcv_prune.analysis.intervals import Difference, difference, false_discovery, welch


@pytest.fixture(autouse=True)
def _no_warning() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy's, of a division by no variance
        yield


def test_without_shared_seeds_the_interval_is_welchs() -> None:
    a, b = [70.0, 72.0, 71.0], [60.0, 66.0, 62.0, 63.0]
    made = difference(dict(enumerate(a)), dict(enumerate(b, start=2)))  # seed 2 alone is shared
    assert made == welch(a, b)
    assert made.mean == pytest.approx(8.25)
    assert made.half_width == pytest.approx(3.7744, abs=1e-4)


def test_shared_seeds_are_compared_in_pairs() -> None:
    a, b = {0: 60.0, 1: 70.0, 2: 80.0, 9: 0.0}, {2: 79.0, 1: 68.0, 0: 57.0}
    made = difference(a, b)
    assert made.mean == pytest.approx(2.0)
    assert made.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)  # t of two degrees of freedom
    assert made.p == pytest.approx(0.0742, abs=1e-4)


def test_one_seed_tells_nothing() -> None:
    for one, other in (({0: 1.0}, {0: 2.0}), ({0: 1.0}, {0: 2.0, 1: 3.0})):
        made = difference(one, other)
        assert made.mean < 0
        assert made.half_width == math.inf
        assert math.isnan(made.p)


@pytest.mark.parametrize("start", [0, 5])
def test_without_variance_there_is_no_doubt(start: int) -> None:
    one, two = {0: 0.8, 1: 0.8}, {start: 0.9, start + 1: 0.9}
    assert difference(two, one) == Difference(pytest.approx(0.1), 0.0, 0.0)
    assert difference(two, dict.fromkeys(one, 0.9)) == Difference(0.0, 0.0, 1.0)
    assert difference({0: 0.82, 1: 0.821}, {0: 0.80, 1: 0.801}).half_width == 0  # equal but for rounding


def test_p_values_are_corrected_for_their_number() -> None:
    assert false_discovery([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])
    corrected = false_discovery([math.nan, 0.04])
    assert math.isnan(corrected[0]) and corrected[1] == pytest.approx(0.04)
    assert false_discovery([]) == []
