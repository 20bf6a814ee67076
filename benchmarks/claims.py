"""The findings of the paper that benchmarks/findings.py judges, each as comparisons between cells of findings.yaml."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A finding of the paper as comparisons: each of `methods` `relation` each of `rivals`, at each of `rates`.

    `relation` is "above", "below", "level with" or "not above". An empty `quote` marks what the paper does not claim.
    """

    title: str
    quote: str
    part: str
    methods: str
    relation: str
    rivals: str
    rates: tuple[float, ...] = (0.7,)


PROPOSED = "ema epsilon_greedy ucb"
CLAIMS = (
    Claim(
        "Random dynamic pruning beats static pruning",
        "the approach is able to outperform the static baselines (section 4.2)",
        "CIFAR-10, static",
        "random",
        "above",
        "static_random forget el2n",
    ),
    Claim(
        "Sometimes samples drawn anew beat sometimes samples chosen once",
        "Statically choosing the sometimes samples results nearly a 4% performance drop. Dynamically sampling from the "
        "remaining samples only results in a 1% performance degradation (section 4.2, Tab. 1)",
        "CIFAR-10, static",
        "always_ema",
        "above",
        "last_ema",
    ),
    Claim(
        "EMA, ε-greedy and UCB beat random on CIFAR-10",
        "all the active/reinforcement learning methods are able to outperform the random dynamic method (appendix C)",
        "CIFAR-10",
        PROPOSED,
        "above",
        "random",
        (0.5, 0.7, 0.8),
    ),
    Claim(
        "Guarded, they beat random on CIFAR-10",
        "",
        "CIFAR-10",
        "ema_guarded ucb_guarded",
        "above",
        "random",
        (0.5, 0.7, 0.8),
    ),
    Claim(
        "The guards help on a short schedule",
        "",
        "CIFAR-10",
        "ucb_guarded",
        "above",
        "ucb",
        (0.5, 0.7, 0.8),
    ),
    Claim(
        "Each guard alone helps UCB",
        "",
        "CIFAR-10, each guard",
        "ucb_phases ucb_half_random ucb_class_floor",
        "above",
        "ucb",
    ),
    Claim(
        "ε-greedy and UCB improve over EMA",
        "the ϵ-greedy and UCB improve the performance slightly over the uncertainty with the EMA (section 4.1)",
        "CIFAR-10",
        "epsilon_greedy ucb",
        "above",
        "ema",
        (0.5, 0.7, 0.8),
    ),
    Claim(
        "Full data bounds all methods that see as many samples",
        "the full baseline acts as an experimental upper-bound over all the other methods (section 4.3)",
        "CIFAR-10",
        f"random {PROPOSED}",
        "not above",
        "full_equal",
        (0.5, 0.7, 0.8),
    ),
    Claim(
        "InfoBatch is as good as full data",
        "",
        "CIFAR-10",
        "infobatch",
        "level with",
        "full",
        (0.5, 0.7, 0.8),
    ),
    Claim(
        "On imbalanced data the methods beat random",
        "Our methods outperform the random dynamic method at aggressive pruning rates (section 4.5)",
        "imbalanced",
        PROPOSED,
        "above",
        "random",
    ),
    Claim(
        "On downsampled data EMA and ε-greedy are worse than random",
        "the uncertainty with EMA and ϵ-greedy methods are worse than the random dynamic method (section 4.6)",
        "downsampled",
        "ema epsilon_greedy",
        "below",
        "random",
    ),
    Claim(
        "On downsampled data UCB matches random",
        "Only the UCB method matches the random dynamic method in performance (section 4.6)",
        "downsampled",
        "ucb",
        "level with",
        "random",
    ),
    Claim(
        "On Fashion-MNIST the methods beat random",
        "",
        "Fashion-MNIST",
        PROPOSED,
        "above",
        "random",
    ),
)
