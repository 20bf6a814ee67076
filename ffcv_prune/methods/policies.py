"""Rules that pick the k samples to train on until the next checkpoint (paper, section 3.2).

A policy is stateless: what it knows of the samples is in the `ScoreTable`, and its randomness comes from the
generator that it is given. Policies are combined by wrapping: see `WithRandom` here and `guards.py`.
"""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ffcv_prune.errors import UserError, nearest
from ffcv_prune.methods.kernels.samples import (
    check_candidates,
    check_k,
    difference,
    random_subset,
    ucb_scores,
)
from ffcv_prune.methods.kernels.topk import top_k
from ffcv_prune.methods.table import ScoreTable

Ids = NDArray[np.int64]
Scores = NDArray[np.float32]

_STATIC_STREAM = 2  # keeps the subset drawn once apart from the selections of checkpoints (pruner.py)


class Policy(ABC):
    """A rule that selects samples. A subclass says how in `choose`.

    Attributes:
        name: how configs, logs and reports call it.
        needs_scores: whether the table must be brought up to date before `select`.
        fixed_size: whether `select` returns exactly k samples; False: at most k, as many as the rule says.
    """

    name: str
    needs_scores: bool = True
    fixed_size: bool = True

    def select(self, table: ScoreTable, k: int, rng: np.random.Generator, among: Ids | None = None) -> Ids:
        """Return k different samples, int64[k], ascending (fewer if not `fixed_size`).

        `among` restricts the choice to these samples, int64[m], ascending and unique; None means all of the
        table. The result depends on nothing but the arguments. Raises `UserError` unless 1 ≤ k ≤ m, and for
        candidates that are not as said.
        """
        if among is not None:
            check_candidates(among, table.n)
        check_k(k, table.n if among is None else among.size)
        return self.choose(table, k, rng, among)

    @abstractmethod
    def choose(self, table: ScoreTable, k: int, rng: np.random.Generator, among: Ids | None) -> Ids:
        """`select` for arguments already checked: what a policy implements, and what its wrappers call."""

    def weights(self, table: ScoreTable, ids: Ids) -> Scores | None:
        """Return the factor of the loss of each sample in `ids`, what `select` took: float32[k]; None: all 1."""
        return None


class Wrapper(Policy):
    """A policy around a policy, which it asks for numbers of samples of its own choice."""

    def __init__(self, policy: Policy, suffix: str) -> None:
        if not policy.fixed_size:
            raise UserError(
                f"policy {policy.name} decides itself how many samples it takes: "
                "it cannot be combined with a random share, a class floor or a loss cap"
            )
        self.policy = policy
        self.name = f"{policy.name}+{suffix}"
        self.needs_scores = policy.needs_scores


class Random(Policy):
    """k samples, each set of k equally likely; no scoring pass at all (paper, section 4.2)."""

    name = "random"
    needs_scores = False

    def choose(self, table: ScoreTable, k: int, rng: np.random.Generator, among: Ids | None) -> Ids:
        return random_subset(table.n if among is None else among, k, rng)


class Ranking(Policy):
    """The k samples with the highest score; ties go to the lower id, samples never scored come first."""

    @abstractmethod
    def scores(self, table: ScoreTable, among: Ids | None) -> Scores:
        """Return the score of each sample in `among` (all of the table if None), float32."""

    def choose(self, table: ScoreTable, k: int, rng: np.random.Generator, among: Ids | None) -> Ids:
        chosen = top_k(self.scores(table, among), k)
        return chosen if among is None else among[chosen]


class Uncertainty(Ranking):
    """Highest latest cross entropy, without memory (paper, Eq. 1): s(x) = −Σ_i y_i · log softmax(f(x))_i."""

    name = "uncertainty"

    def scores(self, table: ScoreTable, among: Ids | None) -> Scores:
        return table.last if among is None else table.last[among]


class EMA(Ranking):
    """Highest moving mean (paper, Eq. 2): s_ema ← α·s_uncertainty + (1−α)·s_ema, α of the table."""

    name = "ema"

    def scores(self, table: ScoreTable, among: Ids | None) -> Scores:
        return table.mean if among is None else table.mean[among]


