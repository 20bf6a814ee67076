"""What is remembered of the values of a sample, and the score made of it: high scores are selected first."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import SCORES, UserError, first_line
from ffcv_prune.methods import kernels
from ffcv_prune.methods.part import Part
from ffcv_prune.methods.table import Column, ScoreTable
from ffcv_prune.settings import key

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]
Given = ArrayLike | os.PathLike[str] | None  # scores made before training, or the name of their file

_FIXED_STREAM = 2  # keeps the subset drawn once apart from the selections of a run (state.py)


@dataclass(frozen=True, kw_only=True)
class Statistic(Part, ABC):
    """The score of each sample.

    Attributes:
        is_fixed: made before training, so that no value need be recorded.
        needs_batches: whether `take` is given the mean loss of each sample's batch.
        compares_all: whether a sample's score depends on what is known of all the others.
        reads: the statistic or column of the table that is the score, for one that needs no more than that.
    """

    is_fixed: ClassVar[bool] = False
    needs_batches: ClassVar[bool] = False
    compares_all: ClassVar[bool] = False
    reads: ClassVar[str] = ""

    def table(self, n: int, seed: int, given: Given) -> ScoreTable:
        """A table for n samples. `given` is what a fixed statistic is made of; `UserError` for any other."""
        if given is not None:
            raise UserError("scores were given to a method that makes its own: leave them out")
        return ScoreTable(n)

    def arrive(self, table: ScoreTable, ids: Ids) -> None:
        """Renew what follows from the order in which the losses of `ids`, int64[m], came, finite or not."""

    def take(self, table: ScoreTable, ids: Ids, losses: Scores, batch_means: Scores) -> None:
        """Renew the part's own columns; the table's statistics have these losses already.

        Args:
            ids, losses: int64[m], unique, and float32[m], finite.
            batch_means: float32[m], the mean loss of the batch that each sample was in.
        """

    def score(self, table: ScoreTable, among: Ids | None) -> Scores:
        """float32[m]: the score of each sample in `among` (None: all). NaN: no value yet."""
        return table.read(self.reads, among)

    def top(self, table: ScoreTable, k: int, among: Ids | None) -> Ids:
        """The k of highest score, int64[k], ascending; ties go to the lower id, samples without a value come first."""
        chosen = kernels.top_k(self.score(table, among), k)
        return chosen if among is None else among[chosen]


@dataclass(frozen=True, kw_only=True)
class LastOfTraining(Statistic):
    """The loss of a sample as it was trained on last, ℓ: no memory, no parameter."""

    reads: ClassVar[str] = "last"


@dataclass(frozen=True, kw_only=True)
class BatchMean(Statistic):
    """A moving mean of the mean losses of the batches that a sample was in (Batch Loss Score, CVPR 2026).

    s ← decay·s + (1−decay)·(mean loss of the batch); it starts at 0.
    """

    needs_batches: ClassVar[bool] = True
    columns = (Column("batch_mean", np.float32, np.nan),)
    reads: ClassVar[str] = "batch_mean"
    decay: float = key(0.9, "bls: weight of the old score against the mean loss of the batch", within="[0, 1)")

    def take(self, table: ScoreTable, ids: Ids, losses: Scores, batch_means: Scores) -> None:
        column = table.columns["batch_mean"]
        column[ids] = self.decay * np.nan_to_num(column[ids]) + (1 - self.decay) * batch_means


@dataclass(frozen=True, kw_only=True)
class _Moving(Statistic):
    alpha: float = key(0.8, "weight of the new loss in the running statistics", within="(0, 1]")

    def table(self, n: int, seed: int, given: Given) -> ScoreTable:
        super().table(n, seed, given)
        return ScoreTable(n, self.alpha)


@dataclass(frozen=True, kw_only=True)
class Last(_Moving):
    """The latest loss, without memory (paper, Eq. 1): s(x) = −Σ_i y_i · log softmax(f(x))_i."""

    reads: ClassVar[str] = "last"


@dataclass(frozen=True, kw_only=True)
class MovingMean(_Moving):
    """The moving mean (paper, Eq. 2): s_ema ← α·ℓ + (1−α)·s_ema."""

    reads: ClassVar[str] = "mean"


@dataclass(frozen=True, kw_only=True)
class UpperBound(_Moving):
    """The upper confidence bound (paper, Eq. 3 and 4): s_ucb = s_ema + c·var."""

    c: float = key(1.0, "ucb: weight of the variance", within="[0, inf)")

    def score(self, table: ScoreTable, among: Ids | None) -> Scores:
        return kernels.ucb_scores(table.read("mean", among), table.read("var", among), self.c)

    def top(self, table: ScoreTable, k: int, among: Ids | None) -> Ids:
        if among is None:  # the same, in fewer passes over memory
            return kernels.top_k(table.mean, k, var=table.var, c=self.c)
        return super().top(table, k, among)


@dataclass(frozen=True, kw_only=True)
class _Fixed(Statistic):
    is_fixed: ClassVar[bool] = True
    reads: ClassVar[str] = "fixed"

    def table(self, n: int, seed: int, given: Given) -> ScoreTable:
        table = ScoreTable(n)
        table.fixed = self.made_of(n, seed, given)
        if table.fixed.shape != (n,):
            raise UserError(f"{table.fixed.size} static scores for {n} samples: they are of other data")
        _check_finite(table.fixed)
        return table

    @abstractmethod
    def made_of(self, n: int, seed: int, given: Given) -> Scores:
        """float32[n]: the scores."""


@dataclass(frozen=True, kw_only=True)
class _FromFile(_Fixed):
    scores: str = key(
        "",
        "static: the scores' file, see section static",
        pattern=r"(.*[^/]\.npy)?",
        needed=f"=FILE.npy, which {SCORES} --config FILE writes",
    )

    def given_or_stored(self, given: Given) -> Scores:
        source = self.scores if given is None else given
        if isinstance(source, str | os.PathLike) and not os.fspath(source):
            raise UserError("a static method needs its scores: start(n, scores=ARRAY), or the name of their file")
        scores = _read_scores(source) if isinstance(source, str | os.PathLike) else _as_scores(source)
        _check_finite(scores)
        return scores


def _read_scores(path: str | os.PathLike[str]) -> Scores:
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"cannot read {name}: {error.strerror}; name the file of the scores") from error
    except ValueError as error:
        raise UserError(f"{name} is no .npy of numbers ({first_line(error)}): write the scores with np.save") from error
    return _as_scores(values)


def _as_scores(values: ArrayLike) -> Scores:
    try:
        with np.errstate(over="ignore"):  # beyond float32: inf, which is refused
            return np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError, RuntimeError) as error:  # RuntimeError: a tensor with gradient
        raise UserError(
            f"static scores must be numbers, [n] or [models, n], or the name of a .npy: {first_line(error)}"
        ) from error


def _check_finite(scores: Scores) -> None:
    if not np.isfinite(scores).all():
        raise UserError("static scores hold NaN or infinite values: every sample needs a finite score")


@dataclass(frozen=True, kw_only=True)
class FixedScores(_FromFile):
    """A ranking made before training, float32[n], or [models, n] to take the mean of: EL2N, GraNd or forget scores."""

    def made_of(self, n: int, seed: int, given: Given) -> Scores:
        scores = self.given_or_stored(given)
        return scores.mean(axis=0, dtype=np.float64).astype(np.float32) if scores.ndim == 2 else scores


@dataclass(frozen=True, kw_only=True)
class FixedUpperBound(_FromFile):
    """s_ema + c·var (paper, Eq. 2 to 4) over models in place of selections (paper, appendix B).

    Made of float32[models, n], the scores by each model, taken in one after the other.
    """

    alpha: float = key(0.8, "weight of the new loss in the running statistics", within="(0, 1]")
    c: float = key(1.0, "ucb: weight of the variance", within="[0, inf)")

    def made_of(self, n: int, seed: int, given: Given) -> Scores:
        by_model = self.given_or_stored(given)
        if by_model.ndim != 2 or len(by_model) < 2:
            raise UserError(
                f"static scores of shape {by_model.shape}: UCB needs two models or more, raise static.models"
            )
        table = ScoreTable(by_model.shape[1], self.alpha)
        for scores in by_model:
            table.update(scores)
        return kernels.ucb_scores(table.mean, table.var, self.c)


@dataclass(frozen=True, kw_only=True)
class FixedRandom(_Fixed):
    """A random order, drawn once from the seed: what a static ranking must beat."""

    def made_of(self, n: int, seed: int, given: Given) -> Scores:
        # As float32 without ties up to 16.7 million samples.
        return np.random.default_rng([seed, 0, _FIXED_STREAM]).permutation(n).astype(np.float32)
