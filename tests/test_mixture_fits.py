"""Fits of selection counts are kept: made where PyMC is, read where it is not, silent where the chains disagree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.paper import mixture_fits
from ffcv_prune.analysis.mixture import Mixture
from ffcv_prune.errors import UserError


def planted_fit(rhat: float) -> Mixture:
    draws = np.ones((2, 1))
    return Mixture(10, draws * [[0.3, 0.5, 0.2]], draws * [[0.5, 5, 9.5]], draws * [[0.5, 2, 0.5]], rhat)


def test_a_fit_is_made_once_and_read_where_it_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts, path = np.repeat(np.arange(11), 3), tmp_path / "fit.csv"

    def fit(counts: object, checkpoints: int) -> Mixture:
        return planted_fit(1.01)

    def missing(counts: object, checkpoints: int) -> Mixture:
        raise UserError("needs PyMC")

    monkeypatch.setattr(mixture_fits, "fit_mixture", missing)
    assert mixture_fits.find_fit(counts, 10, path) == (None, "not fitted: needs PyMC")
    monkeypatch.setattr(mixture_fits, "fit_mixture", fit)
    made, words = mixture_fits.find_fit(counts, 10, path)
    monkeypatch.setattr(mixture_fits, "fit_mixture", missing)
    again, same = mixture_fits.find_fit(counts, 10, path)
    assert words == same == "never 30.0 % (30.0–30.0), sometimes 50.0 % (50.0–50.0), always 20.0 % (20.0–20.0)"
    assert made is not None
    assert again is not None
    np.testing.assert_allclose(again.masses(), planted_fit(1.01).masses(), atol=1e-4)
    # The kept one is of other counts.
    assert mixture_fits.find_fit(counts[1:], 10, path) == (
        None,
        "not fitted: needs PyMC",
    )


def test_a_fit_whose_chains_disagree_gives_no_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.repeat(np.arange(11), 3)
    monkeypatch.setattr(mixture_fits, "fit_mixture", lambda counts, checkpoints: planted_fit(1.36))
    fit, words = mixture_fits.find_fit(counts, 10, tmp_path / "fit.csv")
    assert fit is None
    assert words == "not converged (R-hat 1.36, above 1.1), so no shares can be had from it"