class UCB(Ranking):
    """Highest upper confidence bound (paper, Eq. 3 and 4): s_ucb = s_ema + c·var, with c ≥ 0."""

    name = "ucb"

    def __init__(self, c: float = 1.0) -> None:
        if not (math.isfinite(c) and c >= 0):
            raise UserError(f"c = {c} must be a finite number ≥ 0: it weighs the variance in the UCB score")
        self.c = float(c)

    def scores(self, table: ScoreTable, among: Ids | None) -> Scores:
        if among is None:
            return ucb_scores(table.mean, table.var, self.c)
        return ucb_scores(table.mean[among], table.var[among], self.c)

    def choose(self, table: ScoreTable, k: int, rng: np.random.Generator, among: Ids | None) -> Ids:
        if among is None and type(self).scores is UCB.scores:  # the same, in fewer passes over memory
            return top_k(table.mean, k, var=table.var, c=self.c)
        return super().choose(table, k, rng, among)


class Static(Ranking):
    """Highest score of a fixed ranking made before training: EL2N, GraNd or forget scores (`static_scores`).

    `scores` is numeric [n], stored as float32, without NaN; `name` says which they are. The selection is the
    same at every checkpoint and costs no scoring pass.
    """

    needs_scores = False

    def __init__(self, scores: ArrayLike, name: str = "static") -> None:
        self._scores = np.asarray(scores, dtype=np.float32)
        self.name = name
        if self._scores.ndim != 1:
            raise UserError(f"static scores must be one number a sample, not of shape {self._scores.shape}")
        if np.isnan(self._scores).any():
            raise UserError("static scores hold NaN: every sample needs a score")

    def scores(self, table: ScoreTable, among: Ids | None) -> Scores:
        if self._scores.size != table.n:
            raise UserError(f"{self._scores.size} static scores for {table.n} samples: other data")
        return self._scores if among is None else self._scores[among]


class InfoBatch(Policy):
    """Drop each sample of below-mean loss with probability r; a kept one of those weighs 1/(1−r) (Qin et al. 2024).

        keep probability p(x) = 1 − r if last(x) < mean of last, else 1;    weight w(x) = 1/p(x)

    so that the expected weighted sum of the gradients of the selection is that of all n samples, whatever r.
    Selections are made anew in every epoch, by training losses, until the final phase on all data with weight
    1: `Pruner.infobatch` puts these parts together.

    The mean is over the samples with a loss. One without is always kept and weighs 1; so the first epoch is on
    all data, as it is with the authors' code, whose scores begin as equal constants. That code keeps exactly
    int((1−r)·m) of m below the mean; here each draw is independent, as in the paper, and no sample is out of
    reach however small m is. The size of a selection varies: `k` is not looked at.

    The mean of the weighted losses of a batch out of |S| selected samples is, in expectation, n/|S| times the
    mean loss of all n: a larger step, fewer of them. That is the original form. `unbiased` multiplies all
    weights by |S|/n, which makes the expected gradient of a batch that of all the data, at |S|/n of the steps.

    When it hurts: it saves at most r of the samples, less when losses are spread evenly about the mean; and
    weights of 1/(1−r) make the gradient noisier.

    Args:
        ratio: r, in [0, 1).
        unbiased: see above.

    Source: Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024,
    and github.com/NUS-HPC-AI-Lab/InfoBatch.
    """

    name = "infobatch"
    fixed_size = False

    def __init__(self, ratio: float = 0.5, unbiased: bool = False) -> None:
        if not 0 <= ratio < 1:
            raise UserError(f"the ratio {ratio} of below-mean samples to drop is outside [0, 1)")
        self.ratio = float(ratio)
        self.unbiased = bool(unbiased)

    def choose(self, table: ScoreTable, k: int, rng: np.random.Generator, among: Ids | None) -> Ids:
        candidates = np.arange(table.n) if among is None else among
        below = _below_mean(table.last)[candidates]
        dropped = np.zeros(candidates.size, np.bool_)
        dropped[below] = rng.random(np.count_nonzero(below)) < self.ratio
        return candidates[~dropped]

    def weights(self, table: ScoreTable, ids: Ids) -> Scores:
        """float32[k]: 1/(1−r) for the samples of `ids` below the mean of the table, 1 for the others."""
        weights = np.where(_below_mean(table.last)[ids], 1 / (1 - self.ratio), 1.0)
        return (weights * (ids.size / table.n if self.unbiased else 1)).astype(np.float32)


