"""Intervals of differences over seeds: scipy's, paired where seeds are shared, and sane where nothing varies."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from ffcv_prune.analysis.intervals import LEVEL, Difference, _welch, correction, difference, difference_of_tests


@pytest.fixture(autouse=True)
def _no_warning() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # scipy's, of a division by no variance
        yield


def test_without_shared_seeds_the_interval_is_welchs() -> None:
    a, b = [70.0, 72.0, 71.0], [60.0, 66.0, 62.0, 63.0]
    made = difference(dict(enumerate(a)), dict(enumerate(b, start=2)))  # seed 2 alone is shared
    assert made == _welch(a, b)
    assert made.mean == pytest.approx(8.25)
    assert made.half_width() == pytest.approx(3.7744, abs=1e-4)
    assert made.p() == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue)


def test_shared_seeds_are_compared_in_pairs() -> None:
    a, b = {0: 60.0, 1: 70.0, 2: 80.0, 9: 0.0}, {2: 79.0, 1: 68.0, 0: 57.0}
    made = difference(a, b)
    assert made.mean == pytest.approx(2.0)
    assert made.half_width() == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)  # t of two degrees of freedom
    assert made.p() == pytest.approx(0.0742, abs=1e-4)


def test_one_seed_tells_nothing() -> None:
    for one, other in (({0: 1.0}, {0: 2.0}), ({0: 1.0}, {0: 2.0, 1: 3.0})):
        made = difference(one, other)
        assert made.mean < 0
        assert made.half_width() == math.inf
        assert math.isnan(made.p()) and made.in_words().endswith(", one run")


@pytest.mark.parametrize("start", [0, 5])
def test_without_variance_there_is_no_doubt(start: int) -> None:
    one, two = {0: 0.8, 1: 0.8}, {start: 0.9, start + 1: 0.9}
    made = difference(two, one)
    assert (made.half_width(), made.p(), made.p(made.mean)) == (0.0, 0.0, 1.0) and made.mean == pytest.approx(0.1)
    assert difference(two, dict.fromkeys(one, 0.9)) == Difference(0.0, 0.0)
    assert difference({0: 0.82, 1: 0.821}, {0: 0.80, 1: 0.801}).half_width() == 0  # equal but for rounding


def test_single_runs_differ_by_the_size_of_their_test_sets() -> None:
    made = difference_of_tests(0.80, 0.75, 10_000, 10_000)
    assert made.in_words() == "+5.00 ± 1.16"  # 1.96 · √(0.16 + 0.1875), of 10,000
    assert difference_of_tests(1.0, 1.0, 10, 10).p() == 1


@pytest.mark.parametrize("seed", range(5))
def test_comparisons_are_corrected_for_their_number(seed: int) -> None:
    """The printed interval leaves 0 out exactly where the corrected p is a discovery."""
    rng = np.random.default_rng(seed)
    gaps = [difference(*(dict(enumerate(rng.normal(mean, 1, 4))) for mean in (0, shift))) for shift in range(12)]
    ps = [gap.p() for gap in gaps]
    corrected = correction([*ps, math.nan])
    found = stats.false_discovery_control(ps) <= LEVEL
    assert 0 < found.sum() < len(ps)
    assert [p <= corrected.level for p in ps] == found.tolist()
    assert [abs(gap.mean) > gap.half_width(corrected.level) for gap in gaps] == found.tolist()
    assert str(corrected).endswith(" % interval, corrected for 12 comparisons")


def test_a_correction_of_one_or_none_changes_nothing() -> None:
    assert str(correction([0.04])) == "95 % interval"
    assert [correction(ps).level for ps in ([], [math.nan], [0.04], [0.9])] == [LEVEL] * 4
    assert correction([0.04, 0.9]).level == LEVEL / 2  # nothing is found: as strict as Bonferroni
