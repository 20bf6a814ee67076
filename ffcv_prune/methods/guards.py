"""Guards: rules around the rule of a method, for what a ranking alone would lose."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ffcv_prune.errors import UserError
from ffcv_prune.methods import kernels
from ffcv_prune.methods.part import Part
from ffcv_prune.methods.rule import Draw, Ids, Rule, Samples, Scores
from ffcv_prune.methods.selectors import draw_with_random, thresholds_with_random
from ffcv_prune.methods.table import LAST_TRAINED
from ffcv_prune.settings import key

_NULL_STREAM = 3  # keeps the shuffled scores apart from the draws of a run (state.py, statistics.py)


@dataclass(frozen=True, kw_only=True)
class Guard(Part, ABC):
    """Draws by the rule that it is around. Parameters at their defaults leave it out.

    Attributes:
        needs_values: whether it looks at the latest losses, even around a rule that needs none.
        is_random: whether it draws at random itself.
        fits_any_size: whether it also goes around a rule that decides itself how many samples it takes.
    """

    needs_values: ClassVar[bool] = False
    is_random: ClassVar[bool] = False
    fits_any_size: ClassVar[bool] = False

    @property
    @abstractmethod
    def label(self) -> str:
        """What names and reports add for it; empty: left out."""

    @property
    def draws_all(self) -> bool:
        """Whether it draws the whole selection itself, so that the rule is never asked."""
        return False

    def view(self, samples: Samples, among: Ids | None) -> Samples:
        """The samples as the rule is to see them. Asked for once a selection, or for the batch `among`, int64[B]."""
        return samples

    def draw(self, rule: Rule, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        """See `Rule.draw`; by `rule`, which it asks for numbers of samples of its own choice."""
        return rule.draw(samples, k, rng, among)

    def thresholds(self, rule: Rule, samples: Samples, k: int, among: Ids | None) -> tuple[Scores, Scores]:
        """See `Rule.thresholds`."""
        raise UserError(f"a method with {self.label} does not select by a threshold on its scores: set score_budget=1")


@dataclass(frozen=True)
class Guarded:
    """A guard around a rule, a rule itself."""

    guard: Guard
    rule: Rule

    def draw(self, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        return self.guard.draw(self.rule, samples, k, rng, among)

    def thresholds(self, samples: Samples, k: int, among: Ids | None) -> tuple[Scores, Scores]:
        return self.guard.thresholds(self.rule, samples, k, among)


@dataclass(frozen=True, kw_only=True)
class Null(Guard):
    """The rule on scores that are shuffled among the samples which have one, anew at each selection.

    The twin of a method: it has the same sizes, phases and weights, but its scores say nothing. What the method gains
    over it is worth the scores. A fixed ranking is shuffled alike at each selection: it stays fixed. The twin of RePB,
    whose samples stay by their last selection too, has nearly its sizes and weights.
    """

    fits_any_size: ClassVar[bool] = True
    null: bool = key(False, "guard: shuffle the scores among the samples: shows what the scores are worth")

    @property
    def label(self) -> str:
        return "null" if self.null else ""

    def view(self, samples: Samples, among: Ids | None) -> Samples:
        moment = samples.moment
        epoch = 0 if samples.statistic.is_fixed else moment.epoch
        rng = np.random.default_rng([moment.seed, epoch, _NULL_STREAM, moment.batch or 0])
        shown, known = samples.candidates(None), samples.candidates(among)[~np.isnan(samples.scores(among))]
        shown[known] = rng.permutation(known)
        return replace(samples, shuffled=shown)

    def thresholds(self, rule: Rule, samples: Samples, k: int, among: Ids | None) -> tuple[Scores, Scores]:
        return rule.thresholds(samples, k, among)


@dataclass(frozen=True, kw_only=True)
class MaxAge(Guard):
    """What was not trained on for `max_age` epochs comes first, the longest unseen first; the rule fills the rest.

    Among those unseen for as long the lower ids come first. Why: a loss that is never renewed says less and less.
    """

    columns = (LAST_TRAINED,)
    max_age: int = key(
        0, "guard: epochs until an unseen sample is selected, if the loss cap lets it; 0: off", within="[0, inf)"
    )

    @property
    def label(self) -> str:
        return f"max_age({self.max_age})" if self.max_age else ""

    def draw(self, rule: Rule, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        among = samples.candidates(among)
        unseen = samples.moment.epoch - 1 - samples.table.columns[LAST_TRAINED.name][among]
        due = min(int(np.count_nonzero(unseen >= self.max_age)), k)
        if not due:
            return rule.draw(samples, k, rng, among)
        forced = among[kernels.top_k(unseen.astype(np.float32), due)]
        if due == k:
            return Draw(forced)
        rest = kernels.difference(among, forced)
        drawn = rule.draw(samples, k - due, rng, rest)

        def probability() -> NDArray[np.float64]:
            probabilities = np.ones(among.size)
            probabilities[np.searchsorted(among, rest)] = drawn.probabilities(rest)
            return probabilities

        return Draw(np.sort(np.concatenate([forced, drawn.ids])), drawn.probability and probability)


@dataclass(frozen=True, kw_only=True)
class RandomShare(Guard):
    """k − round(share·k) samples by the rule, the others uniformly from what it left: part of every selection is
    unbiased."""

    is_random: ClassVar[bool] = True
    random_share: float = key(0.0, "guard: share of any selection drawn at random", within="[0, 1]")

    @property
    def label(self) -> str:
        return f"random({self.random_share:g})" if self.random_share else ""

    @property
    def draws_all(self) -> bool:
        return self.random_share == 1

    def draw(self, rule: Rule, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        return draw_with_random(rule, self.random_share, samples, k, rng, among)

    def thresholds(self, rule: Rule, samples: Samples, k: int, among: Ids | None) -> tuple[Scores, Scores]:
        return thresholds_with_random(rule, self.random_share, samples, k, among)


@dataclass(frozen=True, kw_only=True)
class LossCap(Guard):
    """The rule without the `loss_cap` share of the candidates whose latest loss is highest: likely wrong labels.

    Of m candidates round(share·m) are left out, or m − k if those are fewer. Among equal losses the lower ids
    stay, and so do samples without a loss. A class_floor asks for each of its quotas in turn, then for the rest: the
    candidates are the class, then all that is left. Why: label noise (paper, section 5.2).
    """

    needs_values: ClassVar[bool] = True
    loss_cap: float = key(
        0.0,
        "guard: share of the highest losses left out, by class for the places of a class_floor",
        within="[0, 1)",
    )

    @property
    def label(self) -> str:
        return f"loss_cap({self.loss_cap:g})" if self.loss_cap else ""

    def draw(self, rule: Rule, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        among = samples.candidates(among)
        left_out = min(round(self.loss_cap * among.size), among.size - k)
        if not left_out:
            return rule.draw(samples, k, rng, among)
        kept = kernels.top_k(-samples.table.last[among], among.size - left_out)
        drawn = rule.draw(samples, k, rng, among[kept])
        if drawn.probability is None:
            return drawn

        def probability() -> NDArray[np.float64]:
            probabilities = np.zeros(among.size)
            probabilities[kept] = drawn.probabilities(among[kept])
            return probabilities

        return Draw(drawn.ids, probability)


@dataclass(frozen=True, kw_only=True)
class ClassFloor(Guard):
    """Each class holds at least `class_floor` of the places that its share of the candidates entitles it to.

        quota(class) = floor · k · (candidates of the class) / (candidates)      by largest remainder

    The rule fills each quota within its class; it then fills the other k − round(floor·k) places from all
    that is left. 1 keeps the class proportions exactly; 0 is the rule alone.
    """

    class_floor: float = key(
        0.0, "guard: share of its proportional places that each class is sure of; 0: off", within="[0, 1]"
    )

    @property
    def needs_groups(self) -> bool:
        return self.class_floor > 0

    @property
    def label(self) -> str:
        return f"class_quota({self.class_floor:g})" if self.class_floor else ""

    def draw(self, rule: Rule, samples: Samples, k: int, rng: np.random.Generator, among: Ids | None) -> Draw:
        assert samples.groups is not None
        among = samples.candidates(among)
        classes = kernels.group_by_label(among, samples.groups)
        quotas = proportional_quotas(round(self.class_floor * k), np.array([members.size for members in classes]))
        drawn = [
            (members, rule.draw(samples, int(quota), rng, members))
            for quota, members in zip(quotas, classes, strict=True)
            if quota
        ]
        chosen = np.sort(np.concatenate([draw.ids for _, draw in drawn])) if drawn else among[:0]
        left = kernels.difference(among, chosen)
        rest = rule.draw(samples, k - chosen.size, rng, left) if chosen.size < k else Draw(among[:0])

        def probability() -> NDArray[np.float64]:
            earlier = np.zeros(among.size)
            for members, draw in drawn:
                earlier[np.searchsorted(among, members)] = draw.probabilities(members)
            if not rest.ids.size:
                return earlier
            # Of what the quotas drew at random, the draw from the rest says nothing, unless it is the same for all.
            later = rest.probabilities(left)
            if later.min() != later.max() and ((earlier > 0) & (earlier < 1)).any():
                return np.full(among.size, np.nan)  # not known
            chance = np.full(among.size, later.min())
            chance[np.searchsorted(among, left)] = later
            return earlier + (1 - earlier) * chance

        certain = all(draw.probability is None for draw in (rest, *(draw for _, draw in drawn)))
        return Draw(np.sort(np.concatenate([chosen, rest.ids])), None if certain else probability)

    def thresholds(self, rule: Rule, samples: Samples, k: int, among: Ids | None) -> tuple[Scores, Scores]:
        assert samples.groups is not None
        candidates = samples.candidates(among)
        classes = kernels.group_by_label(
            np.arange(candidates.size), samples.groups[candidates]
        )  # positions in `candidates`
        quotas = proportional_quotas(round(self.class_floor * k), np.array([members.size for members in classes]))
        scores, thresholds = rule.thresholds(samples, k, candidates)
        thresholds[:] = np.inf
        for quota, members in zip(quotas, classes, strict=True):
            if quota:
                thresholds[members] = rule.thresholds(samples, int(quota), candidates[members])[1]
        rest = candidates[scores < thresholds]  # what the quotas leave competes for the other places
        places = min(k - int(quotas.sum()), rest.size)
        if places > 0:
            of_rest = rule.thresholds(samples, places, rest)[1]
            thresholds = np.minimum(thresholds, of_rest[0])
        return scores, thresholds


def proportional_quotas(total: int, counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Split `total` ≤ sum(counts) in proportion to `counts`, int64[classes], by largest remainder.

    No class gets more than its count; equal remainders go to the lower class. All in integers, hence exact.
    """
    quotas, remainders = np.divmod(total * counts, counts.sum())
    missing = total - quotas.sum()
    quotas[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return quotas