def _below_mean(losses: Scores) -> NDArray[np.bool_]:
    """bool[m]: which losses are below the mean of those that are not NaN. In float64: equal losses are not."""
    scored = losses[~np.isnan(losses)]
    return losses < scored.mean(dtype=np.float64) if scored.size else np.zeros(losses.size, np.bool_)


class StaticRandom(Static):
    """k samples, drawn once, uniformly, for the whole run: what a static ranking must beat. n and seed decide all."""

    def __init__(self, n: int, seed: int = 0) -> None:
        order = np.random.default_rng([seed, 0, _STATIC_STREAM]).permutation(n)
        super().__init__(order, name="static_random")  # as float32 without ties up to 16.7 million samples


class StaticUCB(Static):
    """Highest s_ema + c·var (paper, Eq. 2 to 4) over models in place of checkpoints (paper, appendix B).

    `trials` is float [models, n], the static scores by each model, taken in one after the other.
    """

    def __init__(self, trials: ArrayLike, alpha: float = 0.8, c: float = 1.0, name: str = "static") -> None:
        trials = np.asarray(trials, dtype=np.float32)
        if trials.ndim != 2 or len(trials) < 2:
            raise UserError(f"{name} scores over models have the shape {trials.shape}: UCB needs two models or more")
        table = ScoreTable(trials.shape[1], alpha)
        for scores in trials:
            table.update(scores)
        super().__init__(UCB(c).scores(table, None), f"{name}_ucb")


class WithRandom(Wrapper):
    """k − round(share·k) samples by `policy`, the others uniformly from what it left (paper, section 3.2.2).

    With the moving mean as policy this is ε-greedy; as a guard it keeps part of every selection unbiased.
    `share` is in [0, 1].
    """

    def __init__(self, policy: Policy, share: float) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"the random share {share} of a selection is outside [0, 1]")
        super().__init__(policy, f"random({share:g})")
        self.share = float(share)
        self.needs_scores = policy.needs_scores and share < 1

    def choose(self, table: ScoreTable, k: int, rng: np.random.Generator, among: Ids | None) -> Ids:
        explored = round(self.share * k)
        if explored == 0:
            return self.policy.choose(table, k, rng, among)
        if explored == k:
            return Random().choose(table, k, rng, among)
        by_policy = self.policy.choose(table, k - explored, rng, among)
        rest = difference(np.arange(table.n) if among is None else among, by_policy)
        return np.sort(np.concatenate([by_policy, random_subset(rest, explored, rng)]))


class EpsilonGreedy(WithRandom):
    """(1−ε)·k samples of highest s_ema (paper, Eq. 2), ε·k uniformly from the rest (paper, section 3.2.2)."""

    def __init__(self, epsilon: float = 0.1) -> None:
        super().__init__(EMA(), epsilon)
        self.name = "epsilon_greedy"


class StaticEpsilonGreedy(WithRandom):
    """(1−ε)·k samples of highest static score, ε·k uniformly from the rest, anew each time (paper, appendix B)."""

    needs_scores = False

    def __init__(self, scores: ArrayLike, epsilon: float = 0.1, name: str = "static") -> None:
        super().__init__(Static(scores, name), epsilon)
        self.name = f"{name}_epsilon_greedy"


POLICIES: dict[str, type[Policy]] = {
    "random": Random,
    "uncertainty": Uncertainty,
    "ema": EMA,
    "epsilon_greedy": EpsilonGreedy,
    "ucb": UCB,
    "static_random": StaticRandom,
    "static": Static,
    "infobatch": InfoBatch,
    "static_epsilon_greedy": StaticEpsilonGreedy,
    "static_ucb": StaticUCB,
}


def build(name: str, /, **params: Any) -> Policy:
    """Return the policy called `name`, made with exactly these parameters, e.g. ``build("ucb", c=1.0)``.

    Raises `UserError` for an unknown name, an unknown or missing parameter, or a value out of range.
    """
    if name not in POLICIES:
        raise UserError(f'unknown policy "{name}"{nearest(name, POLICIES)}')
    known = inspect.signature(POLICIES[name]).parameters
    for param in params:
        if param not in known:
            hint = nearest(param, known) if known else ": it takes none"
            raise UserError(f'policy "{name}" has no parameter "{param}"{hint}')
    for param, spec in known.items():
        if spec.default is spec.empty and param not in params:
            raise UserError(f'policy "{name}" needs the parameter "{param}"')
    return POLICIES[name](**params)
